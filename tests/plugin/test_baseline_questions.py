"""A baseline whose cells were asked something else is told, and fails the run."""

from __future__ import annotations

import pytest
from project import NEEDLE, Project

ONE = {"context_lengths": [128], "document_depths": [0, 50]}


def test_changed_questions_fail_for_their_suite_unless_allowed(project: Project) -> None:
    project.suite(sweep=ONE)
    assert project.run("--rh-save-baseline", "main").ret == 0
    assert project.run("--rh-baseline", "main").ret == 0
    for setting, named in (
        ("boundary=token", "question.boundary: sentence in the baseline, token now"),
        ("prompt=document", "question.wording: *"),
    ):
        result = project.run("--rh-baseline", "main", "--rh-set", setting)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        said = "FAIL niah/tale: 2 of 2 cells are not asked what the baseline was asked"
        result.stdout.fnmatch_lines([f"{said}: {named}*"])
    tale = project.path / "tales/a.txt"
    tale.write_text(tale.read_text().replace("boat", "ship"))
    result = project.run("--rh-baseline", "main", "--junit-xml", "junit.xml")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["FAIL niah/tale: *question.haystack: * in the baseline, * now*"])
    assert "gate[the questions of the baseline]" in (project.path / "junit.xml").read_text("utf-8")
    allowed = project.run("--rh-baseline", "main", "--rh-allow-changed")
    assert allowed.ret == 0
    allowed.stdout.fnmatch_lines(["WARN 2 of 2 cells are not asked what the baseline was asked: *"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"question": "At what hour does it leave?"},
            "the question of needle_1: 'When does the ferry to Oslo leave?' in the baseline, "
            "'At what hour does it leave?' now",
        ),
        (
            {"answer": "at dawn"},
            "the expected answer of needle_1: 'The ferry to Oslo leaves at dawn.' in the baseline, 'at dawn' now",
        ),
    ],
)
def test_a_question_in_other_words_is_told_once_for_its_suite(
    project: Project, change: dict[str, str], told: str
) -> None:
    project.suite(sweep=ONE)
    project.run("--rh-save-baseline", "main")
    project.suite(sweep=ONE, needles=[NEEDLE | change])
    result = project.run("--rh-baseline", "main")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    fails = [line for line in result.outlines if line.startswith("FAIL ")]
    said = "FAIL niah/tale: 2 of 2 cells are not asked what the baseline was asked"
    assert [line.partition("; save")[0] for line in fails] == [f"{said}: {told}"]
    assert project.run("--rh-baseline", "main", "--rh-allow-changed").ret == 0


def test_another_model_stays_a_warning(project: Project) -> None:
    project.suite(sweep=ONE)
    project.run("--rh-save-baseline", "main")
    result = project.run("--rh-baseline", "main", "--rh-set", "model.model=other", "--rh-set", "model.quantization=fp8")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["WARN model differs: toy in the baseline, other now"])
    result.stdout.fnmatch_lines(["WARN quantization differs: not said in the baseline, fp8 now"])


def test_to_allow_changed_questions_there_must_be_some_to_compare(project: Project) -> None:
    project.suite(sweep=ONE)
    result = project.run("--rh-allow-changed")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*--rh-allow-changed is for stored answers: give --rh-baseline or --rh-rescore too*"])
