"""The pictures: what they show is what is stored, and everything on them can be read."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import PathPatch
from matplotlib.text import Text

from retrieval_heads.errors import ResultsError
from retrieval_heads.intervals import mean_interval
from retrieval_heads.plots import (
    difference_map,
    head_heatmap,
    niah_heatmap,
    profiles,
    score_distribution,
)
from retrieval_heads.plots.curves import distribution_figure, profiles_figure
from retrieval_heads.plots.difference import difference_figure
from retrieval_heads.plots.grid import measured_samples, metric_label, number_labels, panels
from retrieval_heads.plots.heads import head_figure
from retrieval_heads.plots.layout import spread
from retrieval_heads.plots.niah import niah_figure
from retrieval_heads.plots.style import DIFFERENCES, HEADS, SCORES, line_look, styled
from retrieval_heads.runs.record import Record, parse_record

NEEDLE = "The best thing to do in San Francisco is eat a sandwich."


def record(length: int = 1024, depth: float = 50.0, score: float = 1.0, **fields: Any) -> Record:
    known = {"needle": NEEDLE, "metric": "rouge1_recall", "scores": {"rouge1_recall": score}} | fields
    return Record(context_length=length, document_depth=depth, **known)


def grid(lengths: int, depths: int, *, step: int = 1000, **fields: Any) -> list[Record]:
    """Scores that differ from cell to cell."""
    return [
        record(step * (i + 1), 100 * j / max(1, depths - 1), ((3 * i + 7 * j) % 11) / 10, **fields)
        for i in range(lengths)
        for j in range(depths)
    ]


def heatmaps(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_xlim()[1] >= 1 and _mesh(axes) and not _is_bar(axes)]


def _mesh(axes: Axes) -> QuadMesh | None:
    return next((c for c in axes.collections if isinstance(c, QuadMesh)), None)


def _is_bar(axes: Axes) -> bool:
    return hasattr(axes, "_colorbar")


def mesh(axes: Axes) -> QuadMesh:
    found = _mesh(axes)
    assert found is not None
    return found


def cell_texts(axes: Axes) -> dict[tuple[int, int], str]:
    """Text by (row, column)."""
    places = ((text.get_position(), text.get_text()) for text in axes.texts)
    return {(int(y), int(x)): words for (x, y), words in places}


def hatched(axes: Axes) -> dict[str, set[tuple[int, int]]]:
    """Name of a look to the cells (row, column) that it covers."""
    found: dict[str, set[tuple[int, int]]] = {}
    for patch in axes.patches:
        if isinstance(patch, PathPatch) and patch.get_hatch():
            cells = found.setdefault(str(patch.get_label()), set())
            for corners in patch.get_path().to_polygons():
                (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
                cells |= {(r, c) for r in range(int(y0), int(y1)) for c in range(int(x0), int(x1))}
    return found


def words_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in visible_texts(figure)]


def legend_words(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def visible_texts(figure: Figure) -> list[Text]:
    """Texts that are drawn; ticks beyond the limits of an axis are not."""
    figure.canvas.draw()
    drawn: list[Text] = []
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted((low, high))
            for tick in axis.get_major_ticks():
                if low <= tick.get_loc() <= high:
                    drawn += [tick.label1, tick.label2]
            drawn += [axis.label]
        drawn += [*axes.texts, axes.title, axes._left_title, axes._right_title]
    drawn += figure.texts
    drawn += [text for legend in figure.legends for text in legend.get_texts()]
    return [text for text in drawn if text.get_text().strip() and text.get_visible()]


def assert_legible(figure: Figure) -> None:
    """No text is under 7 points, over the page's edge, or over another text."""
    texts = visible_texts(figure)
    page = figure.bbox
    boxes = []
    for text in texts:
        assert text.get_fontsize() >= 7, text
        box = text.get_window_extent()
        assert box.x0 >= 0, f"{text} is cut off on the left"
        assert box.y0 >= 0, f"{text} is cut off below"
        assert box.x1 <= page.x1, f"{text} is cut off on the right"
        assert box.y1 <= page.y1, f"{text} is cut off above"
        boxes.append((box.x0 + 0.5, box.y0 + 0.5, box.x1 - 0.5, box.y1 - 0.5))
    edges = np.array(boxes)
    for index, box in enumerate(edges[:-1]):
        rest = edges[index + 1 :]
        over = (rest[:, 0] < box[2]) & (box[0] < rest[:, 2]) & (rest[:, 1] < box[3]) & (box[1] < rest[:, 3])
        assert not over.any(), f"{texts[index]} is under {texts[index + 1 + int(over.argmax())]}"


