"""What a cell's answer does to its item, to the exit code, and what a user reads of it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from project import NEEDLE, Project

ONE = {"context_lengths": [128], "document_depths": [50]}

MISSED = "key_words 0.000 is not above 0.5: the answer does not hold the needle"


def section(result: pytest.RunResult, title: str) -> list[str]:
    """The lines below a section's title, up to the next."""
    lines = result.outlines
    start = next(index for index, line in enumerate(lines) if line.strip("=-_ ") == title) + 1
    end = next(index for index, line in enumerate(lines[start:], start) if line.startswith(("===", "---", "___")))
    return lines[start:end]


def test_a_failed_cell_says_in_ten_lines_what_happened(project: Project) -> None:
    project.suite(sweep=ONE)
    project.behave(wrong_lengths=[128], answer="The bus to Oslo leaves at noon.")
    result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    told = section(result, "tale::niah[len_128-depth_50]")
    assert len(told) <= 10
    result.stdout.fnmatch_lines(
        [
            f"{MISSED}; says 0 of 1 key words; missing: dawn",
            "    question  When does the ferry to Oslo leave?",
            "    expected  The ferry to Oslo leaves at dawn.",
            "    answer    'The bus to Oslo leaves at noon.' (stop after 8 tokens)",
            "    score     key_words 0.000, passes above 0.5; ROUGE-L 0.714, substring 0",
            "    needle    tokens *–* of 128, depth * % (asked 50 %)",
            "    engine    reports/*/engine.log",
            "FAILED suites/niah/tale.yaml::niah[[]len_128-depth_50] - key_words 0.*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*.py:*")


def test_on_a_ci_service_a_failed_cell_is_one_line_of_the_summary(
    project: Project, workers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")  # pytest then does not trim its summary
    project.suite(sweep=ONE)
    project.behave(wrong_lengths=[128])
    result = project.run("--junit-xml", "junit.xml", *workers)
    reason = (
        "key_words 0.000 is not above 0.5: the answer does not hold the needle; says 0 of 1 key words; missing: dawn"
    )
    summary = section(result, "short test summary info")
    assert summary == [f"FAILED suites/niah/tale.yaml::niah[len_128-depth_50] - {reason}"]
    assert len(section(result, "tale::niah[len_128-depth_50]")) <= 10
    failure = ElementTree.parse(project.path / "junit.xml").find(".//failure")
    assert failure is not None
    assert failure.get("message") == reason
    assert "    question  When does the ferry" in (failure.text or "")


@pytest.mark.parametrize(
    ("suites", "option", "failed"),
    [
        (None, None, 3),
        ("cell", None, 3),
        ("none", None, 0),
        ("none", "cell", 3),
        ("cell", "none", 0),
    ],
)
def test_the_verdict_decides_what_a_low_score_does(
    project: Project, suites: str | None, option: str | None, failed: int
) -> None:
    project.suite(verdict=suites)
    project.behave(wrong_lengths=[256])
    result = project.run(*(["--rh-verdict", option] if option else []))
    result.assert_outcomes(passed=3, failed=failed, xfailed=3 - failed)
    assert result.ret == (1 if failed else 0)
    assert [record.status for record in project.records()].count("low") == 3


def test_the_verdict_reaches_the_workers(project: Project) -> None:
    project.suite(verdict="cell")
    project.behave(wrong_lengths=[256])
    result = project.run("-n", "2", "--rh-verdict", "none")
    result.assert_outcomes(passed=3, xfailed=3)
    assert result.ret == 0


def test_a_config_sets_the_verdict_too(project: Project) -> None:
    project.suite()
    project.write("config.yaml", {"model": {"model": "toy"}, "verdict": "none"})
    project.behave(wrong_lengths=[256])
    assert project.run().ret == 0


def test_an_error_fails_whatever_the_verdict(project: Project) -> None:
    project.suite(verdict="none", sweep={"context_lengths": [40], "document_depths": [50]})
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "a length of 40 tokens is too short: template and question take *, the needle *; at least * are needed",
            "    suite     *suites/niah/tale.yaml",
            "    engine    reports/*-tale/engine.log",
        ]
    )
    assert project.records()[0].status == "error"
    assert "too short" in project.records()[0].reason


def test_the_suite_says_which_score_passes_and_where(project: Project) -> None:
    project.suite(sweep=ONE, scoring={"metric": "rougeL_precision", "threshold": 0.9})
    project.behave(answer="The ferry leaves at dawn, and so does the bus.", needles=[])
    project.run().assert_outcomes(failed=1)
    record = project.records()[0]
    assert (record.metric, record.threshold, record.passed) == ("rougeL_precision", 0.9, False)
    assert record.scores["rouge1_recall_novel"] == 1


