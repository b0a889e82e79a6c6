"""Disks that are full, files that vanish, folders where files should be: one sentence, nothing lost, exit status 1."""

from __future__ import annotations

import os

import pytest
from project import Project, on_workers
from test_failures import no_traceback

from retrieval_heads.runs.record import read_records

GATE = ["mean(pass_rate) >= 0.5"]


def one_sentence(result: pytest.RunResult, pattern: str) -> None:
    """That one line says it, and nothing but lines for users."""
    no_traceback(result)
    said = [line for line in result.outlines if pattern in line]
    assert len(said) == 1, said


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("(run / 'results.jsonl').unlink()", "results.jsonl: was removed during the run"),
        ("os.truncate(run / 'results.jsonl', 700)", "results.jsonl: was cut short during the run"),
        ("(run / 'results.jsonl').write_text('{}\\n')", "results.jsonl: was changed by somebody else"),
        ("shutil.rmtree(run)", ": was moved or removed during the run"),
        ("run.rename('elsewhere')", ": was moved or removed during the run"),
        ("(run / 'run.json').unlink()", "run.json: was removed during the run"),
    ],
)
def test_what_is_damaged_in_mid_run_is_written_again(project: Project, damage: str, says: str) -> None:
    project.suite(gates=GATE)
    project.pytester.makepyfile(
        test_damage=f"""
        import os, pathlib, shutil

        def test_damage():
            run = pathlib.Path("reports/latest").resolve()
            {damage}
        """
    )
    result = project.run("test_damage.py")
    one_sentence(result, says)
    assert result.ret == 0
    assert len(project.records()) == 6
    assert project.facts()["status"] == "finished"
    assert (project.latest / "gates.json").exists()
    assert (project.latest / "config.yaml").exists()


def test_damage_is_mended_under_xdist_too(project: Project) -> None:
    project.suite(gates=GATE)
    project.pytester.makepyfile(
        test_damage="""
        import pathlib, shutil

        def test_damage(rh_engine):
            (run,) = pathlib.Path("reports").glob("2*")  # it may come before the first record, and so before `latest`
            shutil.rmtree(run)
        """
    )
    result = project.run("test_damage.py", "-n", "2")
    one_sentence(result, ": was moved or removed during the run")
    assert len(project.records()) == 6


