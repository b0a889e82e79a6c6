"""How far definitions of a retrieval head agree, and how far that depends on the samples."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from retrieval_heads.cli import main
from retrieval_heads.commands.agree import lines
from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.agreement import Definition, agreement
from retrieval_heads.heads.clusters import cluster_of_cell
from retrieval_heads.heads.detection import aggregate
from retrieval_heads.heads.formats import write_heads
from retrieval_heads.heads.table import Estimate, HeadTable
from retrieval_heads.heads.top_heads import overlap, top_heads
from retrieval_heads.plots.heads import agreement_figure
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Record


def definition(mean: Any, name: str = "copy", figures: Any = None, cells: Any = (), group: int = 1) -> Definition:
    values = np.array(mean, dtype=float)
    layers = tuple(Layer("", number, values.shape[1]) for number in range(len(values)))
    table = HeadTable("", layers, {name: Estimate(values, values, values)})
    return Definition(name, table, name, None if figures is None else np.array(figures), tuple(cells), group)


def cell(needle: int, seed: int, length: int = 512) -> str:
    return f"detect/tales/key-{needle:08x}/seed_{seed}/len_{length}/depth_50"


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_figures_are_those_of_the_projects_best_heads_and_of_scipy(data: st.DataObject) -> None:
    size, top = data.draw(st.integers(4, 12)), data.draw(st.integers(1, 8))
    drawn = st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.2, 0.5, 0.9]), min_size=size, max_size=size)
    first, second = np.array(data.draw(drawn)), np.array(data.draw(drawn))
    found = agreement(definition([first]), definition([second], "mass"), top)
    assert found.overlap == overlap(*(top_heads(enumerate(scores.tolist()), top) for scores in (first, second)))
    both = (first > 0) & (second > 0)
    assert (found.heads, found.ranked) == (size, both.sum())
    ranked = first[both], second[both]
    if both.sum() < 3 or any(np.ptp(scores) == 0 for scores in ranked):
        assert found.spearman is None
    else:
        assert found.spearman == pytest.approx(float(spearmanr(*ranked).statistic))


def test_heads_that_never_copied_are_no_agreement() -> None:
    """Of ten heads eight are 0 by both; the two that are not are different ones."""
    first, second = np.zeros(10), np.zeros(10)
    first[:2], second[4:6] = (0.9, 0.8), (0.9, 0.8)
    found = agreement(definition([first]), definition([second], "mass"), 5)
    assert found.overlap == 0
    assert found.spearman is None
    assert found.notes[:2] == (
        "2 of the top 5 stand out in copy, the others tie",
        "2 of the top 5 stand out in mass, the others tie",
    )


def test_heads_of_two_models_are_told() -> None:
    one, other = (
        replace(made, table=replace(made.table, facts={"model": model}))
        for made, model in ((definition([[0.9, 0.1]]), "toy"), (definition([[0.9, 0.1]]), "toy-instruct"))
    )
    assert agreement(one, other, 1).notes[0] == "the heads are of two models, toy and toy-instruct"
    assert not any("models" in note for note in agreement(one, one, 1).notes)


def test_kv_heads_are_compared_by_their_greatest_head() -> None:
    query = definition([[0.9, 0.0, 0.1, 0.2], [0.3, 0.5, 0.0, 0.0]], group=2)
    assert query.scores() == {(0, 0): 0.9, (0, 1): 0.2, (1, 0): 0.5, (1, 1): 0.0}
    found = agreement(query, definition([[0.8, 0.1], [0.4, 0.0]], "duo"), 2)
    assert (found.overlap, found.spearman, found.heads, found.ranked) == (1, 1, 4, 3)


def test_heads_that_one_alone_scores_are_left_out_and_told() -> None:
    found = agreement(definition([[0.5, 0.4, np.nan]]), definition([[0.5, 0.4, 0.9]], "mass"), 1)
    assert (found.overlap, found.heads) == (1, 2)
    assert found.notes[0] == "1 heads are scored by one alone"
    with pytest.raises(ResultsError, match="copy and mass score no head in common"):
        agreement(definition([[0.5, np.nan]]), definition([[np.nan, 0.5]], "mass"), 1)


@pytest.mark.parametrize(
    ("name", "clusters"),
    [
        (cell(1, 2), ("key-00000001", "tales/seed_2")),
        ("detect/tales/key-00000001/seed_2/top_10/len_512/depth_0", ("key-00000001", "tales/seed_2")),
        ("detect/phonebook/seed_7/entries_64/position_3", ("detect/phonebook", "detect/phonebook/seed_7")),
        ("anything", None),
    ],
)
def test_samples_share_a_needle_or_a_text(name: str, clusters: tuple[str, str] | None) -> None:
    found = cluster_of_cell(name)
    assert found == clusters or (found and clusters and found[0] == clusters[0] and found[1].endswith(clusters[1]))


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ([cell(1, 0, length) for length in range(30)], "of 1 needle and 1 text, which are not independent"),
        ([cell(needle, 0) for needle in range(4)], "of 4 needles and 1 text, which are not independent; 5 needles or"),
        ([cell(needle, needle % 2) for needle in range(8)], "of 8 needles and 2 texts, which are not independent"),
        (["a", "b"], "do not say which needle and text they are of"),
        ([], "do not say which needle and text they are of"),
        (None, "neither file holds samples"),
    ],
)
def test_samples_that_are_not_independent_give_no_interval(cells: list[str] | None, told: str) -> None:
    random = np.random.default_rng(0)
    figures = None if cells is None else random.random((max(1, len(cells)), 1, 8))
    mean = [np.linspace(0.1, 0.9, 8)]
    found = agreement(definition(mean, figures=figures, cells=cells or ()), definition(mean, "mass"), 3)
    assert (found.overlap_interval, found.spearman_interval) == (None, None)
    assert told in found.notes[-1]


def test_samples_of_one_needle_weigh_as_one() -> None:
    """Thirty samples of six needles, all of a needle alike, tell no more than six."""
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.2, (2, 6, 1, 12))
    true = np.linspace(0.2, 0.8, 12)
    widths = []
    for repeats in (1, 5):
        figures = [np.clip(true + side, 0.01, 1).repeat(repeats, axis=0) for side in noise]
        cells = [cell(needle, 0, length) for needle in range(6) for length in range(repeats)]
        sides = [
            definition(each.mean(0), name, each, cells) for name, each in zip(("copy", "mass"), figures, strict=True)
        ]
        interval = agreement(*sides, 4).spearman_interval
        assert interval is not None
        widths.append(interval.high - interval.low)
    assert widths[0] == pytest.approx(widths[1])
    assert widths[0] > 0.1


@pytest.mark.parametrize(("needles", "texts"), [(12, 1), (3, 4)])
def test_intervals_hold_the_agreement_of_endless_samples(needles: int, texts: int) -> None:
    """Fifty heads, scores that move with needle and text; 95 % is the aim, 60 runs allow for 90 %."""
    random = np.random.default_rng(1)
    true = random.random((2, 1, 50)) * 0.5 + 0.2
    true[1] = 0.6 * true[0] + 0.4 * true[1]
    whole = agreement(definition(true[0]), definition(true[1], "mass"), 10)
    assert whole.spearman is not None
    assert whole.overlap is not None
    held = {"overlap": 0, "spearman": 0}
    places = [(needle, text, length) for needle in range(needles) for text in range(texts) for length in range(2)]
    cells = [cell(*place) for place in places]
    needle_of, text_of, _ = np.array(places).T
    for _ in range(60):
        moved = random.normal(0, 0.1, (2, needles, 1, 50))[:, needle_of]
        if texts > 1:
            moved = moved + random.normal(0, 0.1, (2, texts, 1, 50))[:, text_of]
        figures = true[:, None] + moved + random.normal(0, 0.05, (2, len(cells), 1, 50))
        sides = [
            definition(each.mean(0), name, each, cells) for name, each in zip(("copy", "mass"), figures, strict=True)
        ]
        found = agreement(*sides, 10)
        assert found.overlap_interval is not None
        assert found.spearman_interval is not None
        held["overlap"] += found.overlap_interval.low <= whole.overlap <= found.overlap_interval.high
        held["spearman"] += found.spearman_interval.low <= whole.spearman <= found.spearman_interval.high
    assert min(held.values()) >= 0.9 * 60, held


LAYERS = [Layer(f"layers.{number}", number, 4) for number in range(3)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of six needles whose `mass` follows `copy`, and whose `query` does not."""
    random = np.random.default_rng(0)
    true = np.where(random.random((3, 4)) < 0.7, random.random((3, 4)), 0)

    def heads() -> dict[str, Any]:
        copy = np.clip(true + random.normal(0, 0.05, true.shape), 0, 1) * (true > 0)
        scores = {"copy": copy, "copy_reference": copy, "mass": copy / 2, "query": random.random((3, 4))}
        return {name: values.round(4).tolist() for name, values in scores.items()}

    records = [
        Record(
            context_length=512, document_depth=50, needle=f"n{needle}", cell=cell(needle, 0), passed=True, heads=heads()
        )
        for needle in range(6)
    ]
    folder = tmp_path / "run"
    folder.mkdir()
    write_heads(aggregate(records, LAYERS), folder, {"suite": "tale", "model": "toy"})
    monkeypatch.chdir(tmp_path)
    return folder


