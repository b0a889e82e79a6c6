"""An engine in which nothing moves any more: it is ended, its stacks are in the log, and the run fails with why."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from project import Project, on_workers

LIMIT = ["--rh-set", "engine.silence=3"]
REASON = "no step and no other sign of life for 3 s (engine.silence)"


def said(project: Project, result: pytest.RunResult) -> str:
    """What the user read."""
    assert result.ret == 1
    return result.stdout.str() + result.stderr.str()


def file_of_run(project: Project, name: str) -> str:
    """A file of the only run: `reports/latest` points at it only if an answer got out before the silence."""
    (path,) = (found for found in project.path.glob(f"reports/*/{name}") if not found.parent.is_symlink())
    return path.read_text()


@pytest.mark.parametrize(
    ("how", "where", "workers"), on_workers([("sleep", "in _stalled"), ("spin", "loop.py"), ("hold", "in _stalled")])
)
def test_steps_that_do_not_go_on_end_the_engine(project: Project, workers: list[str], how: str, where: str) -> None:
    project.suite()
    project.behave(stall_after=2, stall=how)
    result = project.run(*workers, *LIMIT)
    assert REASON in said(project, result)
    log = file_of_run(project, "engine.log")
    assert f"rh: stacks of process {project.starts[0]}" in log
    assert where in log, "where it hung"
    assert json.loads(file_of_run(project, "run.json"))["exit_status"] == 1


def test_a_stopped_engine_is_noticed(project: Project, workers: list[str]) -> None:
    project.suite()
    project.behave(stall_after=2, stall="stop")
    result = project.run(*workers, *LIMIT)
    assert f"{REASON}, a signal had stopped it" in said(project, result)
    assert "in _stalled" in file_of_run(project, "engine.log")


def test_an_engine_that_stops_with_nothing_to_do_is_noticed(project: Project) -> None:
    project.pytester.makepyfile(
        """
        import os, pathlib, signal, pytest
        from retrieval_heads.errors import EngineError

        def test_stopped(rh_engine):
            os.kill(rh_engine.counters().process, signal.SIGSTOP)
            with pytest.raises(EngineError, match="no step and no other sign of life"):
                rh_engine.ask("anything")
        """
    )
    result = project.run(*LIMIT, suites=False)
    result.assert_outcomes(passed=1)


def test_a_replica_that_is_silent_ends_the_run(project: Project) -> None:
    project.suite()
    project.behave(stall_after=1, stall="sleep", gpus=["0", "1"], bad_gpu="1")
    result = project.run(*LIMIT, "--rh-set", "engine.replicas=2")
    assert f"replica 2 of 2 was ended: {REASON}" in said(project, result)
    assert "in _stalled" in file_of_run(project, "engine-2.log")


def test_a_model_that_does_not_load_ends_the_run(project: Project) -> None:
    project.suite()
    project.behave(start_seconds=300)
    result = project.run("--rh-set", "engine.start_limit=8")
    told = said(project, result)
    assert "the engine did not start: was ended: its model was not loaded within 8 s (engine.start_limit)" in told
    assert "in _load" in file_of_run(project, "engine.log")


def test_a_load_may_take_longer_than_a_step_and_many_steps_longer_than_one(project: Project) -> None:
    project.suite()
    project.behave(start_seconds=5, delay=1)
    project.run("--rh-set", "engine.silence=4").assert_outcomes(passed=6)


def test_an_engine_that_nobody_asks_is_not_silent(project: Project) -> None:
    project.pytester.makepyfile(
        """
        import time

        def test_slow(rh_engine):
            time.sleep(6)
            assert rh_engine.ask("anything").text
        """
    )
    project.run(*LIMIT, suites=False).assert_outcomes(passed=1)


def test_a_run_that_was_itself_stopped_blames_no_engine(project: Project) -> None:
    project.suite()
    project.behave(delay=0.5)
    running = project.popen(*LIMIT)
    while not project.starts or not (project.latest / "results.jsonl").exists():
        time.sleep(0.05)
    for process in (running.pid, project.starts[0]):
        os.kill(process, signal.SIGSTOP)
    time.sleep(6)
    for process in (project.starts[0], running.pid):
        os.kill(process, signal.SIGCONT)
    assert running.wait(60) == 0
    assert len(project.records()) == 6


@pytest.mark.parametrize("value", ["0", "-1", "soon", "true"])
def test_a_limit_is_a_number_of_seconds(project: Project, value: str) -> None:
    project.suite()
    result = project.run("--rh-set", f"engine.silence={value}")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*engine.silence*expected a number of seconds above 0, or null for no limit*"])


def test_an_endless_limit_is_written_as_null(project: Project) -> None:
    project.suite()
    result = project.run("--rh-set", "engine.silence=.inf")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*engine.silence=.inf*.inf is not a finite number*"])


def test_without_a_limit_nothing_is_watched(project: Project) -> None:
    project.suite()
    project.run("--rh-set", "engine.silence=null", "--rh-set", "engine.start_limit=null").assert_outcomes(passed=6)
