"""How far a score may fall below the baseline's: `0.05`, `5%`, `rougeL_recall:0.05`, `only:rougeL_recall:0.05`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from retrieval_heads.errors import ConfigError

DEFAULT: Final = ""
"""Key of the tolerance without a name: it applies to the pass metric and to `pass_rate`."""

DEFAULT_MAX_DROP: Final = "0.05"
"""The tolerance where none is given without a name."""

_ACCEPTED = "expected such as 0.05, 5%, rougeL_recall:0.05 or only:rougeL_recall:0.05"
_ENTRY = re.compile(
    r"(?P<only>only\s*:\s*(?=[^\W\d][\w.-]*\s*:))?(?:(?P<name>[^\W\d][\w.-]*)\s*:)?\s*(?P<amount>[^\s%:]+)\s*(?P<percent>%?)"
)


@dataclass(frozen=True)
class Tolerance:
    """A drop that is accepted."""

    amount: float
    """Of the score itself, or a fraction of the baseline's mean where `relative`."""
    relative: bool = False

    def __str__(self) -> str:
        return f"{self.amount * 100:.10g}%" if self.relative else f"{self.amount:.10g}"

    def drop(self, baseline: float) -> float:
        """The accepted drop, given the baseline's mean."""
        return self.amount * abs(baseline) if self.relative else self.amount


def parse_max_drop(text: str | Iterable[str]) -> Mapping[str, Tolerance]:
    """Read `--rh-max-drop`.

    Args:
        text: Entries, separated by commas or as several strings: `0.05` (of the score), `5%` (of the
            baseline's mean), each for one score where a name and a colon stand before it. It is compared beside the
            pass metric and `pass_rate`; with `only:` before the name, in their place.

    Returns:
        Tolerances by name of the number; `DEFAULT` is the key of the one without a name, which is there unless an
        entry says `only:`.

    Raises:
        ConfigError: An entry is malformed, given twice, so large that nothing could break it, or a tolerance
            without a name stands beside an `only:`.
    """
    entries = [text] if isinstance(text, str) else list(text)
    tolerances: dict[str, Tolerance] = {}
    is_default_left_out = False
    for entry in (part.strip() for joined in entries for part in joined.split(",")):
        name, tolerance, is_alone = _parse_entry(entry)
        is_default_left_out |= is_alone
        if name in tolerances:
            raise ConfigError(f"max drop: {name or 'the tolerance without a name'} is given twice")
        tolerances[name] = tolerance
    if not tolerances:
        raise ConfigError(f"max drop: no tolerance; {_ACCEPTED}")
    if is_default_left_out and DEFAULT in tolerances:
        raise ConfigError(
            f"max drop: 'only:' leaves out the pass metric and pass_rate, and {tolerances[DEFAULT]} is given for them"
        )
    if not is_default_left_out and DEFAULT not in tolerances:
        tolerances[DEFAULT] = _parse_entry(DEFAULT_MAX_DROP)[1]
    return tolerances


def _parse_entry(entry: str) -> tuple[str, Tolerance, bool]:
    """The number's name, its tolerance, and whether it stands in place of the default ones."""
    found = _ENTRY.fullmatch(entry)
    try:
        amount = float(found["amount"]) if found else math.nan
    except ValueError:
        amount = math.nan
    if not found or math.isnan(amount):
        raise ConfigError(f"max drop {entry!r}: {_ACCEPTED}")
    relative = bool(found["percent"])
    amount = amount / 100 if relative else amount
    if not 0 <= amount < 1:
        # Scores are 0–1: whoever writes 5 means 5 %, and taken by its word it would let everything through.
        limits = "0% to below 100%" if relative else "0 to below 1 (percent need a %)"
        raise ConfigError(f"max drop {entry!r}: a tolerance is {limits}")
    return found["name"] or DEFAULT, Tolerance(amount, relative), bool(found["only"])
