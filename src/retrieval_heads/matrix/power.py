"""What an undecided comparison is worth: how many cells would decide, and which fall these would have shown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Final

from retrieval_heads.intervals import Interval
from retrieval_heads.matrix.comparison import change_interval
from retrieval_heads.runs.record import finite_mean

POWER: Final = 0.8

_MOST_MORE: Final = 100_000
"""Cells beyond which it is not asked how many would decide."""
_EXACT: Final = 300
"""Cells up to which that is asked of the exact interval: beyond, a normal one's is the same to a digit."""


def cells_to_decide(changes: Sequence[float], is_decided: Callable[[Interval], bool]) -> int | None:
    """How many cells in all would decide, should further ones come out as those that were asked.

    Args:
        changes: Of the pairs that there are.
        is_decided: Whether an interval decides.

    Returns:
        About; a whole number of times as many as now. `None` where none would up to 100,000.
    """
    times = 1
    while len(changes) and (count := len(changes) * times) <= _MOST_MORE:
        found = _interval(list(changes) * times if count <= _EXACT else changes, count)
        if found is not None and is_decided(found):
            return count
        times += max(1, times // 4)
    return None


def smallest_fall(passed: int, rises: int, cells: int, margin: float) -> float | None:
    """The smallest true fall of the pass rate that would be certain to lie below a margin 8 times of 10.

    Each cell that passes is lost with the same probability. As many cells as rose are taken to be moved by noise, up
    and down alike.

    Args:
        passed: Cells that passed under the reference.
        rises: Those that passed under the setting alone.
        cells: All pairs.
        margin: Of the gate.

    Returns:
        `None` where not even a fall to 0 would.
    """
    from scipy.special import betaincinv

    noise = min(rises, passed)
    low, high = 0, passed - noise + 1  # lost cells: not certain, certain
    while high - low > 1:
        lost = (low + high) // 2
        changes = [1.0] * noise + [-1.0] * (noise + lost) + [0.0] * (cells - 2 * noise - lost)
        found = _interval(changes, cells)
        low, high = (low, lost) if found is not None and found.high < -margin else (lost, high)
    if high > passed - noise:
        return None
    # So many are lost with a probability of 0.8 where a share of this size is: the binomial's upper tail.
    return float(betaincinv(high, passed - high + 1, POWER)) * passed / cells


def _interval(changes: Sequence[float], count: int) -> Interval | None:
    return change_interval(changes) if count <= _EXACT else _normal(changes, count)


def _normal(changes: Sequence[float], count: int) -> Interval:
    mean = finite_mean(list(changes))
    error = 1.96 * (statistics.pvariance(changes) / count) ** 0.5
    nothing = 3.7 / count  # what an event that was never seen may still have, at 97.5 %
    return Interval(mean - max(error, nothing), mean + max(error, nothing))
