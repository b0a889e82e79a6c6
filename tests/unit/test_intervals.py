"""The one place that makes intervals: exact for shares, and a coverage that holds for few values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retrieval_heads.intervals import (
    FEWEST,
    TOO_FEW,
    Interval,
    difference_interval,
    mean_interval,
    mean_intervals,
    share_interval,
    shown,
)

RUNS = 1500
# What 1,500 runs may fall below the coverage asked for by chance, three standard errors of it.
CHANCE = 3 * math.sqrt(0.95 * 0.05 / RUNS)

Draw = Callable[[np.random.Generator, tuple[int, int]], Any]

# Each with its true mean; values in [0, 1].
NASTY: dict[str, tuple[Draw, float]] = {
    "fair coin": (lambda random, shape: random.random(shape) < 0.5, 0.5),
    "mostly 1": (lambda random, shape: random.random(shape) < 0.95, 0.95),
    "rarely 1": (lambda random, shape: random.random(shape) < 0.02, 0.02),
    "mostly 1, else anything": (
        lambda random, shape: np.where(random.random(shape) < 0.9, 1, random.random(shape)),
        0.95,
    ),
    "skewed down": (lambda random, shape: random.beta(0.1, 2, shape), 0.1 / 2.1),
    "skewed up": (lambda random, shape: random.beta(5, 0.2, shape), 5 / 5.2),
    "three values": (lambda random, shape: random.choice([0, 0.5, 1], shape, p=[0.05, 0.15, 0.8]), 0.875),
    "flat": (lambda random, shape: random.random(shape), 0.5),
    "narrow": (lambda random, shape: 0.9 + 0.02 * random.random(shape), 0.91),
    "narrow with a rare fall": (lambda random, shape: np.where(random.random(shape) < 0.03, 0, 0.9), 0.873),
}


@pytest.mark.parametrize("samples", [5, 10, 30])
@pytest.mark.parametrize("name", NASTY)
def test_a_mean_is_covered(name: str, samples: int) -> None:
    draw, mean = NASTY[name]
    values = draw(np.random.default_rng(samples), (samples, RUNS)).astype(float)
    low, high = mean_intervals(values)
    assert ((low <= mean) & (mean <= high)).mean() >= 0.95 - CHANCE > 0.93


@pytest.mark.parametrize("count", [5, 10, 30])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.97])
def test_a_share_is_covered(share: float, count: int) -> None:
    """Exactly: the probability of every count whose interval holds the share."""
    intervals = [share_interval(passed / count, count) for passed in range(count + 1)]
    weights = stats.binom.pmf(range(count + 1), count, share)
    covered = sum(weight for weight, each in zip(weights, intervals, strict=True) if each.low <= share <= each.high)
    assert covered >= 0.95


@given(st.integers(1, 60), st.data())
def test_a_share_has_clopper_and_pearsons_interval(count: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(0, count))
    expected = stats.binomtest(passed, count).proportion_ci(method="exact")
    found = share_interval(passed / count, count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("passed", "count"), [(0, 5), (5, 5), (3, 10), (29, 30)])
def test_of_zeros_and_ones_a_mean_has_the_interval_of_a_share(passed: int, count: int) -> None:
    found, expected = mean_interval([1.0] * passed + [0.0] * (count - passed)), share_interval(passed / count, count)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=FEWEST, max_size=20))
def test_an_interval_has_a_width_holds_the_mean_and_stays_in_range(values: list[float]) -> None:
    found = mean_interval(values)
    assert found is not None
    mean = math.fsum(values) / len(values)
    assert 0 <= found.low <= mean + 1e-12
    assert mean - 1e-12 <= found.high <= 1
    assert found.high - found.low > 0.05
    assert found == mean_interval(values)


@pytest.mark.parametrize("values", [[], [0.882], [1.0, 1.0], [0.2] * 4])
def test_too_few_values_have_no_interval(values: list[float]) -> None:
    assert mean_interval(values) is None
    assert shown(mean_interval(values)) == TOO_FEW == "too few"
    if values:
        assert np.isnan(mean_intervals(np.array(values)[:, None])).all()


def test_equal_values_have_an_interval_of_some_width() -> None:
    found = mean_interval([1.0] * 5)
    assert found is not None
    assert found.low == pytest.approx(0.478, abs=0.01)
    assert found.high == 1


def test_a_scale_beyond_1_is_that_of_0_to_1_stretched() -> None:
    values = [0.0, 0.3, 1.2, 2.4, 3.0, 0.6]
    stretched, plain = mean_interval(values, top=3), mean_interval([value / 3 for value in values])
    assert stretched is not None
    assert plain is not None
    assert (stretched.low, stretched.high) == pytest.approx((3 * plain.low, 3 * plain.high), abs=1e-5)


def test_all_heads_of_a_model_agree_with_one_at_a_time() -> None:
    values = np.random.default_rng(0).random((10, 36, 32))
    low, high = mean_intervals(values)
    assert low.shape == high.shape == (36, 32)
    one = mean_interval(values[:, 7, 9].tolist())
    assert one is not None
    assert (low[7, 9], high[7, 9]) == pytest.approx((one.low, one.high), abs=0.02)
    values[3, 1, 2] = np.nan
    low, high = mean_intervals(values)
    assert np.isnan(low).sum() == np.isnan(high).sum() == 1


@pytest.mark.parametrize("cells", [5, 12, 30])
def test_a_paired_difference_is_covered(cells: int) -> None:
    """Cells of four kinds: both retrieve, the first alone, the second alone, neither."""
    random = np.random.default_rng(cells)
    for kinds in ([0.6, 0.3, 0.02, 0.08], [0.9, 0.1, 0, 0], [0.05, 0.9, 0.05, 0], [0.25, 0.25, 0.25, 0.25]):
        true, covered = kinds[1] - kinds[2], 0
        for _ in range(400):
            both, one, other, neither = random.multinomial(cells, kinds)
            first = np.repeat([1.0, 1, 0, 0], [both, one, other, neither])
            second = np.repeat([1.0, 0, 1, 0], [both, one, other, neither])
            related = np.corrcoef(first, second)[0, 1] if first.std() * second.std() > 0 else 0.0
            shares = [(float(arm.mean()), share_interval(float(arm.mean()), cells)) for arm in (first, second)]
            found = difference_interval(shares[0][0] - shares[1][0], shares[0], shares[1], float(related))
            covered += found.low <= true + 1e-12 and true - 1e-12 <= found.high
        assert covered / 400 >= 0.93


def test_an_interval_is_shown_by_its_ends() -> None:
    assert shown(Interval(0.5264, 1.0)) == "0.526 – 1.000"
