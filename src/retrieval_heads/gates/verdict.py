"""A verdict: what each gate measured, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Word = Literal["held", "broken", "inconclusive"]
"""What became of a gate."""

Inconclusive = Literal["fail", "warn"]
"""What an inconclusive comparison does to the run (`--rh-inconclusive`)."""

WORST_SHOWN: Final = 3
"""A broken gate names this many of its worst cells."""


@dataclass(frozen=True)
class Outcome:
    """One gate, judged."""

    gate: str
    """The gate as its user wrote it, or what is compared with the baseline."""
    passed: bool
    """Whether it lets the run pass: it held, or it is inconclusive and that is but a warning."""
    measured: float | None
    """`None` where there is no value; never NaN."""
    limit: float | None
    """`None` where it is a share of a baseline that has no value."""
    sentence: str
    """Measured value and limit, and what is missing, in one line."""
    worst: tuple[str, ...] = ()
    """The worst cells as `length/depth value`, worst first; empty where the gate holds."""
    suite: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    """More numbers by name, such as the baseline's mean and the p value of a drop."""
    is_inconclusive: bool = False
    """Beyond its limit, and noise may be why."""

    @property
    def outcome(self) -> Word:
        """What became of it, in a word."""
        if self.is_inconclusive:
            return "inconclusive"
        return "held" if self.passed else "broken"

    def line(self, worst: int = WORST_SHOWN) -> str:
        """The gate in one line, with so many of its worst cells at most."""
        cells = ", ".join(self.worst[:worst])
        return f"{f'{self.suite}: ' if self.suite else ''}{self.sentence}{f'; worst {cells}' if cells else ''}"


@dataclass(frozen=True)
class Verdict:
    """All gates of a run, judged."""

    outcomes: tuple[Outcome, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader may want to know beside: agreement of heads."""

    @property
    def passed(self) -> bool:
        """Whether no gate fails the run; without a gate nothing is proved, so `False`."""
        return bool(self.outcomes) and not self.failed

    @property
    def outcome(self) -> Word:
        """The worst of its gates' words: broken, else inconclusive, else held; without a gate nothing is proved."""
        return worst_word(outcome.outcome for outcome in self.outcomes)

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The gates that fail the run."""
        return tuple(outcome for outcome in self.outcomes if not outcome.passed)

    @property
    def broken(self) -> tuple[Outcome, ...]:
        """The gates that are broken."""
        return self.of("broken")

    def of(self, word: Word) -> tuple[Outcome, ...]:
        """The gates of which that became."""
        return tuple(outcome for outcome in self.outcomes if outcome.outcome == word)

    def __add__(self, other: Verdict) -> Verdict:
        """Both verdicts as one: it passes only where both do."""
        warnings = dict.fromkeys((*self.warnings, *other.warnings))
        return Verdict(self.outcomes + other.outcomes, tuple(warnings), self.notes + other.notes)


def worst_word(words: Iterable[Word]) -> Word:
    """Of what became of several gates, the worst; of none, `broken`."""
    found = set(words) or {"broken"}
    if "broken" in found:
        return "broken"
    return "inconclusive" if "inconclusive" in found else "held"


def plain(value: float, limit: float | None = None) -> str:
    """A number for people: three significant digits, more where it would look like the limit and is not."""
    if float(value).is_integer() or (abs(value) >= 1000 and limit is None):
        return f"{value:.0f}"
    texts = (f"{value:.{digits}g}" for digits in range(3, 17))
    return next((text for text in texts if float(text) != limit), repr(value))
