"""Engines that do not start or die, suites that are broken: one sentence each, and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from project import Project, is_gone

from retrieval_heads.results import Record, read_records

OUT_OF_MEMORY = "CUDA out of memory: tried to allocate 20 GiB"


def no_traceback(result: pytest.RunResult) -> None:
    """Nothing that only a developer of ours could read."""
    for stream in (result.stdout, result.stderr):
        stream.no_fnmatch_line("*Traceback*")
        stream.no_fnmatch_line("*INTERNALERROR*")
        stream.no_fnmatch_line("*/_pytest/*")


class TestStart:
    def test_an_engine_that_refuses_is_told_once(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.behave(fail=OUT_OF_MEMORY)
        result = project.run(*workers)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        said = [line for line in result.outlines if OUT_OF_MEMORY in line]
        assert len(said) == 1
        assert "! _pytest.outcomes.Exit: rh: the engine did not start: " in said[0]
        no_traceback(result)
        assert project.facts()["status"] == "the engine did not start"
        assert len(project.starts) == 1

    def test_an_engine_that_crashes_shows_its_last_words(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.behave(crash=True)
        result = project.run(*workers)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            [
                "*last lines of *engine.log:",
                "    the last words of the engine",
                "!* _pytest.outcomes.Exit: rh: the engine did not start: ended by signal SIGKILL !*",
            ]
        )
        no_traceback(result)

    def test_no_cell_fails_for_it(self, project: Project) -> None:
        project.suite()
        project.behave(fail=OUT_OF_MEMORY)
        result = project.run()
        result.assert_outcomes()
        result.stdout.fnmatch_lines(["6 of 6 selected cells have no result"])

    def test_a_server_that_cannot_be_imported_is_told(self, project: Project) -> None:
        project.suite()
        project.pytester.makeconftest(
            "from retrieval_heads.engine.client import EngineProcess\nEngineProcess.server = 'no_such_engine'"
        )
        result = project.run()
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["*No module named no_such_engine", "*rh: the engine did not start: ended with *"])


class TestMidRun:
    def records(self, project: Project) -> list[Record]:
        records = project.records()
        assert all(record.status == "pass" for record in records)
        return records

    def test_a_killed_engine_is_one_error_and_finished_cells_stay(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.behave(die_after=3)
        began = time.monotonic()
        result = project.run(*workers)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        outcomes = result.parseoutcomes()
        assert outcomes["passed"] == 3
        assert outcomes["failed"] == 1
        assert len(self.records(project)) == 3
        result.stdout.fnmatch_lines(["!* rh: the engine ended by signal SIGKILL !*"])
        no_traceback(result)
        assert project.facts()["status"] == "cut short"
        assert time.monotonic() - began < 45, "nobody waits for an engine that is gone"

    def test_an_engine_whose_step_fails_is_one_error_too(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.behave(fail_after=3)
        result = project.run(*workers)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert result.parseoutcomes()["failed"] == 1
        assert len(self.records(project)) == 3
        result.stdout.fnmatch_lines(["!* rh: the engine failed: RuntimeError: the stand-in's step fails !*"])

    def test_a_crashed_worker_loses_its_cell_alone(self, project: Project) -> None:
        project.suite()
        project.pytester.makepyfile(
            test_crash="""
            import os

            def test_crash(rh_engine):
                rh_engine.ask("anything")
                os._exit(1)
            """
        )
        result = project.run("test_crash.py", "-n", "2")
        assert result.parseoutcomes()["passed"] == 6
        assert result.parseoutcomes()["failed"] == 1
        assert len(project.starts) == 1
        assert len(project.records()) == 6


class TestBrokenSuites:
    @pytest.fixture
    def two(self, project: Project) -> Project:
        project.suite("good")
        project.suite("bad", sweep={"context_lengths": [128], "document_dephts": [0]})
        return project

    def test_the_broken_one_is_named_and_nothing_is_started(self, two: Project, workers: list[str]) -> None:
        result = two.run(*workers)
        assert result.ret == pytest.ExitCode.INTERRUPTED
        told = [line for line in result.outlines if "document_dephts" in line]
        assert len(told) == 1
        assert told[0].endswith(
            "suites/niah/bad.yaml:9: sweep.document_dephts: unknown key; did you mean 'document_depths'?"
        )
        no_traceback(result)
        assert two.starts == []
        assert not (two.path / "reports").exists()

    def test_the_good_one_runs_where_a_user_says_so(self, two: Project, workers: list[str]) -> None:
        result = two.run("--continue-on-collection-errors", *workers)
        result.assert_outcomes(passed=6, errors=1)
        assert result.ret == pytest.ExitCode.TESTS_FAILED

    @pytest.mark.parametrize(
        ("keys", "sentence"),
        [
            ({"kind": "nia"}, "bad.yaml:1: kind: input should be *, found 'nia'"),
            ({"haystack": "nowhere"}, "bad.yaml:2: haystack: no folder 'nowhere'; expected a folder of .txt files"),
            ({"sweep": {"context_lengths": []}}, "bad.yaml:7: sweep.context_lengths: the grid is empty; *"),
            ({"sweep": {"document_depths": [0, 101]}}, "bad.yaml:9: sweep.document_depths.1: *, found 101"),
        ],
    )
    def test_each_mistake_is_a_line(self, project: Project, keys: dict[str, Any], sentence: str) -> None:
        project.suite("bad", **keys)
        result = project.run()
        assert result.ret == pytest.ExitCode.INTERRUPTED
        result.stdout.fnmatch_lines([f"*/suites/niah/{sentence}"])
        no_traceback(result)

    def test_a_broken_file_beside_a_users_own_tests_stops_them_too(self, two: Project) -> None:
        two.pytester.makepyfile("def test_mine():\n    pass")
        assert two.run(suites=False).ret == pytest.ExitCode.INTERRUPTED

    def test_a_users_broken_test_file_is_not_called_a_suite(self, project: Project) -> None:
        project.suite()
        project.pytester.makepyfile("import no_such_module")
        result = project.run(".", "-n", "2", suites=False)
        assert result.ret == pytest.ExitCode.INTERRUPTED
        result.stdout.fnmatch_lines(["*ModuleNotFoundError: No module named 'no_such_module'*"])
        assert project.starts == []


def until(found: Callable[[], bool], patience: float = 30) -> None:
    """Wait for something to be so."""
    give_up = time.monotonic() + patience
    while not found():
        assert time.monotonic() < give_up, "it never came"
        time.sleep(0.05)


def finished(project: Project) -> int:
    """Cells with a record on disk."""
    file = project.latest / "results.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


class TestInterrupts:
    @pytest.fixture
    def slow(self, project: Project) -> Project:
        project.suite(sweep={"context_lengths": [128], "document_depths": {"min": 0, "max": 100, "intervals": 100}})
        project.behave(delay=0.5)
        return project

    def end(self, process: subprocess.Popen[bytes], sign: signal.Signals, *, group: bool = True) -> float:
        """Send a signal as a terminal does, to pytest and its workers; how long the end took, in seconds."""
        began = time.monotonic()
        (os.killpg if group else os.kill)(process.pid, sign)
        process.wait(timeout=30)
        return time.monotonic() - began

    def test_ctrl_c_ends_in_order(self, slow: Project, workers: list[str]) -> None:
        process = slow.popen(*workers)
        until(lambda: finished(slow) >= 2)
        assert self.end(process, signal.SIGINT) < 15  # seconds; the cells would take 50
        assert process.returncode == pytest.ExitCode.INTERRUPTED
        assert is_gone(slow.starts[0])
        assert len(read_records(slow.latest / "results.jsonl")) >= 2
        assert slow.facts()["status"] == "cut short"

    def test_ctrl_c_while_the_engine_starts(self, slow: Project, workers: list[str]) -> None:
        slow.behave(start_seconds=60)
        process = slow.popen(*workers)
        until(lambda: bool(slow.starts))
        assert self.end(process, signal.SIGINT) < 15  # seconds; the start takes 60
        assert process.returncode == pytest.ExitCode.INTERRUPTED
        assert is_gone(slow.starts[0])

    def test_kill_9_leaves_no_engine(self, slow: Project, workers: list[str]) -> None:
        process = slow.popen(*workers)
        until(lambda: finished(slow) >= 1)
        self.end(process, signal.SIGKILL, group=False)
        assert is_gone(slow.starts[0])
        assert len(read_records(slow.latest / "results.jsonl", torn_last_line=True)) >= 1
        assert slow.facts()["status"] == "running", "nobody could say more"
