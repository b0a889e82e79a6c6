"""A run's folder: one writer, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from retrieval_heads.errors import ConfigError
from retrieval_heads.runs.folder import RunFolder, is_run_folder
from retrieval_heads.runs.record import Record, read_records


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
    folder.write_record(record())
    assert (tmp_path / "reports" / "latest").resolve() == folder.path


def test_folders_of_one_second_are_several(tmp_path: Path) -> None:
    folders = [RunFolder.create(None, tmp_path, ["essays"]) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3


def test_runs_that_start_together_have_a_folder_each(tmp_path: Path) -> None:
    """Processes, as their locks are those of processes; each round within the same second, or nearly."""
    script = (
        "import sys, time; from pathlib import Path; from retrieval_heads.runs.folder import RunFolder\n"
        "time.sleep(max(0.0, float(sys.argv[2]) - time.time()))\n"
        "made = [RunFolder.create(None, Path(sys.argv[1]), ['essays']) for _ in range(20)]\n"
        "print(*(folder.path for folder in made), sep='\\n')"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(time.time() + 3)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    printed = [process.communicate() for process in started]
    assert [error for _, error in printed if error] == []
    folders = [line for out, _ in printed for line in out.splitlines()]
    assert len(set(folders)) == len(folders) == 6 * 20


class TestLatest:
    @pytest.fixture
    def earlier(self, tmp_path: Path) -> Path:
        folder = RunFolder.create(None, tmp_path, ["essays"])
        folder.write_record(record())
        folder.close()
        return folder.path

    def test_points_to_the_newest_run_with_a_record(self, tmp_path: Path, earlier: Path) -> None:
        latest = tmp_path / "reports" / "latest"
        folder = RunFolder.create(None, tmp_path, ["essays"])
        assert latest.resolve() == earlier
        folder.write_record(record())
        assert latest.resolve() == folder.path
        folder.close()
        assert latest.resolve() == folder.path

    def test_stays_where_a_run_ends_without_a_record(self, tmp_path: Path, earlier: Path) -> None:
        RunFolder.create(None, tmp_path, ["essays"]).close()
        assert (tmp_path / "reports" / "latest").resolve() == earlier

    def test_of_a_first_run_comes_with_its_first_record(self, tmp_path: Path) -> None:
        latest = tmp_path / "reports" / "latest"
        folder = RunFolder.create(None, tmp_path, ["essays"])
        assert not latest.is_symlink()
        folder.write_record(record())
        assert latest.resolve() == folder.path
        folder.close()

    def test_is_not_made_by_a_run_without_a_record(self, tmp_path: Path) -> None:
        RunFolder.create(None, tmp_path, ["essays"]).close()
        assert not (tmp_path / "reports" / "latest").is_symlink()

    def test_a_folder_in_its_place_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "reports" / "latest").mkdir(parents=True)
        with pytest.raises(ConfigError, match="reports/latest: is a file or folder, where a link to the newest run"):
            RunFolder.create(None, tmp_path, ["essays"])


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
        "import os, pathlib, sys; from retrieval_heads.runs.folder import RunFolder; "
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


class TestWhoseFolder:
    """A run writes into a folder of its own, and never in place of somebody's files."""

    def test_a_folder_with_a_users_files_is_refused_and_left_as_it_is(self, tmp_path: Path) -> None:
        for name in ("config.yaml", "report.html", "heatmap.png", "notes.md"):
            (tmp_path / name).write_text(f"my {name}")
        with pytest.raises(ConfigError, match=r"holds files that no run wrote \(config.yaml, heatmap.png, notes.md, …"):
            RunFolder(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "config.yaml", "heatmap.png", "notes.md", "report.html",
        ]  # fmt: skip
        assert all(path.read_text() == f"my {path.name}" for path in tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["config.yaml", "run.json", "results.jsonl", "heads.json", "suites/a.yaml"])
    def test_one_file_is_enough(self, tmp_path: Path, name: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
        with pytest.raises(ConfigError, match="holds files that no run wrote"):
            RunFolder(tmp_path)
        with pytest.raises(ConfigError, match="holds files that no run wrote"):
            RunFolder(tmp_path, resumed=True)

    @pytest.mark.parametrize("names", [[], [".gitignore"], [".gitkeep"], [".lock"], ["run-1/", "empty/"]])
    def test_an_empty_folder_is_taken(self, tmp_path: Path, names: list[str]) -> None:
        for name in names:
            if name == "run-1/":
                RunFolder(tmp_path / name).close()
            elif name.endswith("/"):
                (tmp_path / name).mkdir()
            else:
                (tmp_path / name).write_text("")
        RunFolder(tmp_path).close()

    def test_a_users_notes_in_a_runs_folder_do_not_bar_the_next(self, tmp_path: Path) -> None:
        RunFolder(tmp_path).close()
        (tmp_path / "notes.md").write_text("seen")
        RunFolder(tmp_path).close()
        assert (tmp_path / "notes.md").read_text() == "seen"

    @pytest.mark.parametrize(
        "files",
        [
            {".lock": "", "engine.log": "", "results.jsonl": "", "config.yaml": "kind: niah"},
            {"run.json": '{"retrieval_heads": "0.1.0", "status": "finished"}', "config.yaml": "", "mine.txt": ""},
        ],
        ids=["killed early", "without its lock"],
    )
    def test_a_run_of_0_1_0_is_known(self, tmp_path: Path, files: dict[str, str]) -> None:
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        assert is_run_folder(tmp_path)
        RunFolder(tmp_path).close()

    @pytest.mark.parametrize(
        "files",
        [
            {".lock": "", "config.yaml": "kind: niah"},
            {"run.json": "[" * 100_000},
            {"run.json": '{"status": "finished"}'},
            {"results.jsonl": ""},
            {},
        ],
    )
    def test_a_lock_or_a_name_alone_makes_no_run(self, tmp_path: Path, files: dict[str, str]) -> None:
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        assert not is_run_folder(tmp_path)

    def test_the_predecessors_output_dir_is_taken_with_its_files(self, tmp_path: Path) -> None:
        old = {"context_length": 512, "document_depth": 50, "needle": "n", "context": "c", "rougeL": 0.9}
        (tmp_path / "results.jsonl").write_text(json.dumps(old) + "\n")
        (tmp_path / "detected-agg.json").write_text('{"model.layers.0": {"0": 0.1}}')
        (tmp_path / "heatmap.png").write_bytes(b"\x89PNG")
        RunFolder(tmp_path).close()
        (kept,) = tmp_path.glob("results-*.jsonl")
        assert json.loads(kept.read_text()) == old

    def test_a_users_config_beside_the_predecessors_files_is_not_replaced(self, tmp_path: Path) -> None:
        old = {"context_length": 512, "document_depth": 50, "needle": "n", "context": "c", "rougeL": 0.9}
        (tmp_path / "results.jsonl").write_text(json.dumps(old) + "\n")
        (tmp_path / "config.yaml").write_text("mine")
        with pytest.raises(ConfigError, match=r"\(config.yaml\)"):
            RunFolder(tmp_path)

    def test_a_pipe_named_as_a_file_of_a_run_hangs_nobody(self, tmp_path: Path) -> None:
        for name in (".lock", "run.json"):
            os.mkfifo(tmp_path / name)
        assert not is_run_folder(tmp_path)
