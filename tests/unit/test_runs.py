"""A run's folder: one writer, nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from retrieval_heads.errors import ConfigError
from retrieval_heads.results import Record, read_records
from retrieval_heads.runs import RunFolder


def record(depth: float = 50, suite: str = "essays", **fields: object) -> Record:
    cell = f"niah/essays/sf/seed_0/len_512/depth_{depth:g}"
    return Record.model_validate(
        {"suite": suite, "cell": cell, "context_length": 512, "document_depth": depth, "needle": "n", **fields}
    )


def test_a_named_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert RunFolder.create("results/qwen", tmp_path, ["essays"]).path == tmp_path / "results" / "qwen"
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("suites", "ending"),
    [(["essays"], "-essays"), (["a", "b"], "-a+b"), (["a", "b", "c", "d"], "-a+b+c+…"), ([], "-run")],
)
def test_an_unnamed_folder_says_when_and_what(tmp_path: Path, suites: list[str], ending: str) -> None:
    folder = RunFolder.create(None, tmp_path, suites)
    assert folder.path.parent == tmp_path / "reports"
    assert folder.path.name[15:] == ending
    assert (tmp_path / "reports" / "latest").resolve() == folder.path


def test_latest_is_the_newest_and_folders_of_one_second_are_two(tmp_path: Path) -> None:
    folders = [RunFolder.create(None, tmp_path, ["essays"]) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    assert (tmp_path / "reports" / "latest").resolve() == folders[-1].path


def test_a_record_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.write_record(record(0))
    assert folder.write_record(record(50))
    assert [found.document_depth for found in read_records(folder.results)] == [0, 50]


def test_a_cells_second_record_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    written = [folder.write_record(one) for one in (record(), record(text="again"), record(suite="other"))]
    assert written == [True, False, True]
    assert len(read_records(folder.results)) == 2


def test_earlier_results_are_kept_under_another_name(tmp_path: Path) -> None:
    for depth in (1, 2, 3):
        folder = RunFolder(tmp_path)
        folder.write_record(record(depth))
        folder.close()
    assert [found.document_depth for found in read_records(tmp_path / "results.jsonl")] == [3]
    earlier = [read_records(file)[0].document_depth for file in tmp_path.glob("results-*.jsonl")]
    assert sorted(earlier) == [1, 2]


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(ConfigError, match="another run is writing to this folder; give output_dir another"):
        RunFolder(tmp_path)
    folder.close()
    RunFolder(tmp_path).close()


def test_a_killed_run_locks_nobody_out(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from retrieval_heads.runs import RunFolder; "
        "RunFolder(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == -9
    RunFolder(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/run: the run's folder cannot be written \(Not a directory\)"):
        RunFolder(tmp_path / "file" / "run")


def test_settings_and_facts_are_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config({"model": {"model": "Модель"}, "verdict": "none"})
    folder.write_run({"status": "running"})
    folder.write_run({"status": "finished"})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text("utf-8")) == {
        "model": {"model": "Модель"},
        "verdict": "none",
    }
    assert json.loads((tmp_path / "run.json").read_text("utf-8")) == {"status": "finished"}
    assert folder.log.read_bytes() == b""
