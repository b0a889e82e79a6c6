"""Going on with a run that was cut short, and scoring stored answers again."""

from __future__ import annotations

from pathlib import Path

import pytest
from project import Project

from retrieval_heads.runs.record import Record, dump_record


def asked(project: Project) -> list[int]:
    """How many cells each engine was asked, in the order of the engines."""
    return [int(line) for line in (project.path / "asked").read_text().split()]


def answers(project: Project) -> dict[str, tuple[object, ...]]:
    """What two runs must share: cells, requests, answers and scores."""
    return {one.cell: (one.request, one.text, one.scores, one.status) for one in project.records()}


def results(project: Project) -> Path:
    return project.latest / "results.jsonl"


def test_nothing_that_was_answered_is_asked_again(project: Project, workers: list[str]) -> None:
    project.suite()
    project.behave(wrong_lengths=[256], asked="asked")
    project.run("-k", "depth_50")
    folder, before = project.latest.resolve(), {one.cell: one for one in project.records()}
    result = project.run("--rh-resume", *workers)
    result.assert_outcomes(passed=3, failed=3)
    assert project.latest.resolve() == folder
    assert asked(project) == [2, 4]
    assert len(results(project).read_text().splitlines()) == len(project.records()) == 6
    assert {one.cell: one for one in project.records() if one.cell in before} == before
    result.stdout.fnmatch_lines(["2 of 6 answers are those of the earlier run"])
    assert project.facts()["reused_cells"] == 2


def test_a_cell_whose_request_changed_is_asked_again(project: Project) -> None:
    project.suite()
    project.behave(asked="asked")
    project.run()
    project.run("--rh-resume", "--rh-set", "generation.seed=1")
    assert asked(project) == [6, 6]
    assert len(results(project).read_text().splitlines()) == 6


def test_what_a_failed_engine_left_is_asked_of_the_next(project: Project) -> None:
    project.suite()
    project.behave(asked="asked", fail_after=4)
    project.run()
    assert [one.status for one in project.records()] == ["pass"] * 4
    project.behave(asked="asked")
    project.run("--rh-resume").assert_outcomes(passed=6)
    assert asked(project) == [6, 2]


def test_a_torn_line_is_dropped_with_a_note(project: Project) -> None:
    project.suite()
    project.run()
    before = answers(project)
    whole = results(project).read_bytes()
    results(project).write_bytes(whole[:-20])
    result = project.run("--rh-resume")
    result.stdout.fnmatch_lines(
        ["5 of 6 answers are those of the earlier run", "the earlier run's last line was incomplete; *"]
    )
    assert answers(project) == before
    assert len(results(project).read_text().splitlines()) == 6


def test_last_failed_with_resume_keeps_the_other_records(project: Project) -> None:
    project.suite()
    project.behave(wrong_lengths=[256])
    project.run()
    result = project.run("--lf", "--rh-resume")
    result.assert_outcomes(failed=3)
    assert len(project.records()) == 6


def test_the_run_to_resume_can_be_named(project: Project) -> None:
    project.suite()
    project.behave(asked="asked")
    project.run("-k", "depth_50")
    first = project.latest.resolve()
    project.run("-k", "depth_0")
    project.run("--rh-resume", "--rh-run", str(first))
    assert asked(project) == [2, 2, 4]
    result = project.run("--rh-resume", "--rh-run", "reports/none")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*rh: --rh-run reports/none: there is no such folder"])


def test_without_an_earlier_run_one_starts(project: Project) -> None:
    project.suite()
    result = project.run("--rh-resume")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["rh: there is no earlier run to resume; starting one"])


def test_a_run_of_another_suite_is_left_alone(project: Project) -> None:
    project.suite("other")
    project.run()
    before = results(project).read_bytes()
    project.suite("tale")
    result = project.run("suites/niah/tale.yaml", "--rh-resume", suites=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*is a run of niah/other, not of niah/tale; name the one you mean with --rh-run*"])
    assert results(project).read_bytes() == before


def test_a_run_option_without_a_use_is_refused(project: Project) -> None:
    project.suite()
    assert project.run("--rh-run", "reports/latest").ret == pytest.ExitCode.USAGE_ERROR


class TestRescore:
    def test_another_threshold_needs_no_engine(self, project: Project, workers: list[str]) -> None:
        project.suite()
        project.behave(wrong_lengths=[256], answer="The ferry to Bergen leaves at noon.")
        project.run().assert_outcomes(passed=3, failed=3)
        texts = {one.cell: one.text for one in project.records()}
        metric = ["--rh-set", "scoring.metric=rougeL_recall", "--rh-set", "scoring.threshold=0.6"]
        result = project.run("--rh-rescore", *metric, *workers, config=False)
        result.assert_outcomes(passed=6)
        assert len(project.starts) == 1
        assert {one.cell: one.text for one in project.records()} == texts
        assert {(one.metric, one.threshold, one.status) for one in project.records()} == {
            ("rougeL_recall", 0.6, "pass")
        }
        assert len(results(project).read_text().splitlines()) == 6
        assert project.facts()["engine"] == "stand-in 0"
        assert project.facts()["cells"]["pass"] == 6

    def test_a_gate_can_be_tried_on_stored_answers(self, project: Project) -> None:
        project.suite()
        project.behave(wrong_lengths=[256])
        project.run("--rh-verdict", "none")
        project.suite(gates=["mean(pass_rate) >= 0.6"])
        assert project.run("--rh-rescore").ret == 1
        project.suite(gates=["mean(pass_rate) >= 0.4"])
        assert project.run("--rh-rescore").ret == 0
        assert len(project.starts) == 1

    def test_a_cell_without_an_answer_is_an_error(self, project: Project) -> None:
        project.suite()
        project.run("-k", "depth_50")
        result = project.run("--rh-rescore")
        result.assert_outcomes(passed=2, failed=4)
        result.stdout.fnmatch_lines(["*the run holds no answer of this cell*"])

    def test_there_must_be_a_run(self, project: Project) -> None:
        project.suite()
        result = project.run("--rh-rescore")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*--rh-rescore: there is no earlier run here; name one with --rh-run"])


def test_a_killed_rewrite_leaves_the_last_record_of_each_cell(project: Project) -> None:
    project.suite()
    project.run()
    first: Record = project.records()[0]
    stale = first.model_copy(update={"text": "stale", "request": "other"})
    lines = results(project).read_text().splitlines()
    results(project).write_text("\n".join([dump_record(stale), *lines]) + "\n")
    project.run("--rh-resume").assert_outcomes(passed=6)
    assert len(project.records()) == 6
    assert "stale" not in results(project).read_text()
