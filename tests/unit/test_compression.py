"""Which KV heads a compression keeps, and what its figures say."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from retrieval_heads.ablation.compression import (
    Kept,
    arms,
    every_kv_head,
    kept_kv_heads,
    kept_of,
    kept_share_of_bytes,
    ranked_kv_heads,
    streaming_heads,
)
from retrieval_heads.ablation.settings import ranking_name
from retrieval_heads.ablation.sparsity import sparsity_of
from retrieval_heads.errors import ConfigError, EngineError, ResultsError
from retrieval_heads.runs.mask import Mask, Stream
from retrieval_heads.runs.record import Record

GROUPS = {0: (2, 3), 2: (2, 3), 5: (4, 1)}


def test_names_of_arms_are_read_back() -> None:
    found = arms(["copy", "random", "file_2.x"], [0.25, 1.0, 0.5, 0], 2)
    assert [arm.name for arm in found[:4]] == ["none", "copy_keep_0.5", "copy_keep_0.25", "copy_keep_0"]
    assert [Kept.of(arm.name) for arm in found] == found
    assert len({arm.name for arm in found}) == len(found) == 1 + 3 + 6 + 3
    with pytest.raises(ValueError, match="no arm"):
        Kept.of("top_10")


def test_a_kv_head_ranks_with_its_best_query_head_and_unranked_ones_come_last() -> None:
    ranked = [(2, 4), (7, 0), (5, 1), (2, 3), (0, 1)]  # layer 7 is a recurrence, which has no keys
    assert ranked_kv_heads(ranked, GROUPS)[:3] == [(2, 1), (5, 1), (0, 0)]
    assert sorted(ranked_kv_heads(ranked, GROUPS)) == every_kv_head(GROUPS)
    with pytest.raises(ConfigError, match="head 5-4: layer 5 of the model has heads 0 to 3"):
        ranked_kv_heads([(5, 4)], GROUPS)


@pytest.mark.parametrize("ranking", ["copy", "random"])
def test_smaller_shares_keep_some_of_what_larger_ones_keep(ranking: str) -> None:
    draw = int(ranking == "random")
    kept = [kept_kv_heads(Kept(ranking, keep, draw), [(5, 0), (0, 5)], GROUPS, 1) for keep in (0, 0.25, 0.5, 1)]
    assert [len(each) for each in kept] == [0, 2, 4, 8]
    assert all(set(one) <= set(other) for one, other in itertools.pairwise(kept))
    for each in kept:
        streaming = streaming_heads(each, GROUPS)
        assert kept_of(streaming, GROUPS) == each
        assert len(streaming) == sum(GROUPS[layer][1] for layer, _ in set(every_kv_head(GROUPS)) - set(each))


def test_draws_differ_and_are_the_same_each_time() -> None:
    drawn = [kept_kv_heads(Kept("random", 0.5, draw), (), GROUPS, seed) for draw in (1, 2, 3) for seed in (0, 1)]
    assert len({tuple(each) for each in drawn}) > 3
    assert drawn[0] == kept_kv_heads(Kept("random", 0.5, 1), (), GROUPS, 0)


def test_bytes_of_a_context_shorter_than_the_window_are_all_kept() -> None:
    assert kept_share_of_bytes(2, 8, 1000, 100) == pytest.approx(0.25 + 0.75 * 0.1)
    assert kept_share_of_bytes(0, 8, 50, 100) == 1


def test_files_are_named_by_what_tells_them_apart() -> None:
    names = [ranking_name(one) for one in ("copy", "reports/a-b/heads.json", "x/duo.heads.json", "7.json")]
    assert names == ["copy", "a_b", "duo_heads", "file_7"]


def test_a_group_that_is_not_whole_is_refused_with_the_missing_head() -> None:
    from retrieval_heads.engine.backends.vllm import check_groups

    check_groups([(0, 3), (0, 5), (0, 4)], {0: 3, 2: 3})
    with pytest.raises(
        EngineError, match="head 0-4 cannot stream without 0-3: heads 3 to 5 of layer 0 share a KV head"
    ):
        check_groups([(0, 0), (0, 1), (0, 2), (0, 4), (0, 5)], {0: 3})
    with pytest.raises(EngineError, match="the heads of layer 1 cannot stream"):
        check_groups([(1, 0)], {0: 3})


def record(arm: str, passed: bool, length: int, depth: float) -> Record:
    kept = kept_kv_heads(Kept.of(arm), (), GROUPS, 0) if arm else every_kv_head(GROUPS)
    told: dict[str, Any] = {"mask": Mask("stream", streaming_heads(kept, GROUPS), stream=Stream(4, 16))} if arm else {}
    return Record(
        kind="compress",
        arm=arm,
        passed=passed,
        status="pass" if passed else "low",
        context_length=length,
        document_depth=depth,
        prompt_tokens=length,
        **told,
    )


def records(*, arm: str, missed: int, lengths: tuple[int, ...] = (100, 200)) -> list[Record]:
    """Forty cells a length, of each of which so many are missed."""
    return [record(arm, depth >= missed, length, depth) for length in lengths for depth in range(40)]


def test_the_smallest_share_and_its_interval_at_each_length() -> None:
    sparsity = sparsity_of(
        [
            *records(arm="", missed=0),
            *records(arm="copy_keep_0.5", missed=0),
            *records(arm="copy_keep_0.25", missed=2, lengths=(100,)),  # 5 %: as much as may be lost
            *records(arm="copy_keep_0.25", missed=30, lengths=(200,)),
            *records(arm="copy_keep_0.1", missed=39),
        ],
        GROUPS,
    )
    assert [(point.ranking, point.keep) for point in sparsity.points] == [
        *(("", 1.0), ("copy", 0.5), ("copy", 0.25), ("copy", 0.1))
    ]
    least = {one.length: one for one in sparsity.least}
    assert [least[length].share for length in (None, 100, 200)] == [0.5, 0.25, 0.5]
    assert [least[length].low for length in (None, 100, 200)] == [0.5, 0.25, 0.5]
    assert least[None].high == 0.5, "none of 80 is lost: surely not more than 5 %"
    assert least[100].high == 1, "none of 40 may still be 8 %"
    assert sparsity.points[1].bytes_share == pytest.approx(0.5 + 0.5 * (20 / 100 + 20 / 200) / 2)
    assert sparsity.kv_heads == 8


def test_how_far_a_ranking_is_above_random_ones_of_the_same_share() -> None:
    sparsity = sparsity_of(
        [
            *records(arm="", missed=0),
            *records(arm="copy_keep_0.5", missed=4),
            *records(arm="copy_keep_0.25", missed=40),
            *records(arm="random_keep_0.5_draw_1", missed=20),
            *records(arm="random_keep_0.5_draw_2", missed=28),
        ],
        GROUPS,
    )
    whole, half, quarter, random = sparsity.points
    assert half.above is not None
    assert half.above.value == pytest.approx(0.9 - 0.4)
    assert 0 < half.above.low < 0.5 < half.above.high < 0.9
    assert (whole.above, quarter.above, random.above) == (None, None, None), "there is nothing to compare with"


def test_bytes_are_those_of_the_longest_prompt() -> None:
    asked = [*records(arm="", missed=0), *records(arm="copy_keep_0.25", missed=0)]
    whole, quarter = sparsity_of(asked, GROUPS, bytes_per_token=1000).points
    assert whole.longest_bytes == 200 * 1000
    assert quarter.longest_bytes == pytest.approx(200 * 1000 / 4 + 20 * 1000 * 3 / 4), "others keep 4 and 16 tokens"
    assert sparsity_of(asked, GROUPS).points[1].longest_bytes is None


def test_without_something_to_compare_there_are_no_figures() -> None:
    with pytest.raises(ResultsError, match="everything kept"):
        sparsity_of(records(arm="copy_keep_0.5", missed=0), GROUPS)
    with pytest.raises(ResultsError, match="heads that stream"):
        sparsity_of(records(arm="", missed=0), GROUPS)
    nothing = sparsity_of([*records(arm="", missed=40), *records(arm="copy_keep_0.5", missed=40)], GROUPS)
    assert nothing.least == []
    assert any("nothing can be lost" in note for note in nothing.notes)


def test_pictures_have_a_line_and_a_panel_for_each_ranking() -> None:
    from retrieval_heads.plots.compression import curve_figure, map_figure

    shares = ("0.5", "0.25")
    sparsity = sparsity_of(
        [
            *records(arm="", missed=0),
            *(one for share in shares for one in records(arm=f"copy_keep_{share}", missed=4)),
            *(one for share in shares for one in records(arm=f"random_keep_{share}_draw_2", missed=9)),
        ],
        GROUPS,
    )
    (axes,) = curve_figure(sparsity).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.25", "0.5", "1"]
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [[1, 0.9, 0.9], [1, 0.775, 0.775]]
    panels = map_figure(sparsity).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["copy", "random, draw 2"]
    assert panels[0].images[0].get_array().shape[:2] == (3, 4), "layers by KV heads"
