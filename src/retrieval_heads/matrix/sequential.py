"""A verdict before all cells are asked: a bet on each side of the margin, looked at after each cell.

The cells of a grid, a setting less the reference, are numbers x in [−1, 1] that are asked in an order drawn at
random. Were the mean of what they are drawn from m, a player who stakes λ_t(x_t − m) of all she has, λ_t chosen
before x_t is seen, cannot grow rich: her capital is a nonnegative martingale and passes 1/α with a probability of at
most α, however often it is looked at (Ville 1939; Waudby-Smith & Ramdas 2024, J. R. Statist. Soc. B 86, "Estimating
means of bounded random variables by betting", sections 3 and 4). One player bets that the mean is above the margin,
one that it is below.

Their bets without replacement (section 5) would tell where the mean of this very grid lies, which between equal
settings is below a margin of 0 half of the time: `benchmarks/matrix.py` found 16 to 21 % of false alarms among 60
cells.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from retrieval_heads.intervals import Interval

LEVEL: Final = 0.025
"""Of each side, as that of an interval of 95 %."""

_MOST: Final = 0.5
"""Share of what a player has that a number may cost her at most."""
_HALVINGS: Final = 20
"""Of [−1, 1], until an end of an interval is found: to 2e-6."""

Side = Literal["above", "below"]


@dataclass
class Bets:
    """Whether the mean that numbers are drawn from lies above or below a bound, told as soon as it is certain.

    Args:
        count: How many numbers there will be at most; stakes are chosen for so many.
        bound: What the mean is held against, above −1 and below 1.
        level: Of each side.
    """

    count: int
    bound: float
    level: float = LEVEL
    seen: int = 0
    total: float = 0.0
    squares: float = 0.0
    capital: dict[Side, float] = field(default_factory=lambda: {"above": 0.0, "below": 0.0})
    """Logarithms of what each player has."""
    peak: dict[Side, float] = field(default_factory=lambda: {"above": 0.0, "below": 0.0})
    """The most that each has had."""
    decision: Side | None = None
    """What the numbers seen so far make certain; it does not change any more. It may never come."""

    def see(self, value: float) -> Side | None:
        """Take in the next number, in the order drawn.

        Raises:
            ValueError: It is not in [−1, 1].
        """
        if not -1 <= value <= 1:
            raise ValueError(f"{value} is not in [-1, 1]")
        stake, gain = self._stake(), value - self.bound
        self.capital["above"] += math.log1p(min(stake, _MOST / (1 + self.bound)) * gain)
        self.capital["below"] += math.log1p(-min(stake, _MOST / (1 - self.bound)) * gain)
        for side, capital in self.capital.items():
            self.peak[side] = max(self.peak[side], capital)
            if self.decision is None and capital >= -math.log(self.level):
                self.decision = side
        self.seen += 1
        self.total += value
        self.squares += value * value
        return self.decision

    def _stake(self) -> float:
        """By the numbers seen before: the more they spread, the less (the predictable plug-in of section 3.3)."""
        mean = self.total / (self.seen + 1)
        variance = (0.25 + self.squares) / (self.seen + 1) - mean * mean
        return math.sqrt(2 * math.log(1 / self.level) / (max(variance, 1e-4) * self.count))


def drawn(cells: Iterable[str], seed: int) -> list[str]:
    """Cells in the order in which they are asked: any order is as likely, whichever other cells there are."""
    return sorted(cells, key=lambda cell: hashlib.sha256(f"{seed} {cell}".encode()).digest())


def looks(count: int) -> list[int]:
    """After how many cells it is looked whether more are needed: an engine answers those of a look together."""
    found, at = [], max(8, count // 20)
    while at < count:
        found.append(at)
        at = math.ceil(at * 1.3)
    return [*found, count]


def decided_after(values: Iterable[float], count: int, bound: float) -> tuple[Side | None, int]:
    """On which side the mean lies, and how many numbers are seen until that is certain: all, where it never is.

    Args:
        values: In the order drawn.
        count: How many there are in all.
        bound: What the mean is held against.
    """
    bets = Bets(count, bound)
    for value in values:
        if bets.see(value) is not None:
            break
    return bets.decision, bets.seen


def sequential_interval(values: Sequence[float], count: int) -> Interval:
    """The 95 % interval of the mean that holds whenever one stops: all bounds on no side of which it certainly lies.

    A bound of the other side of which the mean is certain makes every bound beyond it certain too.

    Args:
        values: Those seen, in the order drawn.
        count: How many there are in all.
    """
    return Interval(_end(values, count, "above", -1.0), _end(values, count, "below", 1.0))


def _end(values: Sequence[float], count: int, side: Side, certain: float) -> float:
    """The last bound that the mean certainly lies on a side of; `certain` is one that nothing lies beyond."""
    uncertain = -certain
    for _ in range(_HALVINGS):
        middle = (certain + uncertain) / 2
        bets = Bets(count, middle)
        for value in values:
            bets.see(value)
        if bets.peak[side] >= -math.log(LEVEL):
            certain = middle
        else:
            uncertain = middle
    return certain


def sequential_p_value(values: Iterable[float], count: int) -> float:
    """That the mean is 0, two-sided, whenever one stops: by Ville's inequality, of the most that a player has had."""
    bets = Bets(count, 0.0)
    for value in values:
        bets.see(value)
    return min(1.0, 2 * math.exp(-max(bets.peak.values())))
