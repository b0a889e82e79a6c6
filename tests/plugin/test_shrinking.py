"""A suite that asks less than its baseline measured is not green; what is deselected is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from project import ON_WORKERS_IF_LONG, Project

ALL = {"context_lengths": [128, 256], "document_depths": [0, 25, 50, 75, 100]}
HALF = {"context_lengths": [128], "document_depths": [0, 25, 50, 75, 100]}


def told(result: pytest.RunResult) -> str:
    """The terminal as one line."""
    return " ".join(" ".join(result.outlines).split())


def test_a_cell_that_the_suite_lost_fails(project: Project, workers: list[str]) -> None:
    project.suite(sweep=ALL)
    project.run("--rh-save-baseline", "main")
    project.suite(sweep=HALF)
    result = project.run("--rh-baseline", "main", *workers)
    assert result.ret == 1
    result.assert_outcomes(passed=5 + 2, failed=1)
    assert "5 of the 10 cells that the baseline measured are not in the suite any more" in told(result)
    allowed = project.run("--rh-baseline", "main", "--rh-allow-removed", *workers)
    assert allowed.ret == 0
    assert "WARN 5 of the baseline's 10 cells of niah/tale are gone" in told(allowed)


def test_cells_that_are_deselected_are_said_and_do_not_fail(project: Project, workers: list[str]) -> None:
    project.suite(sweep=ALL)
    project.run("--rh-save-baseline", "main")
    result = project.run("--rh-baseline", "main", "-k", "len_128", *workers)
    assert result.ret == 0
    result.assert_outcomes(passed=5, deselected=0 if workers else 5)
    assert (
        "WARN niah/tale is partial: 5 of 10 cells are selected; the 5 others are not compared with the baseline"
    ) in told(result)


def test_a_part_that_fell_fails_all_the_same(project: Project) -> None:
    project.suite(sweep=ALL)
    project.run("--rh-save-baseline", "main")
    project.behave(wrong_lengths=[256])
    assert project.run("--rh-baseline", "main", "-k", "len_256").ret == 1
    assert project.run("--rh-baseline", "main", "-k", "len_128").ret == 0


def test_a_lost_cell_fails_a_part_too(project: Project) -> None:
    project.suite(sweep=ALL)
    project.run("--rh-save-baseline", "main")
    project.suite(sweep=HALF)
    assert project.run("--rh-baseline", "main", "-k", "depth_50]").ret == 1


class TestWholeSuites:
    @pytest.fixture(autouse=True)
    def baseline(self, project: Project) -> None:
        project.suite("a")
        project.suite("b", needles=[{"needle": "The key is under the mat.", "question": "Where is the key?"}])
        project.behave(needles=["The ferry to Oslo leaves at dawn.", "The key is under the mat."])
        project.run("--rh-save-baseline", "main").assert_outcomes(passed=12)

    @ON_WORKERS_IF_LONG
    def test_a_suite_that_is_gone_fails_where_its_folder_was_collected(
        self, project: Project, workers: list[str]
    ) -> None:
        (project.path / "suites/niah/b.yaml").unlink()
        result = project.run("--rh-baseline", "main", *workers)
        assert result.ret == 1
        assert "the baseline measured 6 cells of niah/b, and none of them is asked any more" in told(result)
        assert project.run("--rh-baseline", "main", "--rh-allow-removed", *workers).ret == 0

    def test_a_suite_that_is_gone_is_said_where_a_file_was_named(self, project: Project) -> None:
        (project.path / "suites/niah/b.yaml").unlink()
        result = project.run("suites/niah/a.yaml", "--rh-baseline", "main", suites=False)
        assert result.ret == 0
        assert "WARN 6 cells of the baseline are of niah/b, which was not collected" in told(result)

    def test_a_suite_that_is_not_collected_is_said(self, project: Project) -> None:
        for arguments in (["suites/niah/a.yaml"], ["suites", "--ignore", "suites/niah/b.yaml"]):
            result = project.run(*arguments, "--rh-baseline", "main", suites=False)
            assert result.ret == 0
            assert "WARN 6 cells of the baseline are of niah/b, which was not collected" in told(result)
        result = project.run("--rh-baseline", "main", "--deselect", "suites/niah/b.yaml")
        assert result.ret == 0
        assert "niah/b is partial: 0 of 6 cells are selected" in told(result)

    def test_a_suite_that_was_renamed_has_lost_nothing(self, project: Project) -> None:
        (project.path / "suites/niah/b.yaml").rename(project.path / "suites/niah/c.yaml")
        assert project.run("--rh-baseline", "main").ret == 0

    def test_a_run_as_baseline_knows_its_suites_too(self, project: Project) -> None:
        run = project.latest.resolve().relative_to(project.path)
        (project.path / "suites/niah/b.yaml").unlink()
        assert project.run("--rh-baseline", str(run)).ret == 1
        assert project.run("suites/niah/a.yaml", "--rh-baseline", str(run), suites=False).ret == 0


def test_two_suites_that_ask_the_same_lose_theirs_each(project: Project) -> None:
    project.suite("a", sweep=ALL)
    project.suite("b", sweep=ALL)
    project.run("--rh-save-baseline", "main")
    project.suite("b", sweep=HALF)
    result = project.run("--rh-baseline", "main")
    assert result.ret == 1
    assert "niah/b: 5 of the 10 cells that the baseline measured" in told(result)


@pytest.mark.parametrize("option", ["--rh-baseline", "--rh-save-baseline"])
def test_with_no_cell_selected_nothing_was_compared(project: Project, option: str, workers: list[str]) -> None:
    project.suite()
    project.write("suites/test_mine.py", "def test_mine():\n    pass\n")
    result = project.run(option, "main", "-k", "mine", *workers)
    result.assert_outcomes(passed=1, deselected=0 if workers else 6)
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"rh: {option}: no cell of any suite is selected*"])
    assert project.run("suites/test_mine.py", option, "main", config=False, suites=False).ret == 1
    assert project.run(option, "main", "-k", "mine", "--co").ret == 0
    assert project.starts == []


@pytest.mark.parametrize(
    "option",
    ["--rh-baseline", "--rh-save-baseline", "--rh-config", "--rh-run", "--rh-set", "--rh-max-drop"],
)
def test_an_option_without_a_value_is_a_usage_error(project: Project, option: str) -> None:
    project.suite()
    for value in ("", " "):
        result = project.run(f"{option}={value}", "-p", "no:xdist", config=option != "--rh-config")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: rh: {option} is given without a value*"])
    assert project.starts == []


def test_a_setting_without_a_value_is_a_usage_error(project: Project) -> None:
    project.suite()
    result = project.run("--rh-set", "gates=")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: rh: --rh-set gates=: no value *"])
    assert Path("suites").is_dir()
