"""Exact tests of a fall over pairs: did the cells fall more than chance would have it?

Both assume nothing but that, without a change, each pair is as likely to rise as to fall by the same amount.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

LEVEL: Final = 0.05
"""A fall is significant where its p value, adjusted for all comparisons of the run, is at most this."""

_EQUAL: Final = 1e-9  # of the whole movement: sums this close are equal
_ENUMERATED: Final = 32  # pairs; two halves of 2^16 sums each
_DRAWS: Final = 50_000
_FEWEST_DRAWS: Final = 5_000
_VALUES: Final = 20_000_000
_VALUES_AT_ONCE: Final = 2_000_000
_SEED: Final = 20240515


@dataclass(frozen=True)
class PairedTest:
    """What the test says of one fall among all comparisons of a run."""

    p_value: float
    """Adjusted for all of them."""
    smallest: float
    """What the p value would be if all pairs that moved had fallen, in every comparison; adjusted likewise."""
    comparisons: int
    """How many the run makes."""

    @property
    def is_significant(self) -> bool:
        """Whether chance does not explain the fall."""
        return self.p_value <= LEVEL

    @property
    def decides(self) -> bool:
        """Whether a fall beyond the tolerance counts: it is significant, or no fall over these pairs ever could be."""
        return self.is_significant or self.smallest > LEVEL


def fall_p_value(drops: Sequence[float]) -> float:
    """One-sided p value of a fall, by flipping signs (Fisher 1935, section 21).

    The share of all ways to give the drops a sign in which they sum up to as much as they did. Drops of one size (a
    cell passed, or did not) make it McNemar's exact test (McNemar 1947). Up to 32 pairs that moved are enumerated; of
    more there are 50,000 seeded draws (5,000 above 4,000 pairs), of which what was found is one (Phipson & Smyth 2010).

    Args:
        drops: Baseline minus current of each pair, times the pair's weight in the mean.
    """
    moved = _moved(drops)
    if not moved:
        return 1.0
    sizes = [abs(drop) for drop in moved]
    if max(sizes) - min(sizes) <= _EQUAL * max(sizes):
        return binomial_tail(len(moved), sum(drop > 0 for drop in moved))
    least = math.fsum(moved) - _EQUAL * math.fsum(sizes)
    return _enumerated(sizes, least) if len(sizes) <= _ENUMERATED else _drawn(sizes, least)


def smallest_p_value(drops: Sequence[float]) -> float:
    """The p value if every pair that moved had fallen: no fall over so many of them is more significant."""
    return 0.5 ** len(_moved(drops))


def _moved(drops: Sequence[float]) -> list[float]:
    """Those that are not 0; what a mean of equal numbers leaves by its last bit is."""
    movement = math.fsum(map(abs, drops))
    return [drop for drop in drops if abs(drop) > _EQUAL * movement]


def binomial_tail(pairs: int, falls: int) -> float:
    """The probability of so many falls or more among pairs of which each falls or rises as a coin does."""
    ways = total = math.comb(pairs, falls)
    for count in range(falls, pairs):
        ways = ways * (pairs - count) // (count + 1)
        total += ways
    return float(total / 2**pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values so that the chance of one false alarm among them all stays at the level (Holm 1979)."""
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = most
    return adjusted


def _enumerated(sizes: Sequence[float], least: float) -> float:
    """Every sum of the first half with every sum of the second."""
    import numpy as np

    half = len(sizes) // 2
    first, second = (_signed_sums(part) for part in (sizes[:half], sizes[half:]))
    second.sort()
    reached = len(second) - np.searchsorted(second, least - first)
    return float(reached.sum()) / 2.0 ** len(sizes)


def _signed_sums(sizes: Sequence[float]) -> NDArray[float64]:
    import numpy as np

    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return sums


def _drawn(sizes: Sequence[float], least: float) -> float:
    import numpy as np

    random, movement = np.random.default_rng(_SEED), np.asarray(sizes)
    reached: int = 0
    left = draws = min(_DRAWS, max(_FEWEST_DRAWS, _VALUES // len(sizes)))
    while left:
        rows = min(left, max(1, _VALUES_AT_ONCE // len(sizes)))
        signs = random.integers(0, 2, (rows, len(sizes)), dtype=np.int8).astype(float)
        # A sum of signed sizes is twice that of the positive ones, less all.
        reached += int((2 * (signs @ movement) - movement.sum() >= least).sum())
        left -= rows
    return (1 + reached) / (1 + draws)
