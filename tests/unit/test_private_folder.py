"""The temporary folder of an engine process: private, short, and swept by the next one after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from retrieval_heads.engine.private_folder import PrivateFolder
from retrieval_heads.engine.server import Server
from retrieval_heads.errors import EngineError

KILLED = """
import os, sys
from retrieval_heads.engine.private_folder import PrivateFolder
made = PrivateFolder()
print(made.path, flush=True)
(made.path / "plan.json").write_text("{}")
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return path


def test_nobody_else_can_enter_and_nothing_stays(temporary: Path) -> None:
    folder = PrivateFolder()
    assert folder.path.parent == temporary
    assert folder.path.name.startswith("rh-")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.path.iterdir()} == {0o600}
    folder.remove()
    assert list(temporary.iterdir()) == []


def test_that_of_a_killed_process_is_swept_and_that_of_a_living_one_is_not(temporary: Path) -> None:
    living = PrivateFolder()
    killed = Path(subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True).stdout.strip())
    assert killed.exists()
    assert killed.parent == temporary
    folder = PrivateFolder()
    assert not killed.exists()
    assert living.path.exists()
    assert folder.path.exists()


@pytest.mark.parametrize("made", ["folder", "file", "link", "pipe"])
def test_what_is_not_ours_is_left_alone(temporary: Path, tmp_path: Path, made: str) -> None:
    mine = temporary / "rh-somebody"
    if made == "file":
        mine.write_text("")
    elif made == "link":
        (tmp_path / "owner.lock").write_text("")
        mine.symlink_to(tmp_path)
    else:
        mine.mkdir()
        if made == "pipe":
            os.mkfifo(mine / "owner.lock")
    PrivateFolder()
    assert mine.exists()
    assert made != "link" or (tmp_path / "owner.lock").exists()


def test_a_long_temporary_folder_is_stood_in_for_by_a_short_one(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = temporary / ("x" * 140)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    folder = PrivateFolder()
    before = os.umask(0o022)
    try:
        replica = PrivateFolder(folder.path)
        Server("key").listen(str(replica.path / "engine.sock"))
        assert (replica.path / "engine.sock").stat().st_mode & 0o777 == 0o600
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
        folder.remove()


def test_without_a_temporary_folder_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(EngineError, match=r"No usable temporary directory found .*; set TMPDIR to a folder"):
        PrivateFolder()