# --- needle heatmap -------------------------------------------------------------------------------------------


def test_cells_show_the_stored_scores_with_depth_down_and_length_across() -> None:
    scores = {(0.0, 512): 1.0, (0.0, 2048): 0.42, (100.0, 512): 0.0, (100.0, 2048): 0.996}
    records = [record(length, depth, score) for (depth, length), score in scores.items()]
    (axes,) = heatmaps(niah_figure(list(reversed(records))))
    # An exact 1 or 0 is bare: 0.996 does not pass for a perfect score.
    assert cell_texts(axes) == {(0, 0): "1", (0, 1): "0.42", (1, 0): "0", (1, 1): "1.00"}
    assert mesh(axes).get_array().tolist() == [[1.0, 0.42], [0.0, 0.996]]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["512", "2,048"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0", "100"]
    top, bottom = axes.transData.transform([(0, 0), (0, 1)])[:, 1]
    assert top > bottom


def test_colour_scale_is_0_to_1_whatever_was_measured() -> None:
    (axes,) = heatmaps(niah_figure([record(depth=0, score=0.4), record(depth=100, score=0.5)]))
    assert mesh(axes).get_clim() == (0.0, 1.0)


def test_a_chosen_metric_is_plotted_and_named() -> None:
    figure = niah_figure([record(scores={"rouge1_recall": 1.0, "substring": 0.25})], metric="substring")
    assert cell_texts(heatmaps(figure)[0]) == {(0, 0): "0.25"}
    assert "substring" in words_of(figure)


def test_skipped_error_and_missing_cells_are_hatched_each_in_its_way_and_explained() -> None:
    records = [
        record(1000, 0, 0.0),
        record(1000, 100, scores={}, status="skipped"),
        record(2000, 0, scores={}, status="error"),
    ]
    figure = niah_figure(records)
    (axes,) = heatmaps(figure)
    assert hatched(axes) == {"skipped": {(1, 0)}, "error": {(0, 1)}, "missing": {(1, 1)}}
    assert cell_texts(axes) == {(0, 0): "0"}
    assert legend_words(figure) == ["skipped", "error", "not in the results"]
    looks = {(patch.get_hatch(), patch.get_facecolor()) for patch in axes.patches}
    assert len(looks) == 3
    assert tuple(SCORES(0.0)) not in {face for _, face in looks}


def test_a_complete_grid_has_no_legend() -> None:
    assert niah_figure(grid(3, 3)).legends == []


def test_each_needle_has_a_panel_with_its_name() -> None:
    records = [*grid(2, 2, needle="a", needle_name="sandwich"), *grid(2, 2, needle="b", needle_name="magic number")]
    titles = [axes.get_title(loc="left") for axes in heatmaps(niah_figure(records))]
    assert titles == ["sandwich", "magic number"]


def test_each_seed_has_a_panel_on_the_same_axes() -> None:
    figure = niah_figure([record(1000, 0, 1.0, seed=0), record(1000, 100, 0.0, seed=0), record(1000, 0, 0.5, seed=7)])
    first, second = heatmaps(figure)
    assert [first.get_title(loc="left"), second.get_title(loc="left")] == ["seed 0", "seed 7"]
    assert cell_texts(second) == {(0, 0): "0.50"}
    assert hatched(second) == {"missing": {(1, 0)}}


def test_ablation_arms_are_never_averaged() -> None:
    figure = niah_figure([record(score=1.0, arm=""), record(score=0.0, arm="top-10")])
    assert [axes.get_title(loc="left") for axes in heatmaps(figure)] == ["nothing masked", "top-10"]


def test_many_seeds_are_averaged_for_each_needle_and_the_picture_says_so() -> None:
    records = [record(score=(seed % 2) * 0.5, needle=needle, seed=seed) for needle in ("a", "b") for seed in range(10)]
    figure = niah_figure(records)
    assert [cell_texts(axes) for axes in heatmaps(figure)] == [{(0, 0): "0.25"}] * 2
    assert any("mean over 10 seeds" in words for words in words_of(figure))


def test_a_mean_without_a_skipped_record_is_marked() -> None:
    records = [record(score=0.5, seed=seed) for seed in range(20)]
    records.append(record(scores={}, status="skipped", seed=99))
    figure = niah_figure(records)
    (axes,) = heatmaps(figure)
    assert cell_texts(axes) == {(0, 0): "0.50"}
    assert [c for c in axes.collections if c.get_label() == "partial"]
    assert legend_words(figure) == ["mean without the records of this cell that have no score"]


def test_records_of_the_predecessor_draw() -> None:
    line = '{"context_length": 4096, "document_depth": 25.0, "needle": "n", "rougeL": 0.75, "text": "x"}'
    figure = niah_figure([parse_record(line, "results.jsonl:1")])
    assert cell_texts(heatmaps(figure)[0]) == {(0, 0): "0.75"}
    assert "ROUGE-L F" in words_of(figure)


def test_numbers_are_drawn_only_where_they_fit() -> None:
    (small,) = heatmaps(niah_figure(grid(32, 11)))
    assert len(cell_texts(small)) == 32 * 11
    for lengths, depths in ((60, 5), (5, 60)):
        (large,) = heatmaps(niah_figure(grid(lengths, depths)))
        assert cell_texts(large) == {}


def test_numbers_stay_inside_their_cells() -> None:
    (axes,) = heatmaps(niah_figure(grid(40, 40)))
    corner, opposite = axes.transData.transform([(0, 0), (1, 1)])
    width, height = abs(opposite - corner)
    assert axes.texts
    for text in axes.texts:
        box = text.get_window_extent()
        assert box.width + 2 < width
        assert box.height + 2 < height


def test_numbers_contrast_with_their_cells() -> None:
    (axes,) = heatmaps(niah_figure([record(depth=d, score=d / 100) for d in range(0, 101, 5)]))
    shades = {text.get_text(): text.get_color() for text in axes.texts}
    assert (shades["0"], shades["1"]) == ("#ffffff", "#1f2430")
    for text in axes.texts:
        face = SCORES(float(text.get_text()))
        assert contrast(luminance(face), luminance(hex_colour(text.get_color()))) >= 3


def test_the_title_falls_back_to_the_suite() -> None:
    assert "essays" in words_of(niah_figure([record(suite="essays")]))
    assert "My run" in words_of(niah_figure([record(suite="essays")], title="My run"))


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "metric", "sentence"),
    [
        ([], None, "the list of records is empty"),
        ([record(score=math.nan, cell="c1")], None, "'c1': score rouge1_recall is nan"),
        ([record()], "substring", "no score 'substring'; its scores are: rouge1_recall"),
        ([record(metric="", scores={"a": 1.0, "b": 0.0})], None, "choose a metric of: a, b"),
        ([record(cell="c1"), record(cell="c1")], None, "cell 'c1' stands more than once"),
        ([record(), record(metric="x", scores={"x": 1.0})], None, "different scores (rouge1_recall, x)"),
    ],
)
def test_records_that_cannot_be_plotted_are_refused_in_a_sentence(
    records: list[Record], metric: str | None, sentence: str
) -> None:
    for build in (niah_figure, profiles_figure):
        with pytest.raises(ResultsError) as caught:
            build(records, metric=metric)
        assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "options", "sentence"),
    [
        ({}, {}, "no head score was given"),
        ({"copy": [0.1, 0.2]}, {}, "shape [2], not [layers, heads]"),
        ({"copy": [[math.nan]]}, {}, "no layer was scored"),
        ({"copy": [[math.inf]]}, {}, "infinite"),
        ({"copy": [["x"]]}, {}, "not a table of numbers"),
        ({"copy": [[0.1]], "mass": [[0.1, 0.2]]}, {}, "1 × 1 and 1 × 2"),
        ({"copy": [[0.1]]}, {"top": [(1, 0)]}, "top head 1-0 is not among 1 layers × 1 heads"),
        ({"copy": [[0.1]]}, {"marked_layers": {3: "sliding window"}}, "marked layer 3"),
        ({"copy": [[0.1]]}, {"layer_labels": ["a", "b"]}, "2 layer labels for 1 layers"),
    ],
)
def test_head_scores_that_cannot_be_plotted_are_refused_in_a_sentence(
    scores: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ResultsError) as caught:
        head_figure(scores, **options)
    assert sentence in str(caught.value)