def test_a_cell_that_does_not_fit_the_model_is_skipped_and_named(project: Project, workers: list[str]) -> None:
    project.suite()
    result = project.run("--rh-set", "model.max_model_len=200", *workers)
    result.assert_outcomes(passed=3, skipped=3)
    reason = "256 prompt tokens and 16 answer tokens do not fit max_model_len 200"
    result.stdout.fnmatch_lines(
        [
            "     256       -       -       -",
            "6 cells: 3 retrieved, 3 skipped; mean key_words 1.000",
            f"skipped: length 256 at depths 0, 50, 100: {reason}",
        ]
    )
    skipped = [record for record in project.records() if record.context_length == 256]
    assert [(record.status, record.passed, record.reason) for record in skipped] == [("skipped", None, reason)] * 3
    assert project.facts()["cells"] == {"pass": 3, "low": 0, "skipped": 3, "error": 0}


def test_a_run_that_measured_nothing_is_no_success(project: Project, workers: list[str]) -> None:
    project.suite()
    result = project.run("--rh-set", "model.max_model_len=100", *workers)
    result.assert_outcomes(skipped=6)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["no cell was measured: every one was skipped"])
    assert project.run("--rh-set", "model.max_model_len=100", "--rh-verdict", "none").ret == 0


def test_the_answers_budget_must_fit_on_top(project: Project) -> None:
    project.suite(sweep={"context_lengths": [184, 185], "document_depths": [50]})
    project.run("--rh-set", "model.max_model_len=200").assert_outcomes(passed=1, skipped=1)


def test_junit_xml_has_the_score(project: Project) -> None:
    project.suite(sweep=ONE)
    project.run("--junit-xml", "junit.xml")
    found = ElementTree.parse(project.path / "junit.xml").findall(".//testcase/properties/property")
    assert next((each.get("name"), each.get("value")) for each in found) == ("key_words", "1.0")


def test_a_mistake_in_a_sampling_parameter_is_told(project: Project) -> None:
    project.suite(sweep=ONE, generation={"temprature": 1, "max_tokens": 16})
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*generation.temprature: there is no such sampling parameter*"])


@pytest.mark.parametrize("tokenizer", ["words", "bytes"])
@pytest.mark.parametrize(
    ("needle", "question"),
    [
        ("在奥斯陆最好的事是黎明乘渡船。", "在奥斯陆最好做什么?"),
        ("Паром в Осло уходит на рассвете.", "Когда уходит паром в Осло?"),
        ("The password of the ferry is 🦊🌵👩🏽‍🚀❤️.", "What is the password of the ferry?"),
    ],
    ids=["Chinese", "Cyrillic", "emoji"],
)
def test_a_needle_of_any_script_goes_all_the_way(project: Project, needle: str, question: str, tokenizer: str) -> None:
    project.write("tales/b.txt", "Жили-были старик со старухой. 从前有一座山。山里有座庙！ 🙂\n" * 20)
    project.suite(
        needles=[{"name": "ключ", "needle": needle, "question": question}],
        sweep={"context_lengths": [700], "document_depths": [0, 33, 100], "seeds": [3]},
    )
    project.behave(needles=[needle], tokenizer=tokenizer)
    project.run("--junit-xml", "junit.xml").assert_outcomes(passed=3)
    for record in project.records():
        assert (record.needle, record.text, record.question) == (needle, needle, question)
        assert set(record.scores.values()) == {1.0}


def test_a_failed_cell_of_another_script_is_readable(project: Project) -> None:
    project.suite(sweep=ONE, needles=[{"needle": "Паром уходит на рассвете.", "question": "Когда уходит паром?"}])
    project.behave(answer="Не знаю.\n\nСпросите 🦊")
    project.run().stdout.fnmatch_lines(
        ["    expected  Паром уходит на рассвете.", "    answer    'Не знаю. Спросите 🦊' (stop after *"]
    )


def test_the_answer_can_be_named_apart_from_the_needle(project: Project) -> None:
    project.suite(sweep=ONE, needles=[{**NEEDLE, "answer": "at dawn", "answer_span": "dawn"}])
    project.run().assert_outcomes(passed=1)
    record = project.records()[0]
    assert record.reference == "at dawn"
    assert record.needle_span is not None
    assert record.needle_span[1] - record.needle_span[0] == 1


def test_a_low_cell_that_decides_nothing_is_told_as_one_that_fails(project: Project, workers: list[str]) -> None:
    """And not as a traceback of the plugin and pytest, which takes longer than its answer did."""
    project.suite(sweep={"context_lengths": [256], "document_depths": [50]})
    project.behave(wrong_lengths=[256])
    result = project.run(*workers, "--rh-verdict", "none", "--xfail-tb")
    result.assert_outcomes(xfailed=1)
    result.stdout.fnmatch_lines(
        ["*= XFAILURES =*", "    question  When does the ferry to Oslo leave?", "    engine    *engine.log*"]
    )
    result.stdout.no_fnmatch_line("*collect.py:*")
