"""Several runs on one page: which are read, what of each is told, and which are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrieval_heads.cli import main
from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.formats import read_table
from retrieval_heads.report.history import history_of
from retrieval_heads.runs.record import dump_record
from sample_run import sample_record


def write_run(reports: Path, name: str, began: str, *values: float, model: str = "org/toy", **fields: object) -> Path:
    """A run of one cell a value."""
    folder = reports / name
    folder.mkdir(parents=True)
    records = [sample_record(512, n, value=value, **fields) for n, value in enumerate(values)]
    (folder / "results.jsonl").write_text("".join(f"{dump_record(record)}\n" for record in records))
    (folder / "run.json").write_text(json.dumps({"model": model, "began": began}))
    return folder


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Two runs of a suite, the later one first by name, and `latest`."""
    later = write_run(tmp_path / "reports", "a", "2026-02-01T10:00:00+0000", *[1.0] * 6)
    write_run(tmp_path / "reports", "b", "2026-01-01T10:00:00+0000", 1.0, 0.25, 0.25, 1.0)
    (tmp_path / "reports" / "latest").symlink_to(later.name)
    return tmp_path / "reports"


def test_a_suite_is_told_run_by_run_in_the_order_of_dates(reports: Path) -> None:
    (((suite, model), told),) = history_of(reports).outcomes.items()
    assert (suite, model) == ("niah/tale", "toy")
    assert [(one.run, one.cells, one.retrieved[0], one.score[0]) for one in told] == [
        ("b", 4, 0.5, 0.625),
        ("a", 6, 1.0, 1.0),
    ]
    assert (round(told[0].retrieved[1].low, 3), round(told[0].retrieved[1].high, 3)) == (0.068, 0.932)
    assert told[0].score[1] is None, "no interval of a mean of four values"


def test_masked_arms_and_other_models_are_no_part_of_a_suites_line(reports: Path) -> None:
    write_run(reports, "c", "2026-03-01T10:00:00+0000", 1.0, model="other")
    write_run(reports, "d", "2026-03-02T10:00:00+0000", 0.0, kind="ablate", arm="top_10")
    assert list(history_of(reports).outcomes) == [("niah/tale", "toy"), ("niah/tale", "other")]


def test_the_heads_that_retrieve_are_counted(reports: Path) -> None:
    folder = write_run(reports, "c", "2026-03-01T10:00:00+0000", 1.0, kind="detect")
    table = {"model.layers.0.attn": {"0": 0.5, "1": 0.0, "2": 0.1}}
    (folder / "detected-agg.json").write_text(json.dumps(table))
    heads = {"schema": "retrieval-heads-heads/1", "suite": "tale", "layers": [{"path": "0", "number": 0, "heads": 3}]}
    (folder / "heads.json").write_text(json.dumps({**heads, "scores": {"copy": {"mean": [[0.5, 0.0, 0.1]]}}}))
    assert read_table(folder / "heads.json").suite == "tale"
    assert history_of(reports).outcomes["detect/tale", "toy"][0].heads == 2


def test_a_run_that_cannot_be_told_is_named(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(reports, "c", "some day", 1.0)
    (write_run(reports, "d", "2026-03-01T10:00:00+0000", 1.0) / "results.jsonl").write_text("{}\n{}\n")
    main(["visualize", "history", str(reports), "--title", "Every night"])
    told = capsys.readouterr().out
    assert "left out: c: its run.json does not say when it began" in told
    assert "left out: " in told.splitlines()[1]
    page = (reports / "history.html").read_text()
    for part in ("<h1>Every night</h1>", "its run.json does not say", "0.50 [0.07, 0.93]", "http-equiv"):
        assert part in page
    assert page.index("2026-02-01 10:00") < page.index("2026-01-01 10:00"), "the newest first"
    assert "https://" not in page


@pytest.mark.parametrize(
    ("folder", "sentence"), [("none", "a folder of runs is expected"), ("empty", "no run with measured cells in it")]
)
def test_a_folder_without_runs_is_one_sentence(tmp_path: Path, folder: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match=sentence):
        history_of(tmp_path / folder)


def test_a_page_of_somebody_elses_is_not_replaced(reports: Path) -> None:
    (reports / "history.html").write_text("mine")
    with pytest.raises(SystemExit, match="stands there already"):
        main(["visualize", "history", str(reports)])
    assert (reports / "history.html").read_text() == "mine"
