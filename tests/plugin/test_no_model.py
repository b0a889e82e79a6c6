"""Suites in a repository and no model for them: whatever needs one is an error, or skipped, and nothing else is."""

from __future__ import annotations

import pytest
from project import ON_WORKERS_IF_LONG, Project

OWN = """
def test_mine():
    pass

def test_asks(rh_engine):
    rh_engine.ask("anything")

def test_config(rh_config):
    assert rh_config.model.model is None
"""
SENTENCE = "no model is named; give --rh-config FILE with `model: {model: NAME}`, or *"


@pytest.fixture
def bare(project: Project) -> Project:
    """A suite, tests of the user's own, and no config."""
    project.suite()
    project.pytester.makepyfile(test_own=OWN)
    return project


def test_what_needs_a_model_is_an_error_and_the_rest_runs(bare: Project, workers: list[str]) -> None:
    result = bare.run(".", *workers, suites=False, config=False)
    result.assert_outcomes(passed=2, errors=6 + 1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*ERROR at setup of tale::*", SENTENCE])
    result.stdout.no_fnmatch_line("*from_call*")
    assert sum(line.startswith("no model is named;") for line in result.outlines) == 7, "a sentence each, no traceback"
    assert bare.starts == []
    assert not (bare.path / "reports").exists()


def test_a_users_tests_alone(bare: Project, workers: list[str]) -> None:
    result = bare.run("test_own.py", *workers, suites=False, config=False)
    result.assert_outcomes(passed=2, errors=1)


def test_it_is_skipped_where_the_ini_file_says_so(bare: Project, workers: list[str]) -> None:
    bare.pytester.makeini("[pytest]\nrh_no_model = skip\n")
    result = bare.run(".", "-rs", *workers, suites=False, config=False)
    result.assert_outcomes(passed=2, skipped=6 + 1)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"SKIPPED *{SENTENCE}"])


def test_a_run_that_is_to_be_compared_or_kept_is_not_skipped(bare: Project) -> None:
    bare.pytester.makeini("[pytest]\nrh_no_model = skip\n")
    result = bare.run("--rh-save-baseline", "main", config=False)
    result.assert_outcomes(errors=6)


def test_neither_error_nor_skip_is_refused(bare: Project) -> None:
    bare.pytester.makeini("[pytest]\nrh_no_model = ignore\n")
    result = bare.run(config=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: rh: rh_no_model: 'error' or 'skip' is expected in the ini file, *'ignore'"])


@ON_WORKERS_IF_LONG
def test_suites_that_name_a_model_run_beside_those_that_do_not(bare: Project, workers: list[str]) -> None:
    bare.suite("named", model={"model": "toy"})
    result = bare.run(*workers, config=False)
    result.assert_outcomes(passed=6, errors=6)
    assert {record.suite for record in bare.records()} == {"named"}
    assert bare.facts()["selected_cells"] == 6


def test_the_config_that_was_named_must_be_there(bare: Project, workers: list[str]) -> None:
    result = bare.run(".", "--rh-config", "nowhere.yaml", *workers, suites=False, config=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_an_empty_config_in_the_ini_file_is_none(bare: Project) -> None:
    bare.pytester.makeini("[pytest]\nrh_config = config.yaml\n")
    bare.run("-o", "rh_config=", config=False).assert_outcomes(errors=6)
