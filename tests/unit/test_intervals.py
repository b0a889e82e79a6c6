"""The one place that makes intervals: exact for shares, and a coverage that holds for few values."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from retrieval_heads.intervals import (
    FEWEST,
    TOO_FEW,
    Grouping,
    Interval,
    difference_interval,
    mean_interval,
    mean_intervals,
    share_interval,
    shown,
    varied,
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


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        pytest.param(
            name, samples, marks=pytest.mark.long if samples > 5 and name not in ("mostly 1", "skewed down") else ()
        )
        for name in NASTY
        for samples in (5, 10, 30)
    ],
)
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


@pytest.mark.parametrize("passed", [5_000, 9_700])
def test_ten_thousand_values_take_no_gigabytes_and_hardly_lose_sharpness(passed: int) -> None:
    tracemalloc.start()
    found = mean_interval([1.0] * passed + [0.0] * (10_000 - passed))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500e6
    exact = share_interval(passed / 10_000, 10_000)
    assert found is not None
    near = 0.05 * (exact.high - exact.low)
    assert (found.low, found.high) == (pytest.approx(exact.low, abs=near), pytest.approx(exact.high, abs=near))


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


# Of a head: its mean as log odds, and how far needles, texts, pairs of them and single samples stray from it.
CLUSTERED = {
    "copies": (0.4, 0.5, 0.5, 0.3, 0.4),
    "by the needle": (0.4, 0.6, 0, 0, 0.4),
    "by the text": (0.4, 0, 0.6, 0, 0.4),
    "seldom": (-4, 1.5, 1.5, 0.5, 1),
    "nearly always": (3, 1, 1, 0.5, 0.5),
    "independent": (0.4, 0, 0, 0, 0.8),
}


def clustered(
    random: np.random.Generator, stray: tuple[float, ...], needles: int, texts: int, cells: int
) -> tuple[Any, float]:
    """Samples of `RUNS` heads, `[needles × texts × cells, RUNS]`, and the mean of endless needles and texts.

    Of a single needle, or text, it is the mean of the other's alone.
    """
    middle, by_needle, by_text, by_pair, by_sample = stray
    by_needle, by_text = (by_needle if needles > 1 else 0), (by_text if texts > 1 else 0)

    def strays(scale: float, *shape: int) -> Any:
        return scale * random.normal(size=(*shape, RUNS))

    odds = middle + strays(by_needle, needles, 1, 1) + strays(by_text, 1, texts, 1)
    odds = odds + strays(by_pair, needles, texts, 1) + strays(by_sample, needles, texts, cells)
    whole = math.sqrt(by_needle**2 + by_text**2 + by_pair**2 + by_sample**2)
    mean = special.expit(middle + whole * np.random.default_rng(9).normal(size=400_000)).mean()
    return special.expit(odds).reshape(-1, RUNS), float(mean)


def groupings(needles: int, texts: int, cells: int) -> tuple[Grouping, ...]:
    places = [(needle, text) for needle in range(needles) for text in range(texts) for _ in range(cells)]
    return varied(list(zip(*places, strict=True)))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(
            name, size, marks=pytest.mark.long if size in ((1, 6, 10), (5, 1, 12)) and name != "copies" else ()
        )
        for name in CLUSTERED
        for size in ((3, 4, 10), (1, 6, 10), (5, 1, 12), (4, 8, 3))
    ],
)
def test_a_mean_of_clustered_samples_is_covered(name: str, size: tuple[int, int, int]) -> None:
    values, mean = clustered(np.random.default_rng(sum(size)), CLUSTERED[name], *size)
    low, high = mean_intervals(values, 1, groupings(*size))
    assert ((low <= mean) & (mean <= high)).mean() >= 0.95 - CHANCE > 0.93
    assert (high - low).mean() < 0.8
    if name == "copies":
        low, high = mean_intervals(values)
        assert ((low <= mean) & (mean <= high)).mean() < 0.8, "taken for independent they are covered less"


@pytest.mark.parametrize("size", [(3, 4, 10), (1, 6, 10)])
def test_values_of_any_sign_and_size_are_covered(size: tuple[int, int, int]) -> None:
    values, _ = clustered(np.random.default_rng(1), CLUSTERED["copies"], *size)
    values, mean = 7 * special.logit(values) - 3, 7 * 0.4 - 3
    low, high = mean_intervals(values, None, groupings(*size))
    assert ((low <= mean) & (mean <= high)).mean() >= 0.95 - CHANCE


def test_groups_of_one_value_are_values() -> None:
    values = np.random.default_rng(0).random((9, 30))
    np.testing.assert_allclose(mean_intervals(values, 1, [list("abcdefghi")]), mean_intervals(values), atol=1e-6)


def test_copies_of_samples_tell_nothing_more() -> None:
    values = np.random.default_rng(0).random((12, 30))
    needles, texts = [number // 4 for number in range(12)], [number % 4 for number in range(12)]
    once = mean_intervals(values, 1, [needles, texts])
    thrice = mean_intervals(np.tile(values, (3, 1)), 1, [needles * 3, texts * 3])
    np.testing.assert_allclose(once, thrice, atol=1e-9)
    alone = mean_intervals(values[:6], 1, [[0, 1, 2, 3, 4, 5]])
    again = mean_intervals(np.tile(values[:6], (3, 1)), 1, [[0, 1, 2, 3, 4, 5] * 3])
    np.testing.assert_allclose(alone, again, atol=1e-6)


@pytest.mark.parametrize("groups", [[[0] * 8], [[0, 1] * 4], [[0, 1] * 4, [0, 0, 1, 1, 2, 2, 3, 3]]])
def test_few_clusters_have_no_interval(groups: list[list[int]]) -> None:
    assert np.isnan(mean_intervals(np.random.default_rng(0).random((8, 2)), 1, varied(groups))).all()


def test_clusters_that_never_differ_have_an_interval_of_some_width() -> None:
    for value in (0.0, 0.4, 1.0):
        low, high = mean_intervals(np.full((12, 1), value), 1, groupings(3, 4, 1))
        assert high[0] - low[0] > 0.2
        assert low[0] <= value <= high[0]


def test_a_grouping_within_another_and_one_of_a_single_group_add_nothing() -> None:
    needle, text = list("aabbccdd"), list("uvwxyzst")
    assert varied([needle, text]) == (needle,), "each needle has texts of its own"
    assert varied([text, needle]) == (needle,)
    assert varied([needle, needle]) == (needle,)
    assert varied([needle, ["one"] * 8]) == (needle,)
    assert varied([["one"] * 8, ["one"] * 8]) == ()
    crossed = [0, 1] * 4
    assert varied([needle, crossed]) == (needle, crossed)


def test_an_interval_is_shown_by_its_ends() -> None:
    assert shown(Interval(0.5264, 1.0)) == "0.526 – 1.000"
