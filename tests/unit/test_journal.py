"""The results file of one run: what is said to be written is there, whatever happens to the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from test_runs import record

from retrieval_heads.errors import FileError
from retrieval_heads.runs.folder import RunFolder
from retrieval_heads.runs.journal import Journal
from retrieval_heads.runs.record import dump_record, read_records


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "results.jsonl", {})
    for depth in (0, 50):
        made.append(record(depth))
    return made


def depths(path: Path) -> list[float]:
    return [one.document_depth for one in read_records(path)]


def test_an_undisturbed_file_is_left_as_it_is(journal: Journal) -> None:
    before = journal.path.stat()
    assert journal.settle() is None
    assert (journal.path.stat().st_ino, journal.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_removed_file_is_written_again(journal: Journal) -> None:
    journal.path.unlink()
    journal.append(record(100))
    assert journal.settle() == f"{journal.path}: was removed during the run; every record was written again"
    assert depths(journal.path) == [0, 50, 100]
    journal.append(record(25))
    assert journal.settle() is None, "later records go to the new file"
    assert depths(journal.path) == [0, 50, 100, 25]


@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.9])
def test_a_file_cut_short_is_whole_again(journal: Journal, keep: float) -> None:
    whole = journal.path.read_bytes()
    os.truncate(journal.path, int(keep if keep == 1 else keep * len(whole)))
    told = journal.settle()
    assert told is not None
    assert "was cut short during the run" in told
    assert journal.path.read_bytes() == whole


def test_cut_short_and_appended_to_no_record_is_lost(journal: Journal) -> None:
    os.truncate(journal.path, 0)
    journal.append(record(100))
    told = journal.settle()
    assert told is not None
    assert "was cut short" in told
    assert depths(journal.path) == [0, 50, 100]


def test_somebody_elses_file_is_kept_beside_it(journal: Journal) -> None:
    other = dump_record(record(75)) + "\n"
    journal.path.unlink()
    journal.path.write_text(other)
    told = journal.settle()
    assert told is not None
    assert "was changed by somebody else" in told
    assert depths(journal.path) == [0, 50]
    (kept,) = journal.path.parent.glob("results-*.jsonl")
    assert kept.read_text() == other


def test_a_second_writers_lines_are_no_records_of_this_run(journal: Journal) -> None:
    with journal.path.open("a") as file:
        file.write(dump_record(record(75)) + "\n")
    journal.append(record(100))
    assert "somebody else" in (journal.settle() or "")
    assert depths(journal.path) == [0, 50, 100]


def test_a_line_in_place_changed_is_found(journal: Journal) -> None:
    content = journal.path.read_bytes()
    with journal.path.open("r+b") as file:
        file.write(content.replace(b'"seed": 0', b'"seed": 7', 1))
    assert "somebody else" in (journal.settle() or "")
    assert [one.seed for one in read_records(journal.path)] == [0, 0]


def test_a_folder_in_its_place_is_moved_aside(journal: Journal) -> None:
    journal.path.unlink()
    journal.path.mkdir()
    journal.settle()
    assert depths(journal.path) == [0, 50]


class FullDisk:
    """In place of `os.write`: a disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._write = os.write

    def __call__(self, file: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = self._write(file, bytes(data[: self.room]))
        self.room -= done
        return done


def test_on_a_full_disk_no_line_is_torn_and_what_waits_is_written_once_there_is_room(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(100)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", disk)
        assert journal.append(record(75))
        assert journal.missing == 1
        assert str(journal.failure) == f"{journal.path}: cannot be written (No space left on device)"
        assert depths(journal.path) == [0, 50]
    journal.append(record(100))
    assert journal.failure is None
    assert depths(journal.path) == [0, 50, 75, 100]
    assert journal.settle() is None


def test_on_a_disk_that_stays_full_it_says_so(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise FileError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(journal.path))

    monkeypatch.setattr(os, "write", FullDisk(0))
    monkeypatch.setattr("retrieval_heads.runs.journal.write_whole", full)
    journal.append(record(75))
    with pytest.raises(FileError, match="No space left"):
        journal.settle()
    assert depths(journal.path) == [0, 50]


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> RunFolder:
        made = RunFolder(tmp_path / "run")
        made.write_config({"kind": "niah"})
        made.write_record(record(0))
        return made

    def test_a_renamed_folder_is_made_again(self, folder: RunFolder, tmp_path: Path) -> None:
        folder.path.rename(tmp_path / "moved")
        folder.write_record(record(50))
        (told,) = folder.settle()
        assert told == f"{tmp_path / 'run'}: was moved or removed during the run; its files were written again"
        assert depths(folder.results) == [0, 50]
        assert (folder.path / "config.yaml").read_text() == "kind: niah\n"
        assert depths(tmp_path / "moved" / "results.jsonl") == [0, 50]

    def test_in_place_of_another_runs_folder_it_takes_one_beside(self, folder: RunFolder, tmp_path: Path) -> None:
        folder.path.rename(tmp_path / "moved")
        other = RunFolder(tmp_path / "run")
        other.write_record(record(75))
        (told,) = folder.settle()
        assert told.endswith(f"its files were written to {tmp_path / 'run-2'}")
        assert depths(folder.results) == [0]
        assert depths(other.results) == [75]
        assert other.settle() == []

    def test_a_removed_lock_is_taken_again(self, folder: RunFolder) -> None:
        (folder.path / ".lock").unlink()
        assert folder.settle() == []
        assert (folder.path / ".lock").exists()

    def test_a_removed_config_is_written_again(self, folder: RunFolder) -> None:
        (folder.path / "config.yaml").unlink()
        assert folder.settle() == [f"{folder.path / 'config.yaml'}: was removed during the run; it was written again"]
        assert folder.settle() == []