# --- heads ----------------------------------------------------------------------------------------------------


def test_every_score_has_a_panel_of_layers_by_heads() -> None:
    scores = {name: np.linspace(0, 0.8, 12).reshape(3, 4) for name in ("copy", "copy_reference", "mass", "query")}
    panels = heatmaps(head_figure(scores))
    assert [axes.get_title(loc="left").split()[0] for axes in panels] == list(scores)
    for axes, values in zip(panels, scores.values(), strict=True):
        assert mesh(axes).get_array().shape == (3, 4)
        assert np.allclose(mesh(axes).get_array(), values)
        assert mesh(axes).get_clim() == (0.0, 0.8)
    assert panels[2].get_xlabel() == "Head"
    assert panels[0].get_ylabel() == "Layer"


def test_a_score_that_may_lie_below_0_has_a_scale_that_goes_as_far_on_either_side() -> None:
    copy, write = heatmaps(head_figure({"copy": [[0.2, 0.5]], "write": [[-3.0, 1.0]]}))
    assert mesh(copy).get_clim() == (0.0, 0.5)
    assert mesh(write).get_clim() == (-3.0, 3.0)
    assert mesh(write).get_cmap().name == "rh_differences"


def test_top_heads_are_ringed_in_every_panel_and_named_in_the_first() -> None:
    scores = {"copy": np.eye(20), "mass": np.eye(20)}
    figure = head_figure(scores, top=[(18, 6), (2, 3)])
    first, second = heatmaps(figure)
    for axes in (first, second):
        (rings,) = [c for c in axes.collections if c.get_label() == "top"]
        assert rings.get_offsets().tolist() == [[6.5, 18.5], [3.5, 2.5]]
    assert sorted(text.get_text() for text in first.texts) == ["18-6", "2-3"]
    assert not second.texts
    assert "top head (layer-head)" in legend_words(figure)


