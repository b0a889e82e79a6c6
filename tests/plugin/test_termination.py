"""SIGTERM and SIGHUP, as `timeout`, CI services and closed terminals send them, end a session in order."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from project import Project, finished, is_gone, on_workers, until

from retrieval_heads.runs.record import read_records


@pytest.fixture
def slow(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Project:
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
    project.suite(sweep={"context_lengths": [128], "document_depths": {"min": 0, "max": 100, "intervals": 100}})
    project.behave(delay=0.5)
    return project


def assert_in_order(project: Project, number: signal.Signals) -> None:
    assert is_gone(project.starts[0])
    assert list(Path(os.environ["TMPDIR"]).glob("rh-*")) == []
    assert f"ended by {number.name}" in (project.path / "printed").read_text()


@pytest.mark.parametrize(("number", "workers"), on_workers([signal.SIGTERM, signal.SIGHUP]))
def test_it_ends_as_ctrl_c_does_and_by_the_signal(slow: Project, workers: list[str], number: signal.Signals) -> None:
    process = slow.popen(*workers)
    until(lambda: finished(slow) >= 2, patience=120)
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does
    assert process.wait(120) == -number
    assert_in_order(slow, number)
    assert 2 <= len(read_records(slow.latest / "results.jsonl")) < 101
    assert slow.facts()["status"] == "cut short"


def test_it_ends_a_start_too(slow: Project) -> None:
    slow.behave(start_seconds=3600)
    process = slow.popen()
    until(lambda: bool(slow.starts), patience=120)
    process.terminate()
    assert process.wait(120) == -signal.SIGTERM
    assert_in_order(slow, signal.SIGTERM)


def test_a_signal_that_is_ignored_stays_ignored(project: Project) -> None:
    project.suite()
    project.pytester.makepyfile(
        test_ignored="""
        import os, signal

        def test_ignored(rh_config):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        """
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        project.run("test_ignored.py").assert_outcomes(passed=7)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_the_session_the_signals_are_as_they_were(project: Project) -> None:
    project.suite()
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    project.run()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
