"""A warm engine of the real model: started once, asked by one run and by two at once, and stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conftest import ENVIRONMENT, FOREIGN, MODEL, Outcome, alive_in, engine_forks, finished, started
from forks import ADDRESS, Popen
from retrieval_heads.engine.warm import Warm, warm_engines
from retrieval_heads.models import locate_model

if TYPE_CHECKING:
    from conftest import OwnProject

pytestmark = [pytest.mark.engine, pytest.mark.long]

PATIENCE = 300
LONG = "generation.max_tokens=700"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where warm engines are nobody else's, and gone at the end."""
    compiled, model = list(Path(tempfile.gettempdir()).glob("torchinductor_*")), Path(locate_model(MODEL))
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:  # the path of a socket must be short
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("RH_CACHE", str(tmp_path / "cache"))
        (tmp_path / "cache").mkdir()
        # What other engines have unpacked and compiled is not made again.
        (tmp_path / "cache" / model.name).symlink_to(model)
        for place in compiled:
            (Path(folder) / place.name).symlink_to(place)
        yield tmp_path
        for engine in warm_engines():
            assert engine.stop()


def variables() -> dict[str, str]:
    return {name: os.environ[name] for name in ("TMPDIR", "RH_CACHE")}


def command(folder: Path, *arguments: str) -> str:
    """What `retrieval-heads engine ...` prints."""
    typed = [sys.executable, "-c", "from retrieval_heads.cli import main; main()", "engine", *arguments]
    inherited = {key: value for key, value in ENVIRONMENT.items() if not key.startswith(FOREIGN)}
    environment = {**inherited, **variables(), ADDRESS: engine_forks().address}
    printed = folder / "printed.txt"
    with printed.open("wb") as file:
        process = Popen(typed, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
        status = process.wait(PATIENCE)
    said = printed.read_text(encoding="utf-8")
    assert status == 0, said
    return said


def until(found: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < give_up, "it never came"
        time.sleep(0.05)


def runs_of(warm: Warm) -> tuple[str, ...]:
    use = warm.use()
    assert use is not None
    return tuple(use.runs)


def answers(outcome: Outcome) -> dict[str, tuple[object, ...]]:
    """By cell, what was asked and said."""
    assert outcome.exit_status == 0, outcome.output
    return {
        name: (one.status, one.recipe, one.request, one.needle_span, one.token_ids, one.text, one.finish_reason)
        for name, one in outcome.records.items()
    }


def test_runs_alone_and_at_once_have_the_answers_of_an_engine_of_their_own(own_project: OwnProject, home: Path) -> None:
    folders = [home / name for name in ("alone", "long", "beside")]
    for folder in folders:
        folder.mkdir()
    arguments = [str(own_project.suite), "--rh-config", str(own_project.config), "-k", "len_300"]
    said = command(home, "start", "--config", str(own_project.config))
    assert "SmolLM2-135M-Instruct is ready in " in said
    (warm,) = warm_engines()

    alone = finished(arguments, folders[0], **variables())
    with started([*arguments, "--rh-set", LONG, "--rh-set", "output_dir=long"], folders[1], **variables()) as long:
        until(lambda: bool(runs_of(warm)))
        beside = finished(arguments, folders[2], **variables())
        lasting = runs_of(warm)
        long.process.kill()
        long.process.wait(PATIENCE)
        until(lambda: not runs_of(warm))
        assert alive_in(folders[1]) == []

    assert lasting == (f"process {long.process.pid} in {folders[1]}",), "two ran at once, and one was done first"
    own = {name: said for name, said in answers(own_project.outcome).items() if "len_300" in name}
    assert len(own) == 3
    assert answers(alone) == own
    assert answers(beside) == own
    for outcome in (alone, beside):
        assert f"asking {warm.name}" in outcome.output
        assert outcome.facts["warm_engine"]["process"] == warm.process
        assert outcome.left == []
    assert Path(warm.log).read_text(encoding="utf-8").count("Initializing a V1 LLM engine") == 1

    assert f"{warm.name} is stopped" in command(home, "stop")
    assert warm_engines() == []
    until(lambda: alive_in(home) == [])