def test_many_top_heads_are_ringed_without_names() -> None:
    figure = head_figure({"copy": np.eye(40)}, top=[(n, n) for n in range(30)])
    (axes,) = heatmaps(figure)
    assert not axes.texts
    assert legend_words(figure) == ["top head"]


def test_head_names_neither_overlap_nor_leave_the_panel() -> None:
    top = [(0, 0), (0, 1), (0, 31), (0, 30), (1, 31), (31, 31), (31, 0), (15, 15), (15, 16), (16, 15)]
    figure = head_figure({"copy": np.random.default_rng(0).random((32, 32))}, top=top)
    assert_legible(figure)
    (axes,) = heatmaps(figure)
    assert len(axes.texts) >= 8
    frame = axes.get_window_extent()
    for text in axes.texts:
        box = text.get_window_extent()
        assert frame.x0 - 1 <= box.x0 < box.x1 <= frame.x1 + 1


def test_layers_that_were_not_scored_are_hatched_and_kinds_are_marked_on_the_axis() -> None:
    scores = np.full((4, 3), 0.2)
    scores[1] = math.nan
    figure = head_figure({"copy": scores}, marked_layers={1: "sliding window", 3: "sliding window"})
    (axes,) = heatmaps(figure)
    assert hatched(axes) == {"not scored": {(1, 0), (1, 1), (1, 2)}}
    marks = [patch for patch in axes.patches if patch.get_label() == "sliding window"]
    assert [patch.get_y() for patch in marks] == [1, 3]
    assert all(patch.get_x() + patch.get_width() < 0 for patch in marks)
    assert legend_words(figure) == ["not scored", "sliding window layer"]


def test_layer_labels_name_the_rows() -> None:
    figure = head_figure({"copy": np.eye(2)}, layer_labels=["3", "7"], top=[(1, 1)])
    (axes,) = heatmaps(figure)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["3", "7"]
    assert [t.get_text() for t in axes.texts] == ["7-1"]


# --- curves ---------------------------------------------------------------------------------------------------


def test_the_distribution_is_sorted_and_counts_the_heads_at_the_threshold() -> None:
    scores = np.array([[0.05, 0.1, math.nan], [0.9, 0.0, math.nan]])
    figure = distribution_figure(scores)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["scores"].get_xdata().tolist() == [1, 2, 3, 4]
    assert lines["scores"].get_ydata().tolist() == [0.9, 0.1, 0.05, 0.0]
    assert list(lines["threshold"].get_ydata()) == [0.1, 0.1]
    assert axes.get_xscale() == "log"
    assert any("2 of 4 heads (50.0 %) at or above 0.1 · 2 heads not scored" in words for words in words_of(figure))


