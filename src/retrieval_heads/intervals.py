"""Every 95 % interval of the project: of a share, of a mean, of a difference of two shares, and of a figure that is
computed anew under other weights of its samples.

Each holds its coverage for few values; of shares and bounded values none is ever of no width. Samples may come in
clusters: a grouping names each sample's group, and groups, not samples, are what is independent.
`benchmarks/outcomes.py` measures coverage and width.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from numpy import float32, float64, int64
    from numpy.typing import NDArray

COVERAGE: Final = 0.95

FEWEST: Final = 5
"""Below so many values, or groups of values where they are grouped in one way, a mean has no interval."""

FEWEST_OF_EACH: Final = 3
"""Below so many groups of either way has none, where values are grouped in several."""

Grouping = Sequence[Hashable]
"""Of each sample the group that it is in."""

TOO_FEW: Final = "too few"
"""What stands in place of an interval of fewer values."""

_TAIL: Final = (1 - COVERAGE) / 2
_DRAWS: Final = 4_000
_DRAWS_OF_ONE: Final = 40_000
_DRAWS_OF_A_FIGURE: Final = 1_000
_FEW_COLUMNS: Final = 20
_WEIGHTS_AT_MOST: Final = 40_000_000
"""Of few columns of more than 1,000 values: 40,000 draws of 10,000 would be 1.6 GB and five seconds."""
_VALUES_AT_ONCE: Final = 4_000_000
_SEED: Final = 20240515


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def share_interval(share: float, count: float) -> Interval:
    """The exact interval of a share (Clopper & Pearson 1934).

    Args:
        share: 0–1.
        count: What it was counted on, above 0; need not be whole, as an effective sample size is not.
    """
    from scipy.special import betaincinv

    passed = share * count
    low = float(betaincinv(passed, count - passed + 1, _TAIL)) if passed > 0 else 0.0
    high = float(betaincinv(passed + 1, count - passed, 1 - _TAIL)) if passed < count else 1.0
    return Interval(min(share, low), max(share, high))


def mean_interval(values: Sequence[float], top: float = 1.0) -> Interval | None:
    """The interval of the mean of values in [0, `top`]; `None` for fewer than `FEWEST`.

    See `mean_intervals`, of which this is one column. Of values 0 and 1 it is that of `share_interval`.
    """
    if len(values) < FEWEST:
        return None
    import numpy as np

    low, high = mean_intervals(np.asarray(values, dtype=float)[:, None], top)
    return Interval(float(low[0]), float(high[0]))


def mean_of_means_interval(groups: Sequence[Sequence[float]]) -> Interval | None:
    """The interval of the mean of several groups' means, each group counting the same.

    Made of the groups' own intervals (MOVER: Zou & Donner 2008, Statistics in Medicine 27, 1693–1702). Where a group
    has fewer than `FEWEST` values and all have the same number, it is that of all values as one group, which is wider:
    it takes the differences between groups for chance. Else `None`.

    Args:
        groups: Values in [0, 1] of each group.
    """
    intervals = [mean_interval(values) for values in groups]
    if not groups or None in intervals:
        is_even = len({len(values) for values in groups}) == 1
        return mean_interval([value for values in groups for value in values]) if is_even else None
    means = [sum(values) / len(values) for values in groups]
    mean = sum(means) / len(means)
    pairs = [(at, each) for at, each in zip(means, intervals, strict=True) if each is not None]
    below = math.sqrt(sum((at - each.low) ** 2 for at, each in pairs)) / len(pairs)
    above = math.sqrt(sum((each.high - at) ** 2 for at, each in pairs)) / len(pairs)
    return Interval(max(0.0, mean - below), min(1.0, mean + above))


def mean_intervals(
    values: NDArray[float64], top: float | None = 1.0, groupings: Sequence[Grouping] | None = None
) -> tuple[NDArray[float64], NDArray[float64]]:
    """The intervals of the means of values in [0, `top`].

    Of independent values: Gaffke's bounds (Gaffke 2005; Learned-Miller & Thomas 2019): the upper end is the 97.5 %
    quantile of the mean of the values and one more, `top`, under weights that are uniform on the simplex; the lower end
    likewise with a 0 more. Of values 0 and 1 it is Clopper and Pearson's interval. That the coverage holds for every
    distribution is a conjecture without a counterexample (Phan, Thomas & Learned-Miller 2021); it is simulated in our
    tests. 4,000 seeded draws, 40,000 for few columns of up to 1,000 values. Of values in groups, groups are weighted,
    each with all its values, and what is added is a group of mean size.

    Of values that are grouped in several ways, such as by needle and by text: the variance of the mean is at most the
    sum of what either way of grouping gives (Cameron, Gelbach & Miller 2011, JBES 29, 238-249, without the term that is
    taken off), with Satterthwaite's degrees of freedom. The interval is a share's on so many values as have that
    variance (Korn & Graubard 1998, Survey Methodology 24, 193-201), and on no more than there are combinations of
    groups.

    Args:
        values: `[samples, ...]`; NaN gives NaN. A value beyond [0, `top`] is taken as the end that it is beyond, for
            the interval alone, which holds the mean in any case.
        top: The greatest value that could be; `None` for values of any sign and size, whose interval is Student's, with
            the same variance.
        groupings: The ways in which samples are grouped, from `varied`; `None` where samples are independent.

    Returns:
        Lower and upper ends, each `[...]`; NaN where there are not `enough` samples or groups.
    """
    import numpy as np

    samples, shape = len(values), values.shape[1:]
    if not enough(groupings, samples):
        return np.full(shape, math.nan), np.full(shape, math.nan)
    columns = values.reshape(samples, -1).astype(float)
    mean, groups = columns.mean(0), [_numbered(grouping) for grouping in groupings or [range(samples)]]
    if top is None:
        low, high = _students(columns, groups)
    elif len(groups) == 1:
        low, high = _gaffkes(np.clip(columns, 0, top), top, groups[0])
    else:
        low, high = _effective_shares(np.clip(columns, 0, top), top, groups)
    return np.minimum(low, mean).reshape(shape), np.maximum(high, mean).reshape(shape)


def varied(groupings: Sequence[Grouping]) -> tuple[Grouping, ...]:
    """The groupings by which figures can vary: not one of a single group, nor one whose groups lie each within a group
    of another, which varies with all that they vary with.
    """
    several = [grouping for grouping in groupings if len(set(grouping)) > 1]
    return tuple(
        grouping
        for place, grouping in enumerate(several)
        if not any(
            _is_within(grouping, other) and (place > at or not _is_within(other, grouping))
            for at, other in enumerate(several)
            if at != place
        )
    )


def enough(groupings: Sequence[Grouping] | None, samples: int) -> bool:
    """Whether a figure of so many samples in these groups can have an interval.

    Args:
        groupings: From `varied`: of samples that are all in one group there are none, and no spread can be told; `None`
            where samples are independent.
        samples: How many.
    """
    if samples < FEWEST or groupings is None:
        return samples >= FEWEST
    counts = [len(set(grouping)) for grouping in groupings]
    return min(counts, default=0) >= (FEWEST if len(counts) < 2 else FEWEST_OF_EACH)


def difference_interval(
    value: float, first: tuple[float, Interval], second: tuple[float, Interval], correlation: float
) -> Interval:
    """The interval of a difference of two paired shares, made of their own (Newcombe 1998, Statistics in Medicine
    17:2635, method 8).

    Args:
        value: The first less the second.
        first: A share and its interval.
        second: The other.
        correlation: Pearson's, over pairs.
    """

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))

    (share, own), (less, others) = first, second
    return Interval(
        max(-1.0, value - reach(share - own.low, others.high - less)),
        min(1.0, value + reach(own.high - share, less - others.low)),
    )


def group_weights(groupings: Sequence[Grouping]) -> NDArray[float64]:
    """Weights for a figure that is no mean, `[draws, samples]`, by which it is computed anew.

    Each grouping of the samples, such as by needle and by text, draws a weight for each of its groups, uniform on the
    simplex (Bayesian bootstrap: Rubin 1981, Annals of Statistics 9, 130–134); a sample's weight is the product over
    its groups (Owen 2007, Annals of Applied Statistics 1, 386–411). Seeded.

    Args:
        groupings: From `varied`, at least one.
    """
    import numpy as np

    random = np.random.default_rng(_SEED)
    weights = np.ones((_DRAWS_OF_A_FIGURE, len(groupings[0])))
    for grouping in groupings:
        groups = _numbered(grouping)
        weights *= random.standard_exponential((_DRAWS_OF_A_FIGURE, int(groups.max()) + 1))[:, groups]
    return weights


def drawn_interval(value: float, drawn: NDArray[float64], groups: int, limits: tuple[float, float]) -> Interval | None:
    """The interval of a figure that was computed anew under `group_weights`.

    The quantile of what was drawn that is farther from the figure, on either side of it: overlaps and correlations of
    drawn samples lie below those of all, so that neither the quantiles nor their reflection alone hold their coverage.
    Wider for few groups, by Student's t over the normal quantile and by the variance that uniform weights lack. Unlike
    the other intervals it is of no width where no drawing changes the figure.

    Args:
        value: The figure; NaN has no interval.
        drawn: The same under each drawing, `[draws]`; NaN where it is not defined.
        groups: How many groups drew weights, of the grouping with the fewest.
        limits: The least and the greatest that it can be.
    """
    import numpy as np
    from scipy.stats import norm, t

    known = drawn[~np.isnan(drawn)]
    if math.isnan(value) or len(known) < len(drawn) / 2:
        return None
    reach = max(abs(float(np.quantile(known, end)) - value) for end in (_TAIL, 1 - _TAIL))
    reach *= float(t.ppf(1 - _TAIL, groups - 1) / norm.ppf(1 - _TAIL)) * math.sqrt((groups + 1) / (groups - 1))
    least, most = limits
    return Interval(max(least, value - reach), min(most, value + reach))


def shown(interval: Interval | None, digits: int = 3) -> str:
    """For people: `0.526 – 0.683`, or that there are too few values."""
    return f"{interval.low:.{digits}f} – {interval.high:.{digits}f}" if interval else TOO_FEW


def _gaffkes(columns: NDArray[float64], top: float, groups: NDArray[int64]) -> tuple[NDArray[float64], ...]:
    """Gaffke's bounds, `[columns]` each of `[samples, columns]`; groups are weighted."""
    import numpy as np

    sizes = np.bincount(groups).astype(float)
    sums = _sums(columns, groups)
    weights = _weights(len(sizes), _draws(*columns.shape))
    if (sizes != 1).any():
        scaled = weights * np.append(sizes, sizes.mean())
        weights = (weights / scaled.sum(1, keepdims=True)).astype(weights.dtype)
        added = weights[:, -1:] * sizes.mean()
    else:
        added = weights[:, -1:]
    lows, highs = [], []
    step = max(1, _VALUES_AT_ONCE // len(weights))
    for start in range(0, columns.shape[1], step):
        means = weights[:, :-1] @ sums[:, start : start + step].astype(weights.dtype)
        lows.append(_quantile(means, _TAIL))
        highs.append(_quantile(means + (top * added).astype(weights.dtype), 1 - _TAIL))
    return np.concatenate(lows), np.minimum(np.concatenate(highs), top)


def _effective_shares(
    columns: NDArray[float64], top: float, groupings: Sequence[NDArray[int64]]
) -> tuple[NDArray[float64], ...]:
    """A share's exact intervals on effective numbers of samples, `[columns]` each of `[samples, columns]`."""
    import numpy as np
    from scipy.special import betaincinv
    from scipy.stats import norm, t

    share = columns.mean(0) / top
    variance, freedom = _variance(columns / top, groupings)
    most = len(set(zip(*(each.tolist() for each in groupings), strict=True)))
    with np.errstate(divide="ignore", invalid="ignore"):
        narrower = (norm.ppf(1 - _TAIL) / t.ppf(1 - _TAIL, freedom)) ** 2
        count = np.where(variance > 0, share * (1 - share) / variance * narrower, most)
    count = np.clip(count, 1e-3, most)
    passed, failed = np.clip(share, 0, 1) * count, np.clip(1 - share, 0, 1) * count
    low = np.where(passed > 0, betaincinv(np.maximum(passed, 1e-9), failed + 1, _TAIL), 0.0)
    high = np.where(failed > 0, betaincinv(passed + 1, np.maximum(failed, 1e-9), 1 - _TAIL), 1.0)
    is_known = ~np.isnan(share)
    return np.where(is_known, top * low, np.nan), np.where(is_known, top * high, np.nan)


def _students(columns: NDArray[float64], groupings: Sequence[NDArray[int64]]) -> tuple[NDArray[float64], ...]:
    """Student's intervals, `[columns]` each of `[samples, columns]`."""
    import numpy as np
    from scipy.stats import t

    variance, freedom = _variance(columns, groupings)
    reach = np.sqrt(variance) * t.ppf(1 - _TAIL, freedom)
    return columns.mean(0) - reach, columns.mean(0) + reach


def _variance(
    columns: NDArray[float64], groupings: Sequence[NDArray[int64]]
) -> tuple[NDArray[float64], NDArray[float64]]:
    """The variance of the means, the sum over ways of grouping, and its degrees of freedom (Satterthwaite 1946)."""
    import numpy as np

    samples, mean = len(columns), columns.mean(0)
    total, spread = np.zeros(len(mean)), np.zeros(len(mean))
    for groups in groupings:
        count = int(groups.max()) + 1
        off = _sums(columns - mean, groups)
        own = (off**2).sum(0) * count / (count - 1) / samples**2
        total, spread = total + own, spread + own**2 / (count - 1)
    least = min(int(groups.max()) for groups in groupings)
    with np.errstate(divide="ignore", invalid="ignore"):
        return total, np.where(spread > 0, total**2 / spread, float(least))


def _sums(columns: NDArray[float64], groups: NDArray[int64]) -> NDArray[float64]:
    """The sum of each group's values, `[groups, columns]`."""
    import numpy as np

    sums = np.zeros((int(groups.max()) + 1, columns.shape[1]))
    np.add.at(sums, groups, columns)
    return sums


def _numbered(grouping: Grouping) -> NDArray[int64]:
    """Each sample's group by a number, in the order in which they come."""
    import numpy as np

    number = {group: place for place, group in enumerate(dict.fromkeys(grouping))}
    return np.array([number[group] for group in grouping])


def _is_within(grouping: Grouping, other: Grouping) -> bool:
    """Whether each group lies within one of the other's."""
    return len(set(zip(grouping, other, strict=True))) == len(set(grouping))


def _draws(samples: int, columns: int) -> int:
    few = max(_DRAWS, min(_DRAWS_OF_ONE, _WEIGHTS_AT_MOST // samples))
    return few if columns <= _FEW_COLUMNS else _DRAWS


@lru_cache(maxsize=4)
def _weights(samples: int, draws: int) -> NDArray[float32]:
    """`[draws, samples + 1]`, uniform on the simplex: single precision, whose error is far below a draw's."""
    import numpy as np

    spacings = np.random.default_rng(_SEED).standard_exponential((draws, samples + 1), dtype=np.float32)
    weights: NDArray[float32] = spacings / spacings.sum(1, keepdims=True)
    return weights


def _quantile(means: NDArray[float32], tail: float) -> NDArray[float64]:
    """The order statistic outside of the quantile, so that drawing widens the interval and does not narrow it."""
    import numpy as np

    place = math.floor(tail * (len(means) + 1)) - 1 if tail < 0.5 else math.ceil(tail * (len(means) + 1)) - 1
    found: NDArray[float64] = np.partition(means, place, axis=0)[place].astype(float)
    return found
