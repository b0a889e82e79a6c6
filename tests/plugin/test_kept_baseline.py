"""A baseline that is saved anew loses no cell that was not asked; a session of other tests has nothing to compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from project import Project

SAVE = ("--rh-save-baseline", "main")


@pytest.fixture
def two(project: Project) -> Project:
    """Two suites of a folder, both in its baseline."""
    project.suite("a")
    project.suite("b")
    assert project.run(*SAVE).ret == 0
    return project


def baseline(project: Project) -> tuple[dict[str, Any], dict[tuple[str, str], bool]]:
    """The header, and of each cell whether it passed."""
    header, *cells = map(json.loads, (project.path / "suites/niah/baselines/main.jsonl").read_text().splitlines())
    return header, {(cell["suite"], cell["cell"]): cell["passed"] for cell in cells}


def test_of_one_suite_saved_anew_the_others_cells_stay(two: Project, workers: list[str]) -> None:
    before = baseline(two)[1]
    two.behave(wrong_lengths=[256])
    result = two.run("suites/niah/a.yaml", *SAVE, "--rh-verdict", "none", *workers, suites=False)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["main.jsonl keeps 6 cells that were not selected now"])
    header, now = baseline(two)
    assert header["cells"] == 12
    assert now.keys() == before.keys()
    assert {suite for suite, _ in now if not now[suite, _]} == {"a"}
    assert sum(not passed for passed in now.values()) == 3
    two.behave()
    assert two.run("--rh-baseline", "main").ret == 0


def test_of_a_part_saved_anew_the_other_cells_stay(two: Project) -> None:
    two.run("-k", "len_128", *SAVE)
    assert len(baseline(two)[1]) == 12


def test_a_suite_that_is_no_more_goes(two: Project) -> None:
    (two.path / "suites/niah/b.yaml").unlink()
    two.run(*SAVE)
    assert {suite for suite, _ in baseline(two)[1]} == {"a"}


def test_cells_of_another_model_are_not_mixed(two: Project) -> None:
    before = baseline(two)
    result = two.run("suites/niah/a.yaml", *SAVE, "--rh-set", "model.model=other", suites=False)
    assert result.ret == 1
    told = "*main.jsonl holds 6 cells that were not selected now, and they were measured otherwise (model differs: *"
    result.stdout.fnmatch_lines([f"*no baseline was saved: {told}"])
    assert baseline(two) == before
    assert two.run(*SAVE, "--rh-set", "model.model=other").ret == 0
    assert baseline(two)[0]["model"] == "other"


def test_head_scores_of_the_other_suite_stay_and_of_a_part_none_are_saved(project: Project) -> None:
    project.suite("a", kind="detect")
    project.suite("b", kind="detect")
    project.run(*SAVE)
    before = baseline(project)
    project.run("suites/niah/a.yaml", *SAVE, suites=False)
    assert baseline(project) == before
    assert before[0]["heads"].keys() == {"a", "b"}
    result = project.run("suites/niah/a.yaml", "-k", "len_128", *SAVE, suites=False)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*no baseline was saved: * holds all samples of detect/a, and its head scores are *"])
    assert baseline(project) == before


class TestNothingToCompare:
    TOLD = "rh: --rh-baseline: no cell of any suite is selected: nothing was compared"

    @pytest.fixture
    def mixed(self, two: Project) -> Project:
        """A baseline in the ini file, and a test of the user's own."""
        two.pytester.makeini("[pytest]\nrh_config = config.yaml\naddopts = --rh-baseline main\n")
        two.write("tests/test_own.py", "def test_mine():\n    pass\n")
        return two

    def test_a_session_of_other_tests_alone_is_not_failed_by_addopts(self, mixed: Project, workers: list[str]) -> None:
        result = mixed.run("tests", *workers, suites=False, config=False)
        result.assert_outcomes(passed=1)
        assert result.ret == 0
        result.stdout.fnmatch_lines([self.TOLD])

    def test_one_that_deselects_every_cell_is(self, mixed: Project, workers: list[str]) -> None:
        result = mixed.run(".", "-k", "test_mine", *workers, suites=False, config=False)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines([self.TOLD])

    @pytest.mark.parametrize("typed", [["--rh-baseline", "main"], ["--rh-baseline=main"]])
    def test_one_whose_command_line_asks_for_it_is(self, mixed: Project, typed: list[str]) -> None:
        Path("tox.ini").unlink()
        result = mixed.run("tests", *typed, suites=False)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines([self.TOLD])