def test_profiles_show_the_mean_by_length_and_by_depth() -> None:
    records = [record(1000, 0, 1.0), record(1000, 100, 0.5), record(2000, 0, 0.0), record(2000, 100, 0.5)]
    records.append(record(4000, 0, scores={}, status="skipped"))
    by_length, by_depth = profiles_figure(records).axes
    (line,) = by_length.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1000, 2000], [0.75, 0.25])
    (line,) = by_depth.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 100], [0.5, 0.5])


def test_profiles_overlay_runs_that_can_be_told_apart() -> None:
    figure = profiles_figure({f"run {n}": grid(3, 3) for n in range(8)})
    assert legend_words(figure) == [f"run {n}" for n in range(8)]
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 8
    assert len({str(line_look(n)) for n in range(210)}) == 210


def test_whiskers_are_the_interval_of_the_mean_and_none_for_too_few_values() -> None:
    records = [record(1000, depth) for depth in range(0, 50, 10)]
    records += [record(2000, depth) for depth in range(0, 40, 10)]
    (whiskers,) = (each for each in profiles_figure(records).axes[0].collections if each.get_label() == "interval")
    (five, four) = ([y for _, y in segment] for segment in whiskers.get_segments())
    expected = mean_interval([1.0] * 5)
    assert expected is not None
    assert five == pytest.approx([expected.low, expected.high])
    assert four == [1.0, 1.0]


def test_profiles_of_no_measured_record_are_refused_by_the_name_of_the_run() -> None:
    with pytest.raises(ResultsError, match=r"run 'b' has no measured record"):
        profiles_figure({"a": [record()], "b": [record(scores={}, status="error")]})
    with pytest.raises(ResultsError, match="no run was given"):
        profiles_figure({})


# --- difference -----------------------------------------------------------------------------------------------


def test_differences_are_second_minus_first_on_a_symmetric_scale() -> None:
    first = [record(1000, 0, 1.0, cell="a"), record(1000, 100, 0.5, cell="b")]
    second = [record(1000, 100, 0.75, cell="b"), record(1000, 0, 0.25, cell="a")]
    figure = difference_figure(first, second, names=("main", "fp8"))
    (axes,) = heatmaps(figure)
    assert cell_texts(axes) == {(0, 0): "-0.75", (1, 0): "+0.25"}
    assert mesh(axes).get_clim() == (-0.75, 0.75)
    assert "fp8 against main" in words_of(figure)
    assert any("fp8 minus main" in words for words in words_of(figure))
    assert any("1 higher, 1 lower, 0 equal" in words.replace("\n", " ") for words in words_of(figure))


def test_small_differences_do_not_fill_the_scale() -> None:
    (axes,) = heatmaps(difference_figure([record(score=0.5)], [record(score=0.51)]))
    assert mesh(axes).get_clim() == (-0.1, 0.1)


def test_cells_of_one_run_alone_are_hatched() -> None:
    first = [record(1000, 0, 1.0), record(1000, 50, 1.0), record(1000, 100, 1.0)]
    second = [record(1000, 0, 1.0), record(1000, 50, scores={}, status="error"), record(2000, 0, 1.0)]
    figure = difference_figure(first, second)
    (axes,) = heatmaps(figure)
    assert cell_texts(axes) == {(0, 0): "0"}
    assert hatched(axes) == {"unpaired": {(1, 0), (2, 0), (0, 1)}, "missing": {(1, 1), (2, 1)}}
    assert "not measured in both runs" in legend_words(figure)


def test_records_without_a_cell_name_pair_by_needle_length_depth_and_seed() -> None:
    ours = [record(score=1.0, cell="x", seed=0), record(score=0.5, cell="y", seed=1)]
    theirs = [record(score=0.5, seed=1), record(score=0.25, seed=0)]
    figure = difference_figure(theirs, ours)
    assert [cell_texts(axes) for axes in heatmaps(figure)] == [{(0, 0): "0"}, {(0, 0): "+0.75"}]


def test_different_cell_names_are_different_questions() -> None:
    with pytest.raises(ResultsError, match="no cell was measured in both runs"):
        difference_figure([record(cell="a")], [record(cell="b")])


def test_runs_that_count_by_different_scores_are_not_subtracted() -> None:
    with pytest.raises(ResultsError, match="by rouge1_recall in one run and by x in the other"):
        difference_figure([record()], [record(metric="x", scores={"x": 1.0})])


def test_an_unnamed_question_asked_twice_is_refused() -> None:
    with pytest.raises(ResultsError, match="more than once in one run"):
        difference_figure([record()], [record(), record()])


