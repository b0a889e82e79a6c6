"""Engines that do not start or die, suites that are broken: one sentence each, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from typing import Any
from xml.etree import ElementTree

import pytest
from project import ON_WORKERS_IF_LONG, Project, finished, is_gone, until

from retrieval_heads.runs.record import Record, read_records

OUT_OF_MEMORY = "CUDA out of memory: tried to allocate 20 GiB"
OWN = """
import pytest

def test_passes():
    pass

def test_fails():
    assert False, "as it would without us"

def test_asks(rh_engine):
    rh_engine.ask("anything")

@pytest.fixture
def answer(rh_engine):
    return rh_engine.ask("anything")

def test_asked_by_a_fixture(answer):
    pass

def test_config(rh_config):
    assert rh_config.model.model == "toy"
"""


def no_traceback(result: pytest.RunResult) -> None:
    """Nothing that only a developer of ours could read."""
    for stream in (result.stdout, result.stderr):
        stream.no_fnmatch_line("*Traceback*")
        stream.no_fnmatch_line("*INTERNALERROR*")
        stream.no_fnmatch_line("*/_pytest/*")


def junit_errors(project: Project) -> list[str]:
    """Of each test in `junit.xml` that is an error, what it says."""
    found = ElementTree.parse(project.path / "junit.xml").findall(".//testcase/error")
    return [f"{error.get('message')}\n{error.text}" for error in found]


class TestStart:
    def test_every_cell_is_an_error_and_the_reason_is_one_line(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.behave(fail=OUT_OF_MEMORY)
        result = project.run(*workers, "--junit-xml", "junit.xml")
        result.assert_outcomes(errors=6)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines([f"rh: the engine did not start: {OUT_OF_MEMORY}"])
        no_traceback(result)
        assert len(project.starts) == 1
        errors = junit_errors(project)
        assert len(errors) == 6
        assert all(f"the engine did not start: {OUT_OF_MEMORY}" in error for error in errors)

    def test_a_system_that_makes_no_process_is_told(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: Any, **options: Any) -> None:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        project.suite()
        monkeypatch.setattr("retrieval_heads.engine.client.subprocess.Popen", refuse)
        result = project.run()
        result.assert_outcomes(errors=6)
        reason = "rh: the engine did not start: no process could be made (Resource temporarily unavailable)"
        result.stdout.fnmatch_lines([reason])
        no_traceback(result)

    def test_its_last_words_are_said_once(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.behave(crash=True)
        result = project.run(*workers, "--junit-xml", "junit.xml")
        result.assert_outcomes(errors=6)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            [
                "*ERROR at setup of *",
                "the engine did not start: ended by signal SIGKILL",
                "    last lines of *engine.log:",
                "    the last words of the engine",
                "*ERROR at setup of *",
                "the engine did not start: ended by signal SIGKILL",
                "*ERROR at setup of *",
            ],
            consecutive=not workers,
        )
        assert sum("the last words of the engine" in line for line in result.outlines) == 1
        assert sum("the last words of the engine" in error for error in junit_errors(project)) == 1
        no_traceback(result)

    def test_the_run_says_so_and_holds_no_record(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.behave(fail=OUT_OF_MEMORY)
        result = project.run(*workers)
        result.stdout.fnmatch_lines(["6 of 6 selected cells have no result", "engine *reports/*-tale/engine.log"])
        (folder,) = (project.path / "reports").iterdir()
        facts = json.loads((folder / "run.json").read_text())
        assert facts["status"] == "the engine did not start"
        assert facts["engine_failure"] == f"the engine did not start: {OUT_OF_MEMORY}"
        assert facts["exit_status"] == 1
        assert (folder / "results.jsonl").read_text() == ""

    def test_a_backend_that_cannot_be_imported_is_told(self, project: Project) -> None:
        project.suite()
        project.pytester.makeconftest(
            "from retrieval_heads.engine.backends import backend\nfrom retrieval_heads.registry import Registry\n"
            "backend.BACKENDS = Registry(backend.GROUP, 'backend', {'vllm': 'no_such_engine:Engine'})"
        )
        result = project.run()
        assert result.ret == pytest.ExitCode.INTERRUPTED
        result.stdout.fnmatch_lines(
            ["*engine.kind: the backend 'vllm' (no_such_engine:Engine) cannot be imported: ModuleNotFoundError: *"]
        )

    def test_tests_of_the_users_own_run_as_they_would(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.pytester.makepyfile(OWN)
        project.behave(crash=True)
        result = project.run(*workers, suites=False)
        result.assert_outcomes(passed=2, failed=1, errors=6 + 2)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert sum("the last words of the engine" in line for line in result.outlines) == 1

    @pytest.mark.parametrize(
        "mode",
        [
            "load",
            "each",
            *(pytest.param(mode, marks=pytest.mark.long) for mode in ("loadfile", "loadscope", "worksteal")),
        ],
    )
    def test_however_xdist_shares_out(self, project: Project, mode: str) -> None:
        project.suite()
        project.pytester.makepyfile(OWN)
        project.behave(crash=True)
        each = 2 if mode == "each" else 1
        dist = ["--dist", mode, *(["--tx", "2*popen"] if mode == "each" else ["-n", "2"])]
        result = project.run(*dist, suites=False)
        result.assert_outcomes(passed=2 * each, failed=each, errors=8 * each)
        assert len(project.starts) == 1
        no_traceback(result)

    @pytest.mark.parametrize(("option", "errors"), [("-x", 1), ("--maxfail=2", 2)])
    def test_maxfail_is_respected(self, project: Project, option: str, errors: int) -> None:
        project.suite()
        project.behave(fail=OUT_OF_MEMORY)
        result = project.run(option)
        result.assert_outcomes(errors=errors)
        assert result.ret == pytest.ExitCode.TESTS_FAILED

    def test_gates_over_cells_in_error_break(self, project: Project, workers: list[str]) -> None:
        project.suite(gates=["mean(pass_rate) >= 0.1", "max(pass_rate) <= 0.9"])
        project.behave(fail=OUT_OF_MEMORY)
        result = project.run(*workers)
        result.assert_outcomes(errors=6, failed=2)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert "no baseline was saved" in project.run("--rh-save-baseline", "main").stdout.str()
        assert not list(project.path.rglob("main.jsonl"))

    @ON_WORKERS_IF_LONG
    def test_answers_of_the_run_that_is_resumed_stay(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.run("-k", "depth_50")
        before = (project.latest / "results.jsonl").read_text()
        project.behave(fail=OUT_OF_MEMORY)
        project.run("--rh-resume", *workers).assert_outcomes(errors=6)
        assert (project.latest / "results.jsonl").read_text() == before
        project.behave(asked="asked")
        project.run("--rh-resume", *workers).assert_outcomes(passed=6)
        assert (project.path / "asked").read_text().split() == ["4"]

    @pytest.mark.parametrize("option", ["--collect-only", "--setup-plan", "--setup-only"])
    def test_who_runs_no_test_starts_no_engine(self, project: Project, option: str, workers: list[str]) -> None:
        project.suite()
        project.pytester.makepyfile("def test_mine():\n    pass")
        project.run(option, *workers, suites=False)
        assert project.starts == []
        assert not (project.path / "reports").exists()


class TestMidRun:
    def records(self, project: Project) -> list[Record]:
        records = project.records()
        assert all(record.status == "pass" for record in records)
        return records

    def test_of_a_killed_engine_finished_cells_stay_and_the_others_are_errors(
        self, project: Project, workers: list[str]
    ) -> None:
        project.suite()
        project.behave(die_after=3)
        result = project.run(*workers, "--junit-xml", "junit.xml")
        result.assert_outcomes(passed=3, errors=3)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert len(self.records(project)) == 3
        result.stdout.fnmatch_lines(["rh: the engine ended by signal SIGKILL"])
        no_traceback(result)
        assert project.facts()["status"] == "cut short"
        assert project.facts()["engine_failure"] == "the engine ended by signal SIGKILL"
        assert len(ElementTree.parse(project.path / "junit.xml").findall(".//testcase")) == 6
        assert len(junit_errors(project)) == 3
        result.stdout.fnmatch_lines(
            ["3 of 6 selected cells have no result", "to go on with the run: the same command with --rh-resume"]
        )

    def test_an_engine_whose_step_fails_is_told_the_same_way(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.behave(fail_after=3)
        result = project.run(*workers)
        result.assert_outcomes(passed=3, errors=3)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert len(self.records(project)) == 3
        result.stdout.fnmatch_lines(["rh: the engine failed: RuntimeError: the stand-in's step fails"])

    def test_killed_before_its_first_answer(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.pytester.makepyfile(OWN)
        project.behave(die_after=0)
        result = project.run(*workers, suites=False)
        result.assert_outcomes(passed=2, failed=1, errors=6 + 2)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert not project.latest.exists()

    def test_a_users_test_in_which_the_engine_dies_is_an_error(self, project: Project, workers: list[str]) -> None:
        project.pytester.makepyfile(
            """
            import os, signal

            def test_kill(rh_engine):
                os.kill(rh_engine.counters().process, signal.SIGKILL)
                rh_engine.ask("anything")

            def test_mine():
                pass
            """
        )
        result = project.run(*workers, suites=False)
        result.assert_outcomes(errors=1, passed=1)
        result.stdout.fnmatch_lines(["the engine ended by signal SIGKILL"])
        no_traceback(result)

    def test_a_worker_that_is_replaced_after_it_hears_of_it_too(self, project: Project) -> None:
        project.suite()
        project.pytester.makepyfile(
            test_a_crash="""
            import os, signal

            def test_crash(rh_engine):
                os.kill(rh_engine.counters().process, signal.SIGKILL)
                os._exit(1)
            """
        )
        project.behave(delay=1)
        result = project.run("test_a_crash.py", "suites", "-n", "1", suites=False)
        result.assert_outcomes(failed=1, errors=6)

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
            ({"haystack": "nowhere"}, "bad.yaml:2: haystack: no folder 'nowhere'; expected a folder of .txt files, *"),
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


class TestInterrupts:
    @pytest.fixture
    def slow(self, project: Project) -> Project:
        project.suite(sweep={"context_lengths": [128], "document_depths": {"min": 0, "max": 100, "intervals": 100}})
        project.behave(delay=0.5)
        return project

    def end(self, process: subprocess.Popen[bytes], sign: signal.Signals, *, group: bool = True) -> None:
        """Send a signal as a terminal does, to pytest and its workers; nobody waits for cells, or for a start."""
        (os.killpg if group else os.kill)(process.pid, sign)
        process.wait(timeout=300)

    def test_ctrl_c_ends_in_order(self, slow: Project, workers: list[str]) -> None:
        process = slow.popen(*workers)
        until(lambda: finished(slow) >= 2)
        self.end(process, signal.SIGINT)
        assert process.returncode == pytest.ExitCode.INTERRUPTED
        assert is_gone(slow.starts[0])
        assert 2 <= len(read_records(slow.latest / "results.jsonl")) < 101, "nobody waited for the last cell"
        assert slow.facts()["status"] == "cut short"
        printed = (slow.path / "printed").read_text()
        assert "to go on with the run: the same command with --rh-resume" in printed

    @ON_WORKERS_IF_LONG
    def test_ctrl_c_while_the_engine_starts(self, slow: Project, workers: list[str]) -> None:
        slow.behave(start_seconds=3600)
        process = slow.popen(*workers)
        until(lambda: bool(slow.starts))
        self.end(process, signal.SIGINT)
        assert process.returncode == pytest.ExitCode.INTERRUPTED
        assert is_gone(slow.starts[0])
        assert not slow.latest.is_symlink(), "it holds no record"

    def test_kill_9_leaves_no_engine(self, slow: Project, workers: list[str]) -> None:
        process = slow.popen(*workers)
        until(lambda: finished(slow) >= 1)
        self.end(process, signal.SIGKILL, group=False)
        assert is_gone(slow.starts[0])
        assert len(read_records(slow.latest / "results.jsonl", torn_last_line=True)) >= 1
        assert slow.facts()["status"] == "running", "nobody could say more"
