"""What a setting must reach, `NAME: gate`.

fp8-kv: mean(pass_rate) >= reference - 0.02      not worse than the reference by more than the margin
fp8-kv: head_overlap(10) >= 0.8                  its heads against the reference's
fp8-kv: min over length(pass_rate) >= 0.6        its own numbers, as a suite's gates
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from retrieval_heads.errors import ConfigError
from retrieval_heads.gates.expression import Gate, nearest, parse_gate
from retrieval_heads.gates.number import FIELDS, PASS_RATE
from retrieval_heads.scoring.settings import EVERY_METRIC

_MARGIN: Final = re.compile(
    r"mean\s*\(\s*(?P<number>[\w.-]+)\s*\)\s*>=\s*reference(?:\s*-\s*(?P<margin>\d*\.?\d+(?:[eE][+-]?\d+)?))?"
)
_EXPECTED: Final = "expected such as `mean(pass_rate) >= reference - 0.02`, `head_overlap(10) >= 0.8` or a suite's gate"


@dataclass(frozen=True)
class NotWorse:
    """A mean that may lie below the reference's by a margin.

    Args:
        number: A score of 0 to 1, or `pass_rate`.
        margin: In the number's own units, 0 or more.
    """

    number: str
    margin: float

    def __str__(self) -> str:
        return f"mean({self.number}) >= reference{f' - {self.margin:g}' if self.margin else ''}"


@dataclass(frozen=True)
class SettingGate:
    """A gate of one setting."""

    setting: str
    gate: NotWorse | Gate

    def __str__(self) -> str:
        return f"{self.setting}: {self.gate}"


def parse_setting_gate(text: str, settings: Collection[str]) -> SettingGate:
    """Read a gate.

    Args:
        text: Such as `fp8-kv: mean(pass_rate) >= reference - 0.02`.
        settings: Those that may be named.

    Raises:
        ConfigError: It is malformed, or names another setting or number.
    """
    name, found, said = (part.strip() for part in text.partition(":"))
    if not found:
        raise ConfigError(f"{text!r}: names no setting; expected `NAME: gate`")
    if name not in settings:
        raise ConfigError(f"{text!r}: there is no setting {name!r}; {nearest(name, settings)}")
    if "reference" not in said:
        return SettingGate(name, parse_gate(said, (*EVERY_METRIC, PASS_RATE, *FIELDS)))
    told = _MARGIN.fullmatch(said)
    if told is None:
        raise ConfigError(f"{text!r}: {_EXPECTED}")
    number, margin = told["number"], float(told["margin"] or 0)
    if number not in (known := (*EVERY_METRIC, PASS_RATE)):
        raise ConfigError(f"{text!r}: {number!r} cannot be compared; {nearest(number, known)}")
    if not margin < 1:
        raise ConfigError(f"{text!r}: the margin is of a number of 0 to 1, and nothing could break {margin:g}")
    return SettingGate(name, NotWorse(number, margin))
