"""Prompts that other processes build ahead: those that would be built here, few at once; no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieval_heads.engine import ahead as ahead_module
from retrieval_heads.engine.ahead import Ahead
from retrieval_heads.engine.jobs import CellQuestion
from retrieval_heads.errors import ConfigError
from retrieval_heads.prompts.requests import CellSkipped, Request
from retrieval_heads.prompts.settings import PROMPTS
from retrieval_heads.runs.place import Place
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.ruler.task import RulerOptions
from retrieval_heads.tasks.task import Ablation, Cell, Question
from toy_tokenizer import WordTokenizer

pytest.importorskip("wonderwords", reason="the extra ruler is not installed")

BUILDER = CellBuilder(WordTokenizer(), {}, {"model": "a", "engine": "b"}, 20_000)
TASKS = ["niah_single_2", "niah_multikey_2", "vt", "cwe"]


def asked(name: str, seed: int = 0, length: int = 8192, kind: str = "niah", **options: Any) -> CellQuestion:
    said = RulerOptions.model_validate({"tasks": TASKS, **options}).model_dump(mode="json")
    question = Question("s", kind, task="ruler", options=said, source="pydoc", prompt=PROMPTS["book"])
    if kind == "ablate":
        question = replace(question, ablate=Ablation("zero", heads=(((0, 0),),)))
    arm = "top_1" if kind == "ablate" else ""
    return CellQuestion(question, Cell("a", "a", Place((("length", length), ("task", name)), seed, arm)))


def built(cell: CellQuestion) -> Request:
    return BUILDER.request(cell.question, cell.cell)


@pytest.fixture
def building() -> Iterator[Ahead]:
    made = Ahead(BUILDER, workers=1)
    yield made
    made.close()


def test_a_prompt_built_ahead_is_the_one_that_is_built_here(building: Ahead) -> None:
    cells = {f"{name} {seed}": asked(name, seed) for name in ("niah_multikey_2", "vt", "cwe") for seed in (0, 1)}
    for key, cell in cells.items():
        building.offer(key, cell)
    for key, cell in cells.items():
        assert building.is_ready(key, seconds=60)
        assert building.take(key) == built(cell)
        assert building.take(key) is None, "it is handed over once"


def test_what_is_short_shared_or_masked_is_built_here(building: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_made_pool", lambda: pytest.fail("no process is needed"))
    needle = CellQuestion(Question("s", "niah"), Cell("a", "a", Place((("length", 20_000),))))
    stored = replace(asked("vt"), cell=replace(asked("vt").cell, stored={}))
    for key, cell in enumerate(
        (asked("niah_single_2"), asked("vt", length=8191), asked("vt", kind="ablate"), needle, stored)
    ):
        building.offer(str(key), cell)
        assert building.is_ready(str(key))
        assert building.take(str(key)) is None


def test_what_is_wrong_with_a_prompt_is_said_when_it_is_taken(building: Ahead) -> None:
    building.offer("too long", asked("vt", length=30_000))
    building.offer("other words", asked("cwe", words="0" * 64))
    building.offer("bad", asked("vt", wording={"needle": "no wording of vt"}))
    with pytest.raises(CellSkipped, match="do not fit max_model_len 20000"):
        building.take("too long")
    with pytest.raises(Exception, match="the word lists of wonderwords are not those"):
        building.take("other words")
    assert building.take("bad") is None, "nothing was begun"
    with pytest.raises(ConfigError):
        built(asked("vt", wording={"needle": "no wording of vt"}))


def test_on_one_core_nothing_is_built_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert Ahead(BUILDER).reach == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert Ahead(BUILDER).reach == 2 * ahead_module.MOST_WORKERS


def test_a_worker_that_is_killed_is_told_and_prompts_are_built_here(
    building: Ahead, capfd: pytest.CaptureFixture[str]
) -> None:
    building.offer("first", asked("vt"))
    assert building.take("first") is not None
    assert building._pool is not None
    for process in list(building._pool._processes.values()):
        process.kill()
    building.offer("second", asked("vt", 1))
    assert building.is_ready("second", seconds=60)
    assert building.take("second") is None
    assert building.reach == 0
    assert "no prompt is built ahead any more: BrokenProcessPool" in capfd.readouterr().err


ENGINE = """
import sys, time
import test_ahead
from retrieval_heads.engine.ahead import Ahead
if __name__ == "__main__":
    ahead = Ahead(test_ahead.BUILDER, workers=1)
    ahead.offer("a", test_ahead.asked("vt"))
    assert ahead.take("a") is not None
    print(*ahead._pool._processes, flush=True)
    time.sleep(60)
"""


def test_a_worker_ends_with_the_engine_however_that_ends(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(ENGINE)
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "engine.py")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    ) as engine:
        assert engine.stdout is not None
        worker = int(engine.stdout.readline())
        engine.send_signal(signal.SIGKILL)
        engine.wait()
        until = time.monotonic() + 30
        while _is_alive(worker) and time.monotonic() < until:
            time.sleep(0.05)
        assert not _is_alive(worker)


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
