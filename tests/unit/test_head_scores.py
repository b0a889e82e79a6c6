"""The registry of head scores, and that all that shows scores reads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import foreign_score
from pytest_retrieval_heads.detection import DetectionOutcome, table
from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.gates import parse_gate
from retrieval_heads.heads.detection import aggregate
from retrieval_heads.heads.formats import read_table, write_heads
from retrieval_heads.heads.looks import Look, Rows
from retrieval_heads.heads.score import head_score, head_scores
from retrieval_heads.intervals import mean_interval
from retrieval_heads.plots.heads import head_figure
from retrieval_heads.report.content import content
from retrieval_heads.report.stored_run import StoredRun
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Record

BUILT_IN = [
    "copy",
    "copy_reference",
    "mass",
    "query",
    "mass_distractors",
    "write",
    "r2",
    "copy_by_value",
    "qr",
    "induction",
    "echo",
]
NAME = foreign_score.SCORE.name


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score of another distribution."""
    foreign_score.install(tmp_path, monkeypatch, f"{NAME} = foreign_score:SCORE")


def test_our_own_scores_stand_in_one_order_whatever_else_there_is(foreign: None) -> None:
    assert list(head_scores()) == [*BUILT_IN, NAME]
    assert head_score(NAME) is foreign_score.SCORE


def test_names_and_definitions_are_told_without_torch() -> None:
    code = (
        "import sys; from retrieval_heads.heads.score import head_scores;"
        "print(*head_scores()); print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [" ".join(BUILT_IN), "False False"]


def test_an_unknown_score_is_told_with_those_that_there_are(foreign: None) -> None:
    known = ", ".join([*BUILT_IN, NAME])
    with pytest.raises(ConfigError, match=f"unknown head score 'mas'; did you mean 'mass'.* {known}"):
        head_score("mas")


def test_a_name_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign_score.install(tmp_path, monkeypatch, "mass = foreign_score:SCORE")
    with pytest.raises(ConfigError, match=r"'mass' is registered twice: .*heads\.mass:SCORE and foreign_score:SCORE"):
        head_scores()


def test_a_score_has_the_name_that_it_is_registered_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign_score.install(tmp_path, monkeypatch, "other = foreign_score:SCORE")
    with pytest.raises(ConfigError, match="the head score 'other' is registered by another name than its own"):
        head_scores()


def test_a_score_that_needs_what_rows_do_not_give_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = foreign_score.SCORE.name
    foreign_score.install(tmp_path, monkeypatch, f"{name} = foreign_score:SCORE")
    monkeypatch.setattr(foreign_score.Predecessor, "needs", frozenset({"entropy"}))
    with pytest.raises(ConfigError, match=f"the head score '{name}' needs entropy; rows give .*written.* on request"):
        head_score(name)


def test_a_score_is_not_measured_where_a_sample_lacks_what_it_is_about() -> None:
    rows = Rows(30, (7, 8), (10, 14), (7, 8, 9, 7), (0, 0))
    assert head_score("query").looks(rows) == []
    assert head_score("copy").looks(rows) == [Look((29, 31), (10, 14))]


def test_a_count_per_step_ends_where_the_longest_answer_does() -> None:
    record = Record(context_length=512, document_depth=50, needle="n", token_ids=[1] * 12, needle_span=(10, 14))
    assert head_score("copy_reference").greatest(record) == 3
    assert head_score("copy_reference").greatest(record.model_copy(update={"token_ids": [1]})) == 1
    assert head_score("r2").greatest(record) == 3
    assert head_score("r2").greatest(record.model_copy(update={"token_ids": [1]})) == 0.25


def records() -> list[Record]:
    random = np.random.default_rng(0)
    return [
        Record(
            context_length=512,
            document_depth=50,
            needle="n",
            cell=f"detect/{number}",
            seed=number,
            kind="detect",
            suite="heads",
            passed=True,
            status="pass",
            heads={name: random.random((2, 3)).round(3).tolist() for name in ("copy", "copy_reference", "mass", NAME)},
        )
        for number in range(6)
    ]


LAYERS = [Layer("model.layers.0.self_attn.attn", 0, 3), Layer("model.layers.2.self_attn.attn", 2, 3)]


def test_all_that_shows_scores_shows_another_distributions(foreign: None, tmp_path: Path) -> None:
    found = aggregate(records(), LAYERS)
    expected = mean_interval([record.heads[NAME][0][1] for record in records() if record.heads])
    assert expected is not None
    estimate = found.estimates[NAME]
    assert (estimate.low[0, 1], estimate.high[0, 1]) == pytest.approx((expected.low, expected.high), abs=0.01)

    heads, *_ = write_heads(found, tmp_path, {"suite": "heads"})
    assert json.loads(heads.read_text())["definitions"][NAME] == foreign_score.SCORE.definition

    stored = read_table(heads)
    shown = content(StoredRun("run", heads={"heads": stored}))["heads"][0]["scores"][NAME]
    assert shown["definition"] == foreign_score.SCORE.definition
    figure = head_figure({name: each.mean for name, each in stored.estimates.items()})
    assert foreign_score.SCORE.label in [axes.get_title(loc) for loc in ("left", "center") for axes in figure.axes]

    heading, best, *_ = table(DetectionOutcome("heads", found, [], None, []))
    assert heading.split() == ["head", "copy", "95", "%", "interval", "mass", NAME]
    assert len(heading) == len(best)
    assert str(parse_gate(f"head_overlap(5, {NAME}) >= 0.5")) == f"head_overlap(5, {NAME}) >= 0.5"


def test_heads_are_ranked_by_what_is_measured_where_copy_is_not(tmp_path: Path) -> None:
    named = ("query", "mass")
    some = [
        record.model_copy(update={"heads": dict.fromkeys(named, record.heads["mass"])})
        for record in records()
        if record.heads
    ]
    found = aggregate(some, LAYERS)
    assert found.ranking == "mass", "the first as scores are told, in whatever order they are named"
    assert found.ranked() == found.ranked("query")
    assert found.retrieval_heads() is None
    assert [path.name for path in write_heads(found, tmp_path, {})] == ["heads.json"], "others hold copy alone"
    assert read_table(tmp_path / "heads.json").ranking == "mass"
    lines = list(table(DetectionOutcome("heads", found, [], None, [], ["mass_distractors"])))
    assert lines[0].split() == ["head", "mass", "95", "%", "interval", "query"]
    assert not any("copy" in line for line in lines)
    assert "not measured on every counted sample: mass_distractors" in lines


def test_samples_without_any_score_in_common_are_told() -> None:
    (first, second, *_) = records()
    assert first.heads
    assert second.heads
    apart = [
        first.model_copy(update={"heads": {"mass": first.heads["mass"]}}),
        second.model_copy(update={"heads": {"copy": second.heads["copy"]}}),
    ]
    with pytest.raises(ResultsError, match="no head score was measured on all of the samples"):
        aggregate(apart, LAYERS)


def test_without_its_distribution_a_stored_score_is_shown_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as installed:
        foreign_score.install(tmp_path, installed, f"{NAME} = foreign_score:SCORE")
        heads, *_ = write_heads(aggregate(records(), LAYERS), tmp_path, {"suite": "heads"})
    stored = read_table(heads)
    assert content(StoredRun("run", heads={"heads": stored}))["heads"][0]["scores"][NAME]["definition"] == ""
    with pytest.raises(ConfigError, match=f"unknown number '{NAME}'"):
        parse_gate(f"head_spearman({NAME}) >= 0")
