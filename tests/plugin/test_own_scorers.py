"""A suite whose answers are scored by a function of its user's own."""

from __future__ import annotations

from project import Project

OWN = "def score(answer, expected):\n    return 0.75 if 'dawn' in answer and 'leave' in expected.question else 0.0\n"
ONE = {"context_lengths": [128], "document_depths": [50]}


def test_a_function_of_the_project_decides(project: Project) -> None:
    project.write("scores_of_ours.py", OWN)
    project.suite(
        sweep=ONE, scoring={"metric": "scores_of_ours:score", "threshold": 0.7}, gates=["mean(pass_rate) >= 1"]
    )
    project.spawn("--rh-save-baseline", "main").assert_outcomes(passed=2)
    (record,) = project.records()
    assert (record.metric, record.scores, record.passed) == (
        "scores_of_ours:score",
        {"scores_of_ours:score": 0.75},
        True,
    )
    assert project.spawn("--rh-rescore", "--rh-set", "scoring.threshold=0.8", "--rh-baseline", "main").ret == 1


def test_a_function_that_is_not_there_is_a_mistake_of_the_suite(project: Project) -> None:
    project.suite(sweep=ONE, scoring={"metric": "scores_of_nobody:score"})
    result = project.spawn()
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*scoring.metric: *scores_of_nobody:score cannot be imported (ModuleNotFoundError*"])