def test_losses_are_marked_where_no_number_fits() -> None:
    first, second = grid(60, 60), [r.model_copy(update={"scores": {"rouge1_recall": 0.5}}) for r in grid(60, 60)]
    figure = difference_figure(first, second)
    (axes,) = heatmaps(figure)
    (marks,) = [c for c in axes.collections if c.get_label() == "lower"]
    assert len(marks.get_offsets()) == sum(r.scores["rouge1_recall"] > 0.5 for r in first)
    assert "lower score" in legend_words(figure)


# --- legibility -----------------------------------------------------------------------------------------------

LONG = "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8 · a suite with a name that goes on for longer than any page is wide " * 3
SIGMOID = [0.0, *(100 / (1 + math.exp(-0.1 * (d - 50))) for d in range(5, 100, 5)), 100.0]


def head_scores(layers: int, heads: int) -> Any:
    return np.random.default_rng(layers).beta(0.1, 6, (layers, heads))


FIGURES: dict[str, Callable[[], Figure]] = {
    "niah 1 × 1": lambda: niah_figure(grid(1, 1)),
    "niah 3 × 3": lambda: niah_figure(grid(3, 3), title="SmolLM2-135M-Instruct · essays"),
    "niah 32 × 11": lambda: niah_figure(grid(32, 11, step=4096), title=LONG),
    "niah 40 × 40": lambda: niah_figure(grid(40, 40, step=3277)),
    "niah 1 × 40": lambda: niah_figure(grid(1, 40)),
    "niah 40 × 1": lambda: niah_figure(grid(40, 1)),
    "niah lengths apart": lambda: niah_figure([record(n) for n in (300, 512, 7000, 1_048_576)]),
    "niah sigmoid depths": lambda: niah_figure([record(n, d) for n in (512, 1024) for d in SIGMOID]),
    "niah 5 long needles": lambda: niah_figure(
        [r for n in range(5) for r in grid(8, 11, step=16384, needle=f"{n} {LONG}")], title=LONG
    ),
    "niah 12 seeds": lambda: niah_figure([r for n in range(12) for r in grid(4, 3, seed=n)]),
    "niah only skipped": lambda: niah_figure([record(scores={}, status="skipped")]),
    "niah other scripts": lambda: niah_figure(grid(3, 3), title="针 סיכה إبرة सुई 🪡 $\\frac$ \x00\u202e\ud800 " * 5),
    "heads 1 × 1": lambda: head_figure({"copy": [[0.0]]}, top=[(0, 0)]),
    "heads 30 × 9": lambda: head_figure({n: head_scores(30, 9) for n in ("copy", "copy_reference", "mass", "query")}),
    "heads 80 × 128": lambda: head_figure(
        {n: head_scores(80, 128) for n in ("copy", "mass")},
        title=LONG,
        top=[(n * 7, n * 11) for n in range(11)],
        marked_layers={n: "sliding window" if n % 2 else "gated delta, which keeps no keys" for n in range(80)},
    ),
    "heads with long layer names": lambda: head_figure(
        {"copy": head_scores(36, 32)}, layer_labels=[f"model.language_model.layers.{n}.self_attn" for n in range(36)]
    ),
    "distribution 1": lambda: distribution_figure([[0.02]], title=LONG),
    "distribution 10,240": lambda: distribution_figure(head_scores(80, 128)),
    "profiles 1": lambda: profiles_figure(grid(1, 1)),
    "profiles 40 × 40": lambda: profiles_figure(grid(40, 40, step=3277), title=LONG),
    "profiles 3 runs": lambda: profiles_figure({LONG[:80] + n: grid(6, 5, step=2000) for n in "abc"}),
    "difference 3 × 3": lambda: difference_figure(grid(3, 3), grid(3, 2), names=(LONG, LONG)),
    "difference 40 × 40": lambda: difference_figure(grid(40, 40), grid(40, 40)),
}
MORE_FIGURES = ("niah 40 × 40", "niah 12 seeds", "heads 30 × 9", "profiles 40 × 40", "difference 40 × 40")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in MORE_FIGURES else name for name in FIGURES]
)
def test_nothing_is_clipped_crowded_or_small(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Our style covers the drawing too: text is measured as it will be saved.
        with styled():
            assert_legible(FIGURES[name]())


def luminance(colour: Any) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: float, other: float) -> float:
    low, high = sorted((one, other))
    return (high + 0.05) / (low + 0.05)


