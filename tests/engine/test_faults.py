"""Faults of the real engine: statistics that are switched off, and a process in which nothing moves any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import MODEL, SMALL_CACHE, Outcome, write_yaml

pytestmark = pytest.mark.engine

TESTS = """\
import os
import signal

import pytest

from retrieval_heads.errors import EngineError


def test_an_answer(rh_engine):
    answer = rh_engine.ask("What is the capital of France? Answer in one word.", max_tokens=8)
    assert "Paris" in answer.text
    assert answer.seconds > 0


def test_silence(rh_engine):
    os.kill(rh_engine.counters().process, signal.SIGSTOP)
    with pytest.raises(EngineError, match=r"no step and no other sign of life for 20 s \\(engine.silence\\)"):
        rh_engine.ask("And of Italy?")
"""


def test_answers_without_statistics_and_an_engine_that_is_stopped(
    run_pytest: Callable[..., Outcome], tmp_path: Path
) -> None:
    model = {"model": MODEL, "max_model_len": 512, "enforce_eager": True, "disable_log_stats": True, **SMALL_CACHE}
    config = write_yaml(tmp_path / "config.yaml", {"model": model, "engine": {"silence": 20}})
    (tmp_path / "test_mine.py").write_text(TESTS, encoding="utf-8")
    outcome = run_pytest("test_mine.py", "--rh-config", str(config), "-p", "cacheprovider")
    assert "2 passed" in outcome.output
    assert outcome.left == []
    # A session that has no cell has no run's folder.
    log = (outcome.cwd / ".pytest_cache" / "d" / "rh" / "engine.log").read_text(encoding="utf-8")
    assert "rh: stacks of process" in log
    assert "engine/loop.py" in log