@pytest.mark.parametrize(
    ("name", "workers"),
    on_workers(["config.yaml", "engine.log", "gates.json", "run.json", "results.jsonl", "heads.json"]),
)
def test_a_folder_where_a_file_should_be_is_told_before_anything_is_loaded(
    project: Project, name: str, workers: list[str]
) -> None:
    project.suite(gates=GATE)
    (project.path / "out" / name).mkdir(parents=True)
    result = project.run("--rh-set", "output_dir=out", *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    one_sentence(result, f"out/{name}: is a folder, and a file of the run may go there; move it away")
    assert project.starts == []


@pytest.mark.parametrize("name", ["gates.json", "run.json", "engine.log", "report.html"])
@pytest.mark.usefixtures("drawing")
def test_one_that_comes_in_mid_run_costs_no_record(project: Project, name: str) -> None:
    project.suite(gates=GATE)
    project.pytester.makepyfile(
        test_damage=f"""
        import pathlib

        def test_damage():
            file = pathlib.Path("reports/latest") / "{name}"
            file.unlink(missing_ok=True)
            file.mkdir()
            (file / "mine").write_text("mine")
        """
    )
    result = project.run("test_damage.py", "--rh-report")
    no_traceback(result)
    assert len(project.records()) == 6
    assert (project.latest / name / "mine").read_text() == "mine"
    if name in ("gates.json", "run.json"):
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        one_sentence(result, f"{name}: cannot be written (Is a directory)")
    if name == "report.html":
        one_sentence(result, f"{name}: the report cannot be written (Is a directory)")


LIMIT = """
import resource

import pytest

{before}

def fill():
    # As a disk with no more room: no file grows beyond this.
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

def pytest_collection_finish(session):
    fill()

@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_node_collection_finished(node, ids):  # in the controller, which collects nothing
    fill()
"""


def with_full_disk(project: Project, *arguments: str) -> pytest.RunResult:
    """Run pytest; once it has collected, no file of it grows beyond 3,000 bytes."""
    conftest = project.path / "conftest.py"
    before = conftest.read_text()
    conftest.write_text(LIMIT.format(before=before))
    result = project.spawn(*arguments, "--rh-set", "output_dir=out", "-p", "no:cacheprovider")
    conftest.write_text(before)
    no_traceback(result)
    return result


def test_a_full_disk_loses_nothing_that_was_written_and_the_run_can_be_resumed(
    project: Project, workers: list[str]
) -> None:
    project.suite(gates=GATE, sweep={"context_lengths": [128], "document_depths": list(range(0, 100, 5))})
    project.behave(asked="asked", delay=0.01)
    result = with_full_disk(project, *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*out/results.jsonl: cannot be written (File too large); * of 20 records are not *"])
    kept = len(read_records(project.path / "out" / "results.jsonl"))
    assert 0 < kept < 20
    project.behave(asked="again")
    project.run("--rh-resume", "--rh-set", "output_dir=out").assert_outcomes(passed=20 + len(GATE))
    assert len(read_records(project.path / "out" / "results.jsonl")) == 20
    assert (project.path / "again").read_text() == str(20 - kept)


def test_a_disk_that_is_full_at_the_start_is_told_before_anything_is_loaded(
    project: Project, workers: list[str]
) -> None:
    needle = {"needle": "The ferry to Oslo leaves at dawn. " * 200, "question": "When does the ferry to Oslo leave?"}
    project.suite(needles=[needle], sweep={"context_lengths": [4000], "document_depths": [0]})
    result = with_full_disk(project, *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    one_sentence(result, "out/config.yaml: cannot be written (File too large)")
    assert project.starts == []


def test_a_log_that_cannot_be_written_costs_nothing_but_itself(project: Project) -> None:
    project.suite()
    project.behave(says=["model"])
    conftest = (project.path / "conftest.py").read_text()
    project.pytester.makeconftest(
        conftest
        + """
from retrieval_heads.runs.folder import RunFolder

write_config = RunFolder.write_config


def and_a_folder(self, settings):
    write_config(self, settings)
    self.log.unlink()
    self.log.mkdir()


RunFolder.write_config = and_a_folder
"""
    )
    result = project.spawn()
    result.assert_outcomes(passed=6)
    one_sentence(result, "engine.log: cannot be written (Is a directory)")


@pytest.mark.parametrize(("is_for_good", "workers"), on_workers([False, True]))
def test_a_library_that_a_full_disk_keeps_from_loading_is_no_traceback(
    project: Project, monkeypatch: pytest.MonkeyPatch, workers: list[str], is_for_good: bool
) -> None:
    """It is loaded by a thread beside the engine's start, and again by the first answer."""
    project.suite()
    project.write(
        "full/simplemma/__init__.py",
        f"""
import os, sys, threading

if {is_for_good} or threading.current_thread() is not threading.main_thread():
    raise OSError(28, "No space left on device")
sys.path.remove({str(project.path / "full")!r})
del sys.modules["simplemma"]
import simplemma
""",
    )
    monkeypatch.setenv("PYTHONPATH", str(project.path / "full"), prepend=os.pathsep)
    result = project.spawn(*workers)
    no_traceback(result)
    assert "Traceback" not in result.stderr.str()
    if is_for_good:
        result.assert_outcomes(failed=6)
        said = "answers cannot be judged: simplemma cannot be imported ([[]Errno 28[]] No space left on device)"
        result.stdout.fnmatch_lines([f"*{said}"])
    else:
        result.assert_outcomes(passed=6)