def hex_colour(text: str) -> list[float]:
    return [int(text[start : start + 2], 16) / 255 for start in (1, 3, 5)]


@pytest.mark.parametrize(("cmap", "direction"), [(SCORES, 1), (HEADS, -1)])
def test_sequential_colours_keep_their_order_on_a_grey_printer(cmap: Any, direction: int) -> None:
    lightness = [direction * luminance(cmap(x)) ** (1 / 3) for x in np.linspace(0, 1, 65)]
    steps = [later - earlier for earlier, later in pairwise(lightness)]
    assert min(steps) > 0
    assert max(steps) < 4 * sum(steps) / len(steps)


def test_diverging_colours_are_lightest_at_0_and_equally_dark_at_both_ends() -> None:
    lightness = [luminance(DIFFERENCES(x)) for x in np.linspace(0, 1, 65)]
    assert lightness.index(max(lightness)) == 32
    assert lightness[0] == pytest.approx(lightness[-1], abs=0.03)


# --- labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 50, 100], ["0", "50", "100"]),
        ([0.0, 33.3333, 100.0], ["0", "33.3", "100"]),
        ([0.669, 0.673, 50], ["0.669", "0.673", "50"]),
    ],
)
def test_depth_labels_are_short_and_distinct(values: list[float], labels: list[str]) -> None:
    assert number_labels(values) == labels


@pytest.mark.parametrize(("count", "room"), [(1, 0.1), (2, 1.0), (11, 3.0), (40, 7.0), (128, 6.2)])
def test_ticks_keep_their_distance_and_name_both_ends(count: int, room: float) -> None:
    chosen = spread(count, room, pitch=0.3)
    gaps = [(b - a) * room / count for a, b in pairwise(chosen)]
    assert chosen[0] == 0
    assert all(gap >= 0.3 - 1e-9 for gap in gaps)
    assert chosen[-1] == count - 1


def test_metrics_are_named_as_people_write_them() -> None:
    assert metric_label("rouge1_recall") == "ROUGE-1 recall"
    assert metric_label("rougeL_f") == "ROUGE-L F"
    assert metric_label("substring") == "substring"


# --- files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def drawers() -> dict[str, Callable[[Path], list[Path]]]:
    records = grid(3, 3)
    return {
        "niah": lambda path: niah_heatmap(records, path),
        "heads": lambda path: head_heatmap({"copy": [[0.1, 0.5]]}, path),
        "distribution": lambda path: score_distribution([[0.1, 0.5]], path),
        "profiles": lambda path: profiles(records, path),
        "difference": lambda path: difference_map(records, records, path),
    }


@pytest.mark.parametrize("name", ["niah", "heads", "distribution", "profiles", "difference"])
def test_every_picture_is_written_as_png_and_svg(
    name: str, drawers: dict[str, Callable[[Path], list[Path]]], tmp_path: Path
) -> None:
    paths = drawers[name](tmp_path / "new" / "heatmap-qwen2.5.png")
    assert paths == [tmp_path / "new" / "heatmap-qwen2.5.png", tmp_path / "new" / "heatmap-qwen2.5.svg"]
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)
    assert imread(paths[0]).shape[1] > 600
    assert ElementTree.parse(paths[1]).getroot().tag.endswith("svg")


