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

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

LEVEL: Final = 0.025
"""Of each side, as that of an interval of 95 %."""

_MOST: Final = 0.5
"""Share of what a player has that a number may cost her at most."""

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
    decision: Side | None = None
    """What the numbers seen so far make certain; it does not change any more. It may never come."""

    def see(self, value: float) -> Side | None:
        """Take in the next number, in the order drawn.

        Raises:
            ValueError: It is not in [−1, 1].
        """
        if not -1 <= value <= 1:
            raise ValueError(f"{value} is not in [-1, 1]")
        if self.decision is None:
            stake, gain = self._stake(), value - self.bound
            self.capital["above"] += math.log1p(min(stake, _MOST / (1 + self.bound)) * gain)
            self.capital["below"] += math.log1p(-min(stake, _MOST / (1 - self.bound)) * gain)
            self.decision = next((side for side, one in self.capital.items() if one >= -math.log(self.level)), None)
        self.seen += 1
        self.total += value
        self.squares += value * value
        return self.decision

    def _stake(self) -> float:
        """By the numbers seen before: the more they spread, the less (the predictable plug-in of section 3.3)."""
        mean = self.total / (self.seen + 1)
        variance = (0.25 + self.squares) / (self.seen + 1) - mean * mean
        return math.sqrt(2 * math.log(1 / self.level) / (max(variance, 1e-4) * self.count))


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
