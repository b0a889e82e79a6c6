"""One engine and one set of files, however pytest-xdist shares out the cells."""

from __future__ import annotations

import tempfile

import pytest
from project import Project

MODES = [
    ["-n", "0"],
    ["-p", "no:xdist"],
    ["-n", "2", "--dist", "load"],
    ["-n", "2", "--dist", "loadfile"],
    *(
        pytest.param(["-n", "2", "--dist", mode], marks=pytest.mark.long)
        for mode in ("worksteal", "loadscope", "loadgroup")
    ),
]


def told(project: Project) -> dict[str, tuple[object, ...]]:
    """What every way of sharing out must give the same: cells, requests, answers, scores."""
    return {one.cell: (one.request, one.text, one.scores, one.status, one.recipe) for one in project.records()}


@pytest.fixture
def two_suites(project: Project) -> Project:
    """Twelve cells of two suites, of which half are answered wrongly."""
    project.suite("tale", gates=["mean(pass_rate) >= 0.4"])
    project.suite("other", gates=["mean(pass_rate) >= 0.4"])
    project.behave(wrong_lengths=[256], asked="asked")
    return project


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_every_way_gives_the_same(two_suites: Project, mode: list[str]) -> None:
    two_suites.run().assert_outcomes(passed=6 + 2, xfailed=6)
    plain = told(two_suites)
    result = two_suites.run(*mode)
    result.assert_outcomes(passed=6 + 2, xfailed=6)
    assert told(two_suites) == plain
    assert len(two_suites.starts) == 2
    assert (two_suites.path / "asked").read_text().split() == ["12", "12"]
    assert len((two_suites.latest / "results.jsonl").read_text().splitlines()) == 12


def test_all_cells_are_in_flight_at_once(project: Project) -> None:
    """The engine answers none before it has all six: whoever waits for a cell before asking the next gets nothing."""
    project.suite()
    project.behave(answers_from=6, asked="asked")
    project.run("-n", "2").assert_outcomes(passed=6)
    assert (project.path / "asked").read_text().split() == ["6"]


def test_a_killed_worker_is_replaced_and_nothing_is_asked_twice(project: Project) -> None:
    project.suite()
    project.behave(asked="asked")
    project.pytester.makepyfile(
        test_crash="""
        import os

        def test_crash(rh_engine):
            os._exit(1)
        """
    )
    result = project.run("test_crash.py", "-n", "2")
    assert result.parseoutcomes() == {"passed": 6, "failed": 1}
    assert (project.path / "asked").read_text().split() == ["6"]
    assert len(project.records()) == 6


def test_stopping_at_the_first_failure_ends_the_engine(project: Project) -> None:
    project.suite()
    project.behave(wrong_lengths=[128], delay=0.3)
    result = project.run("-x", "-n", "2")
    assert result.ret == pytest.ExitCode.INTERRUPTED  # as xdist does it
    assert 1 <= len(project.records()) < 6
    assert project.facts()["status"] == "cut short"


def test_a_start_that_fails_is_one_line(project: Project) -> None:
    project.suite()
    project.behave(fail="no such model")
    result = project.run("-n", "2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(errors=6)
    assert sum(line == "rh: the engine did not start: no such model" for line in result.outlines) == 1


SLOW = """
import pathlib
import tempfile
import time

def pytest_collection_modifyitems(config):
    if getattr(config, "workerinput", {}).get("workerid") != "gw1":
        return
    give_up = time.monotonic() + 60
    while list(pathlib.Path(tempfile.gettempdir()).glob("rh-*")) and time.monotonic() < give_up:
        time.sleep(0.01)

def pytest_sessionfinish(session, exitstatus):
    if worker := getattr(session.config, "workerinput", None):
        pathlib.Path(worker["workerid"] + " ended").write_text(str(int(exitstatus)))
"""
"""The second worker has collected when the session has been refused; each leaves a file as it ends."""


def test_workers_of_a_refused_session_wait_for_no_engine(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """xdist interrupts those that wait five seconds later."""
    folder = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + SLOW)
    project.suite()
    (project.path / "out" / "run.json").mkdir(parents=True)
    assert project.run("--rh-set", "output_dir=out", "-n", "2").ret == pytest.ExitCode.USAGE_ERROR
    ended = {file.name: file.read_text() for file in project.path.glob("gw* ended")}
    assert ended == dict.fromkeys(["gw0 ended", "gw1 ended"], str(int(pytest.ExitCode.OK)))
