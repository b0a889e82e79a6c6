"""Exact tests of a fall, and the smallest fall that a comparison would catch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retrieval_heads.gates import paired
from retrieval_heads.gates.fall import Change, Fall
from retrieval_heads.gates.paired import binomial_tail, fall_p_value, holm, smallest_p_value
from retrieval_heads.gates.power import _is_significant, smallest_fall
from retrieval_heads.runs.record import Record

RECORD = Record(context_length=1, document_depth=0, needle="n")


def fall(changes: list[tuple[float, float]], limit: float = 0.05) -> Fall:
    """A fall of cells of one seed each."""
    before, after = (math.fsum(side) / len(changes) for side in zip(*changes, strict=True))
    weights = (1 / len(changes),) * len(changes)
    return Fall(tuple(Change(RECORD, *change) for change in changes), weights, before, after, limit, len(changes))


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 30))
def test_of_passes_it_is_mcnemars_exact_test(lost: int, gained: int, same: int) -> None:
    found = fall_p_value([1.0] * lost + [-1.0] * gained + [0.0] * same)
    moved = lost + gained
    expected = stats.binomtest(lost, moved, alternative="greater").pvalue if moved else 1
    assert found == pytest.approx(expected)
    assert smallest_p_value([1.0] * lost + [-1.0] * gained + [0.0] * same) == pytest.approx(0.5**moved)


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.5, -0.1, 0.0, 0.1, 0.3, 0.5, 1.0]), max_size=9))
def test_of_scores_it_counts_every_way_to_give_them_signs(drops: list[float]) -> None:
    sums = [
        math.fsum(sign * abs(drop) for sign, drop in zip(signs, drops, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(drops))
    ]
    expected = sum(each >= math.fsum(drops) - 1e-9 for each in sums) / len(sums)
    assert fall_p_value(drops) == pytest.approx(expected)


def test_of_many_scores_the_draws_agree_with_the_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    drops = list(np.random.default_rng(0).normal(0.3, 1, 30))
    exact = fall_p_value(drops)
    monkeypatch.setattr(paired, "_ENUMERATED", 10)
    assert fall_p_value(drops) == fall_p_value(drops) == pytest.approx(exact, abs=0.005)


def test_without_a_change_a_fall_is_significant_once_in_twenty_at_most() -> None:
    random = np.random.default_rng(1)
    for size in (8, 25):
        for draw in (
            lambda size: random.normal(0, 1, size),
            lambda size: random.choice([-1, 1], size) * (random.random(size) < 0.3),
            lambda size: random.choice([-1, 1], size) * random.exponential(1, size) ** 3,
        ):
            p_values = np.array([fall_p_value(list(map(float, draw(size)))) for _ in range(400)])
            assert (p_values <= 0.05).mean() <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 400)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_never_below_the_p_value_nor_above_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= found <= min(1, len(p_values) * p) + 1e-12 for p, found in zip(p_values, adjusted, strict=True))
    assert sorted(adjusted) == pytest.approx([adjusted[place] for place in np.argsort(p_values, kind="stable")])


def test_holm_of_a_known_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_tail_of_a_coin_is_scipys() -> None:
    for pairs, falls in ((1, 0), (5, 5), (7, 6), (30, 20), (10_000, 5_100)):
        expected = stats.binom.sf(falls - 1, pairs, 0.5)
        assert binomial_tail(pairs, falls) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("cells", "fewest"), [(18, 1), (30, 2), (100, 6), (352, 18)])
def test_the_smallest_fall_is_that_of_the_binomial(cells: int, fewest: int) -> None:
    """With nothing lost so far and no noise: so many lost cells are beyond 5 %, which must happen 8 times of 10."""
    expected = next(share for share in np.linspace(0, 1, 4001) if stats.binom.sf(fewest - 1, cells, share) >= 0.8)
    found = smallest_fall(fall([(1, 1)] * cells))
    assert found.beyond == pytest.approx(expected, abs=0.008)
    assert found.broken == pytest.approx(expected, abs=0.008)


def test_noise_hides_a_fall() -> None:
    calm, noisy = fall([(1, 1)] * 60), fall([(1, 1)] * 50 + [(0, 1)] * 10)
    assert smallest_fall(noisy).beyond > smallest_fall(calm).beyond
    assert smallest_fall(noisy).broken > smallest_fall(noisy).beyond
    assert smallest_fall(noisy, 20).broken >= smallest_fall(noisy).broken


def test_a_baseline_that_cannot_fall_so_far_is_never_caught() -> None:
    assert smallest_fall(fall([(0, 0)] * 20)).beyond is None
    assert smallest_fall(fall([(1, 1)] + [(0, 0)] * 29)).beyond is None


def test_ten_thousand_cells_are_no_trouble() -> None:
    assert smallest_fall(fall([(1, 1)] * 10_000)).beyond == pytest.approx(0.052, abs=0.002)


@given(st.integers(0, 14), st.integers(0, 14))
def test_a_simulated_run_is_judged_as_a_real_one(lost: int, gained: int) -> None:
    drops = [1.0] * lost + [-1.0] * gained + [0.0] * 5
    decided = fall_p_value(drops) <= 0.05 or smallest_p_value(drops) > 0.05
    assert bool(_is_significant(np.array([drops]), 0.05)[0]) is decided
