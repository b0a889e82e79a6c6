"""Accuracy by arm, its intervals, and the drop against the unmasked arm."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from retrieval_heads.ablation.effect import effect_of, to_json
from retrieval_heads.errors import ResultsError
from retrieval_heads.runs.record import Mask, Record

MASKS = {
    "top_2": [(1, 0), (1, 1)],
    "top_2_by_copy": [(1, 0), (1, 1)],
    "top_2_by_mass": [(2, 0), (2, 1)],
    "top_2_by_r2": [(1, 0), (1, 1)],
    "random_2_draw_1": [(1, 2), (1, 3)],
    "random_2_draw_2": [(1, 3), (1, 4)],
}


def records(answers: Mapping[str, Sequence[bool]], **fields: object) -> list[Record]:
    """A record for each arm and cell."""
    return [
        Record.model_validate(
            {
                "kind": "ablate",
                "context_length": 512 + cell,
                "document_depth": 50,
                "needle": "n",
                "arm": "" if arm == "none" else arm,
                "mask": Mask(mode="zero", heads=MASKS[arm]) if arm in MASKS else None,
                "passed": said,
                "status": "pass" if said else "low",
                **fields,
            }
        )
        for arm, of_arm in answers.items()
        for cell, said in enumerate(of_arm)
    ]


def test_arms_and_their_drops() -> None:
    effect = effect_of(
        records(
            {
                "none": [True] * 8 + [False] * 2,
                "top_2": [True] * 2 + [False] * 8,
                "random_2_draw_1": [True] * 8 + [False] * 2,
                "random_2_draw_2": [True] * 6 + [False] * 4,
            }
        )
    )
    assert [group.name for group in effect.groups] == ["none", "top_2", "random_2"]
    assert [group.accuracy.value for group in effect.groups] == pytest.approx([0.8, 0.2, 0.7])
    assert [group.drop.value for group in effect.groups if group.drop] == pytest.approx([0.6, 0.1])
    assert effect.groups[2].draws == pytest.approx({"random_2_draw_1": 0.8, "random_2_draw_2": 0.6})
    assert effect.excess["top_2"].value == pytest.approx(0.5)
    assert effect.mode == "zero"
    assert effect.reached == {"": 2}
    assert effect_of(records({"none": [True] * 4, "top_2": [True] * 3 + [False]})).reached == {"": None}


def test_rankings_stand_side_by_side_the_one_that_costs_most_first() -> None:
    effect = effect_of(
        records(
            {
                "none": [True] * 8 + [False] * 2,
                "top_2_by_mass": [True] * 6 + [False] * 4,
                "top_2_by_copy": [True] * 2 + [False] * 8,
                "top_2_by_r2": [True] * 2 + [False] * 8,
                "random_2_draw_1": [True] * 8 + [False] * 2,
                "random_2_draw_2": [True] * 6 + [False] * 4,
            }
        )
    )
    assert [group.name for group in effect.groups] == [
        *("none", "top_2_by_copy", "top_2_by_mass", "top_2_by_r2", "random_2"),
    ]
    assert [(one.by, one.count) for one in effect.comparison] == [("copy", 2), ("r2", 2), ("mass", 2)]
    assert [one.drop.value for one in effect.comparison] == pytest.approx([0.6, 0.6, 0.2])
    assert [one.per_head.value for one in effect.comparison] == pytest.approx([0.3, 0.3, 0.1])
    assert [one.excess and one.excess.value for one in effect.comparison] == pytest.approx([0.5, 0.5, 0.1])
    first, _, last = effect.comparison
    assert first.behind is None
    assert last.behind is not None
    assert last.behind.value == pytest.approx(0.4)
    assert (first.per_head.low, first.per_head.high) == pytest.approx((first.drop.low / 2, first.drop.high / 2))
    assert effect.reached == {"copy": 2, "mass": None, "r2": 2}
    assert effect.notes == ["top_2: the same heads by copy, r2"]
    told = to_json(effect, {})
    assert set(told["excess"]) == {"2_by_copy", "2_by_mass", "2_by_r2"}  # type: ignore[call-overload]


def test_the_paired_interval_is_newcombes() -> None:
    """His method 8 of exact intervals, by the counts of pairs: both retrieved, one alone, the other alone, neither."""
    both, one, other, neither = 20, 12, 2, 6
    first = [True] * (both + one) + [False] * (other + neither)
    second = [True] * both + [False] * one + [True] * other + [False] * neither
    margins = (both + one) * (other + neither) * (both + other) * (one + neither)
    phi = (both * neither - one * other) / math.sqrt(margins)
    (low, high), (less, more) = (stats.binomtest(passed, 40).proportion_ci(method="exact") for passed in (32, 22))
    down, up, below, above = 0.8 - low, high - 0.8, 0.55 - less, more - 0.55
    effect = effect_of(records({"none": first, "top_2": second}))
    drop = effect.groups[1].drop
    assert drop is not None
    assert drop.value == pytest.approx(0.25)
    assert drop.low == pytest.approx(0.25 - math.sqrt(down**2 - 2 * phi * down * above + above**2))
    assert drop.high == pytest.approx(0.25 + math.sqrt(up**2 - 2 * phi * up * below + below**2))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_intervals_hold_their_value_and_stay_in_range(answers: list[tuple[bool, ...]]) -> None:
    arms = ("none", "top_2", "random_2_draw_1", "random_2_draw_2")
    effect = effect_of(records({arm: [cell[place] for cell in answers] for place, arm in enumerate(arms)}))
    for group in effect.groups:
        assert 0 <= group.accuracy.low <= group.accuracy.value <= group.accuracy.high <= 1
        if group.drop:
            assert -1 <= group.drop.low <= group.drop.value <= group.drop.high <= 1
    json.dumps(to_json(effect, {}), allow_nan=False)


def test_draws_that_differ_widen_the_interval_of_their_mean() -> None:
    same = {"none": [True] * 10, "random_2_draw_1": [True, False] * 5, "random_2_draw_2": [False, True] * 5}
    apart = {"none": [True] * 10, "random_2_draw_1": [True] * 10, "random_2_draw_2": [False] * 10}
    narrow, wide = (effect_of(records(answers)).groups[1].accuracy for answers in (same, apart))
    assert narrow.value == wide.value == 0.5
    assert wide.high - wide.low > narrow.high - narrow.low


def test_a_drop_is_over_the_cells_of_both_arms() -> None:
    answered = records({"none": [True, True, False, False], "top_2": [False, False, False, False]})
    answered = [record for record in answered if not (record.arm and record.context_length >= 514)]
    group = effect_of(answered).groups[1]
    assert group.cells == 2
    assert group.drop is not None
    assert group.drop.value == 1


def test_skipped_cells_and_those_in_error_are_left_out() -> None:
    more = records({"top_2": [False]}, status="error", passed=None, context_length=9999)
    effect = effect_of([*records({"none": [True], "top_2": [True]}), *more])
    assert effect.groups[1].accuracy.value == 1


@pytest.mark.parametrize(
    ("arms", "said"),
    [({"top_2": [True]}, "with nothing masked"), ({"none": [True]}, "with heads masked"), ({}, "with nothing masked")],
)
def test_without_both_kinds_of_arms_there_is_nothing_to_tell(arms: dict[str, list[bool]], said: str) -> None:
    with pytest.raises(ResultsError, match=said):
        effect_of(records(arms))


def test_what_is_odd_is_said() -> None:
    assert "retrieves no cell" in effect_of(records({"none": [False], "top_2": [False]})).notes[0]
    odd = records({"none": [True], "top_2": [True], "random_2_draw_1": [True]})
    moved = odd[-1].model_copy(update={"mask": Mask(mode="zero", heads=[(1, 2), (2, 0)])})
    assert effect_of([*odd[:-1], moved]).notes == ["random_2: layer 1 has 1 of 2 left; the rest is of layer 2"]