def test_a_dot_in_the_name_is_no_ending(tmp_path: Path) -> None:
    names = [path.name for path in niah_heatmap(grid(1, 1), tmp_path / "heatmap-qwen2.5")]
    assert names == ["heatmap-qwen2.5.png", "heatmap-qwen2.5.svg"]


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (niah_heatmap(grid(3, 3), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_hostile_titles_stay_text_in_the_svg(tmp_path: Path) -> None:
    _, svg = niah_heatmap(grid(3, 3), tmp_path / "p", title="</text><script>1</script> $x^2$ \x00\u202e針")
    texts = ["".join(e.itertext()) for e in ElementTree.parse(svg).iter() if e.tag.endswith("}text")]
    assert "</text><script>1</script> $x^2$ 針" in " ".join(texts)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match=r"file/heatmap\.png: the picture cannot be written"):
        niah_heatmap(grid(1, 1), tmp_path / "file" / "heatmap.png")


def test_a_full_disk_leaves_no_half_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = niah_heatmap(grid(1, 1), tmp_path / "heatmap")[0].read_bytes()

    class Full(io.FileIO):
        def write(self, content: Any) -> int:
            super().write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("retrieval_heads.files.open", lambda path, mode, opener: Full(path, mode), raising=False)
    with pytest.raises(ResultsError, match="No space left on device"):
        niah_heatmap(grid(3, 3), tmp_path / "heatmap")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heatmap.png", "heatmap.svg"]
    assert (tmp_path / "heatmap.png").read_bytes() == old


def test_the_callers_style_neither_changes_the_picture_nor_is_changed(tmp_path: Path) -> None:
    import matplotlib as mpl

    plain = niah_heatmap(grid(3, 3), tmp_path / "a")[1].read_bytes()
    with mpl.rc_context({"font.size": 30, "xtick.major.pad": 30}):
        assert niah_heatmap(grid(3, 3), tmp_path / "b")[1].read_bytes() == plain
        assert mpl.rcParams["font.size"] == 30


def test_figures_are_drawn_off_screen_and_leave_pyplot_alone() -> None:
    import matplotlib.pyplot as plt

    assert isinstance(niah_figure(grid(2, 2)).canvas, FigureCanvasAgg)
    assert plt.get_fignums() == []


@pytest.fixture
def no_display() -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return environment | {"MPLBACKEND": "module://no_such_window"}


def test_plots_need_no_display_and_nothing_else_imports_matplotlib(tmp_path: Path, no_display: dict[str, str]) -> None:
    code = (
        "import sys; import retrieval_heads.runs.record; assert 'matplotlib' not in sys.modules\n"
        "from pathlib import Path\n"
        "from retrieval_heads.plots import head_heatmap\n"
        "head_heatmap({'copy': [[0.1, 0.2]]}, Path(sys.argv[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "heads")],
        env=no_display,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "heads.png").exists()


def test_distributions_of_several_runs_are_overlaid_and_counted() -> None:
    figure = distribution_figure({"bf16": [[0.5, 0.2, 0.01]], "fp8": [[0.4, math.nan, 0.01, 0.0]]})
    (axes,) = [axes for axes in figure.axes if axes.get_lines()]
    drawn = [line.get_ydata().tolist() for line in axes.get_lines() if len(line.get_ydata()) > 2]
    assert drawn == [[0.5, 0.2, 0.01], [0.4, 0.01, 0.0]]
    assert legend_words(figure) == [
        "bf16: 2 of 3 heads (66.7 %) at or above 0.1",
        "fp8: 1 of 3 heads (33.3 %) at or above 0.1",
    ]
    with pytest.raises(ResultsError, match="no run was given"):
        distribution_figure({})


def test_the_colours_go_from_the_first_limit_to_the_second(tmp_path: Path) -> None:
    figure = niah_figure(grid(3, 3), limits=(0.2, 0.8))
    assert any(axes.collections and axes.collections[0].get_clim() == (0.2, 0.8) for axes in figure.axes)
    plain, _ = niah_heatmap(grid(3, 3), tmp_path / "plain")
    limited, _ = niah_heatmap(grid(3, 3), tmp_path / "limited", limits=(0.2, 0.8))
    assert plain.read_bytes() != limited.read_bytes()
    with pytest.raises(ResultsError, match=r"the colours go from 0\.8 to 0\.2; the first must be the lower"):
        niah_heatmap(grid(3, 3), tmp_path / "heatmap", limits=(0.8, 0.2))


def test_a_picture_of_ten_thousand_cells_stays_small(tmp_path: Path) -> None:
    records = [r if n % 7 else r.model_copy(update={"status": "skipped"}) for n, r in enumerate(grid(100, 100))]
    _, svg = niah_heatmap(records, tmp_path / "heatmap")
    assert svg.stat().st_size < 3_000_000


def test_another_tasks_cells_are_one_panel_whatever_each_asks() -> None:
    asked = {"kind": "niah", "suite": "sums", "task": "sums", "metric": "key_words", "threshold": 0.5}
    records = [
        Record(
            **asked,
            cell=f"{terms}/{digits}",
            axes={"terms": terms, "digits": digits},
            question=f"What is {terms} + {digits}?",
            scores={"key_words": terms / 4},
            passed=terms > 2,
            status="pass" if terms > 2 else "low",
        )
        for terms in (2, 3)
        for digits in (1, 2)
    ]
    (panel,), note = panels(measured_samples(records, None))
    assert (panel.sides, panel.xs, panel.ys, note) == (("terms", "digits"), [2, 3], [1, 2], "")
    assert panel.values.tolist() == [[0.5, 0.75], [0.5, 0.75]]