def refused(*arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["heads", "agree", *arguments])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scores_of_one_run_stand_side_by_side(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["heads", "agree", "run", "--scores", "copy", "mass", "query", "--top", "5", "--plot", "out/agreement.png"])
    told = capsys.readouterr().out.splitlines()
    assert told[:3] == ["A  copy", "B  mass", "C  query"]
    assert told[4].split() == ["overlap", "of", "top", "5", "Spearman", "above", "0", "heads"]
    assert re.fullmatch(r"A-B +1\.000 +(0|1)\.\d+ – 1\.000 +1\.000 +(0|1)\.\d+ – 1\.000 +\d+", told[5])
    assert max(map(len, told)) <= 80
    assert told[-1] == "wrote out/agreement.png"
    assert Path("out/agreement.svg").exists()


def test_files_are_compared_by_what_each_is_ranked_by(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["heads", "export", "run", "--to", "duo", "--kv-heads", "2"])
    main(["heads", "export", "run", "--to", "qrhead", "--score", "query"])
    capsys.readouterr()
    main(["heads", "agree", "run", "duo"])
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == ["A  run: copy", "B  duo: copy"]
    assert told[4].split()[:2] == ["A-B", "1.000"]
    main(["heads", "agree", "run", "qrhead.json", "run/detected.json"])
    told = capsys.readouterr().out.splitlines()
    assert told[:3] == ["A  run: copy", "B  qrhead: qr", "C  detected: copy"]
    assert "do not say which needle" in " ".join(told)
    assert max(map(len, told)) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--scores", "copy"), "1 definitions are named; 2 to 26 are expected"),
        (("run", "--scores", "copy", "nope"), "--scores copy nope: run has no such score; it has copy, copy_reference"),
        (("run", "--top", "0"), "--top 0: at least 1 head is expected"),
        (("run", "--kv-heads", "3"), "a number that divides the 4 query heads"),
        (("run", "gone"), "gone: cannot be read"),
        (("run", "--plot", "run"), "the name of a picture is expected"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(run: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(*arguments)


def test_somebody_elses_picture_is_not_replaced(run: Path) -> None:
    Path("agreement.png").write_text("mine")
    assert "stands there already" in refused("run", "--plot", "agreement.png")
    assert Path("agreement.png").read_text() == "mine"


def test_a_pair_that_cannot_be_correlated_is_hatched_and_told() -> None:
    names = ["copy", "mass", "query"]
    pairs = {(0, 1): 0.8, (0, 2): -0.25, (1, 2): None}
    figure = agreement_figure(names, {"Spearman": pairs, "overlap": dict.fromkeys(pairs, 0.5)})
    first = next(axes for axes in figure.axes if axes.get_title("left") == "Spearman")
    assert sorted(text.get_text() for text in first.texts) == ["-0.25", "-0.25", "0.80", "0.80"]
    assert [label.get_text() for label in first.get_xticklabels()] == names
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    assert "not defined" in [text.get_text() for legend in legends for text in legend.get_texts()]


def test_a_long_name_keeps_the_table_narrow() -> None:
    sides = [definition([np.linspace(0, 1, 8)], "x" * 200), definition([np.linspace(0, 1, 8)], "y " * 200)]
    told = list(lines(sides, {(0, 1): agreement(*sides, 3)}, 3))
    assert max(map(len, told)) <= 80
