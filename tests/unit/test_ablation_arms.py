"""Which heads each arm masks."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.ablation.arms import Arm, NoSuchDraw, arms, borrowed, check, draws_of, heads_of, quotas, read_heads
from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.heads.table import Head

SHAPE = dict.fromkeys(range(30), 9)
RANKED: list[Head] = [(18, 7), (18, 6), (17, 3), (20, 6), (23, 2), (17, 4), (23, 7), (23, 1), (21, 5), (21, 8)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Head], dict[int, int]]:
    """The best heads of a model, at most half of it: few heads a layer, so that layers run out."""
    shape = draw(st.dictionaries(st.integers(0, 9), st.integers(1, 5), min_size=1, max_size=6))
    every = [(layer, head) for layer, heads in shape.items() for head in range(heads)]
    best = draw(st.lists(st.sampled_from(every), unique=True, max_size=len(every) // 2))
    return best, shape


@given(cases(), st.integers(1, 6), st.integers(0, 99))
def test_control_draws_are_other_heads_as_many_and_distinct(
    case: tuple[list[Head], dict[int, int]], count: int, seed: int
) -> None:
    best, shape = case
    drawn = draws_of([best], shape, count, seed)
    assert len(set(drawn)) == len(drawn) <= count
    for heads in drawn:
        assert len(set(heads)) == len(best)
        assert not set(heads) & set(best)
        assert all(head < shape[layer] for layer, head in heads)
        assert dict(Counter(layer for layer, _ in heads)) == quotas([best], 0, shape)
    left = {layer: heads - sum(at == layer for at, _ in best) for layer, heads in shape.items()}
    exist = math.prod(math.comb(left[layer], quota) for layer, quota in quotas([best], 0, shape).items())
    assert len(drawn) == min(count, exist)


@given(cases())
def test_a_control_takes_as_many_of_a_layer_as_the_best_have_there_where_it_can(
    case: tuple[list[Head], dict[int, int]],
) -> None:
    best, shape = case
    wanted = Counter(layer for layer, _ in best)
    taken = quotas([best], 0, shape)
    assert sum(taken.values()) == len(best)
    for layer, heads in shape.items():
        left = heads - wanted[layer]
        assert taken.get(layer, 0) >= min(wanted[layer], left)
        assert taken.get(layer, 0) <= left


@given(cases(), st.integers(0, 99))
def test_draws_are_those_of_their_seed_and_more_of_them_begin_with_the_fewer(
    case: tuple[list[Head], dict[int, int]], seed: int
) -> None:
    best, shape = case
    assert draws_of([best], shape, 5, seed)[:2] == draws_of([best], shape, 2, seed)


def test_another_seed_draws_others() -> None:
    assert len({tuple(draws_of([RANKED], SHAPE, 3, seed)) for seed in range(5)}) == 5


def test_where_a_layer_runs_out_its_nearest_neighbours_give_the_lower_first() -> None:
    shape = {0: 2, 1: 2, 2: 3, 3: 2, 9: 2}
    best = [(2, 0), (2, 1), (2, 2)]
    assert quotas([best], 0, shape) == {1: 2, 3: 1}
    (control,) = draws_of([best], shape, 1, 0)
    assert borrowed(best, control) == "layer 2 has 0 of 3 left; the rest is of layer 1, 3"
    assert borrowed(RANKED, draws_of([RANKED], SHAPE, 1, 0)[0]) == ""


def test_arms_come_unmasked_first_then_each_count_with_its_controls() -> None:
    names = [arm.name for arm in arms([1, 2], 2)]
    assert names == [
        "none",
        "top_1",
        "random_1_draw_1",
        "random_1_draw_2",
        "top_2",
        "random_2_draw_1",
        "random_2_draw_2",
    ]
    for arm in arms([1, 2], 2):
        assert Arm.of(arm.name) == arm
    assert [arm.group for arm in arms([10], 2)] == ["none", "top_10", "random_10", "random_10"]


@pytest.mark.parametrize("name", ["", "top", "top_", "top_10_by_", "random_10", "top_10_draw_1", "none "])
def test_no_other_name_is_an_arm(name: str) -> None:
    with pytest.raises(ValueError, match="no arm is named"):
        Arm.of(name)


def test_the_top_arm_masks_the_best_and_the_unmasked_one_nothing() -> None:
    assert heads_of(Arm.of("top_3"), {"": RANKED}, SHAPE, 0) == ((17, 3), (18, 6), (18, 7))
    assert heads_of(Arm.of("none"), {"": RANKED}, SHAPE, 0) == ()
    control = heads_of(Arm.of("random_3_draw_2"), {"": RANKED}, SHAPE, 0)
    assert [layer for layer, _ in control] == [17, 18, 18]


def test_a_draw_beyond_the_last_distinct_one_is_said() -> None:
    assert heads_of(Arm.of("random_1_draw_1"), {"": [(0, 0)]}, {0: 2}, 0) == ((0, 1),)
    with pytest.raises(NoSuchDraw, match="no draw 2: the distinct draws of 1 other heads number 1"):
        heads_of(Arm.of("random_1_draw_2"), {"": [(0, 0)]}, {0: 2}, 0)


@pytest.mark.parametrize(
    ("ranked", "count", "said"),
    [
        ([(18, 9)], 1, "head 18-9: layer 18 of the model has heads 0 to 8"),
        ([(30, 0)], 1, "head 30-0: the model has no layer 30 whose heads can be masked; it has layers 0 to 29"),
        ([(0, 0)], 2, "top: 2 heads are to be masked, and only 1 are given"),
        (
            [(layer, head) for layer in range(16) for head in range(9)],
            144,
            "top: masking 144 of the model's 270 heads leaves 126 others, too few for a control of 144",
        ),
    ],
)
def test_heads_that_do_not_fit_the_model_are_one_sentence(ranked: list[Head], count: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check([ranked], [count], SHAPE)
    assert str(caught.value) == said


def test_layers_without_heads_are_left_out_of_the_sentence() -> None:
    with pytest.raises(ConfigError, match="it has layers 3, 7 to 8"):
        check([[(0, 0)]], [1], {3: 4, 7: 4, 8: 4})


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_head_files_of_every_form_are_read_best_first(tmp_path: Path) -> None:
    paper = written(tmp_path / "head_score.json", {"0-1": [0.2], "3-0": [0.9, 0.7]})
    means = written(tmp_path / "agg.json", {"model.layers.3.attn": {"0": 0.8}, "model.layers.0.attn": {"1": 0.2}})
    for path in (paper, means):
        assert read_heads(path, "toy") == (((3, 0), (0, 1)), "")


@pytest.mark.parametrize(
    ("content", "said"),
    [({}, "holds no heads"), ({"3-0": [0.2], "3-00": [0.3]}, "head 3-0 is given twice"), ({"a": 1}, "not a file of")],
)
def test_a_file_without_usable_heads_is_one_sentence(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(ResultsError, match=said):
        read_heads(written(tmp_path / "heads.json", content), "toy")


def test_another_models_heads_name_both(tmp_path: Path) -> None:
    content = {
        "schema": "retrieval-heads-heads/1",
        "model": "org/big",
        "layers": [{"path": "layers.0.attn", "number": 0, "heads": 2}],
        "scores": {"copy": {"mean": [[0.1, 0.5]]}},
    }
    path = written(tmp_path / "heads.json", content)
    assert read_heads(path, "toy") == (((0, 1), (0, 0)), f"{path} holds the heads of org/big, and toy is ablated")
    assert read_heads(path, "other/big")[1] == ""


BY_MASS: list[Head] = [(3, 0), (3, 1), (18, 7), (20, 6), (9, 2), (9, 3), (17, 4), (23, 7), (23, 1), (21, 5)]


def test_of_several_rankings_each_count_has_an_arm_for_each_and_shares_its_controls() -> None:
    found = arms([2], 2, ["copy", "mass_distractors"])
    names = ["none", "top_2_by_copy", "top_2_by_mass_distractors", "random_2_draw_1", "random_2_draw_2"]
    assert [arm.name for arm in found] == names
    assert [Arm.of(name) for name in names] == found
    assert [arm.by for arm in found] == ["", "copy", "mass_distractors", "", ""]
    assert [arm.name for arm in arms([2], 0, ["mass"])] == ["none", "top_2"]


def test_each_ranking_masks_its_own_best_and_controls_take_the_layers_of_one_after_the_other() -> None:
    rankings = {"copy": RANKED, "mass": BY_MASS}
    assert heads_of(Arm.of("top_2_by_copy"), rankings, SHAPE, 0) == ((18, 6), (18, 7))
    assert heads_of(Arm.of("top_2_by_mass"), rankings, SHAPE, 0) == ((3, 0), (3, 1))
    drawn = [heads_of(Arm.of(f"random_2_draw_{draw}"), rankings, SHAPE, 0) for draw in (1, 2, 3, 4)]
    assert [[layer for layer, _ in heads] for heads in drawn] == [[18, 18], [3, 3], [18, 18], [3, 3]]
    assert len(set(drawn)) == 4


@given(st.lists(st.permutations([(layer, head) for layer in range(3) for head in range(4)]), min_size=1, max_size=4))
def test_controls_of_several_rankings_hold_none_of_their_best_and_end_with_the_last_distinct_one(
    ranked: list[list[Head]],
) -> None:
    shape, tops = dict.fromkeys(range(3), 4), [ranking[:2] for ranking in ranked]
    best = {head for top in tops for head in top}
    drawn = draws_of(tops, shape, 200, 0)
    assert len(set(drawn)) == len(drawn) < 200
    assert all(len(set(heads)) == 2 and not best & set(heads) for heads in drawn)
    assert draws_of(tops, shape, 3, 0) == drawn[:3]
    for turn, heads in enumerate(drawn):
        assert dict(Counter(layer for layer, _ in heads)) == quotas(tops, turn % len(tops), shape)
