"""What a user's conftest.py adds to records and hears of a run, through hooks of our own."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from project import CONFTEST, ON_WORKERS_IF_LONG, Project

from pytest_retrieval_heads.user_hooks import AdditionError, with_additions
from retrieval_heads.runs.record import Record, dump_record, read_records

ADDITION = """
def pytest_rh_record(record, item):
    if record.document_depth == 50:
        return {"words": len(record.text.split()), "item": item.name, "of": [record.context_length, None]}
"""
RAISING = """
def pytest_rh_record(record):
    if record.document_depth == 50:
        raise ValueError("no more room in my database")
"""
VERDICT = """
def pytest_rh_verdict(verdict, records, folder):
    lines = [f"{one.gate} {one.outcome}" for one in verdict.outcomes]
    written = len((folder / "results.jsonl").read_text().splitlines())
    with open("verdicts", "a") as file:
        print(verdict.outcome, len(records), written, *lines, sep="; ", file=file)
"""
READY = """
def pytest_rh_engine_ready(info):
    with open("ready", "a") as file:
        print(info["model"], file=file)
"""


def lines_of(project: Project) -> dict[str, dict[str, Any]]:
    """The newest run's lines by their cell, as they stand in the file; times aside."""
    lines = map(json.loads, (project.latest / "results.jsonl").read_text("utf-8").splitlines())
    return {line["cell"]: {key: value for key, value in line.items() if not key.endswith("seconds")} for line in lines}


def added(extra: Any) -> Record:
    """A record to which one hook added something."""
    hooks = SimpleNamespace(pytest_rh_record=lambda **_: [extra])
    record = Record(context_length=1, document_depth=0, needle="x")
    return with_additions(record, SimpleNamespace(ihook=hooks))  # type: ignore[arg-type]


def test_a_hook_adds_to_a_record(project: Project, workers: list[str]) -> None:
    project.suite()
    project.run(*workers).assert_outcomes(passed=6)
    plain = lines_of(project)
    project.pytester.makeconftest(CONFTEST + ADDITION)
    project.run(*workers).assert_outcomes(passed=6)
    for cell, line in lines_of(project).items():
        extra = line.pop("extra", None)
        assert list(line.items()) == list(plain[cell].items())
        if line["document_depth"] == 50:
            item = f"niah[len_{line['context_length']}-depth_50]"
            assert extra == {"words": 7, "item": item, "of": [line["context_length"], None]}
        else:
            assert extra is None
    assert sorted(record.extra is not None for record in project.records()) == [False] * 4 + [True] * 2


def test_a_conftest_beside_the_suites_has_a_say_over_them_alone(project: Project) -> None:
    project.suite()
    project.write("suites/niah/conftest.py", ADDITION)
    project.write("other/conftest.py", RAISING)
    project.run("other").assert_outcomes(passed=6)
    assert sum(record.extra is not None for record in project.records()) == 2


def test_a_resumed_run_holds_what_its_own_hooks_add(project: Project) -> None:
    project.suite()
    project.run().assert_outcomes(passed=6)
    before = lines_of(project)
    project.pytester.makeconftest(CONFTEST + ADDITION)
    project.run("--rh-resume").assert_outcomes(passed=6)
    assert sum("extra" in line for line in lines_of(project).values()) == 2
    project.pytester.makeconftest(CONFTEST)
    project.run("--rh-rescore").assert_outcomes(passed=6)
    assert lines_of(project) == before
    assert len(project.starts) == 2


def test_a_record_hook_that_raises_fails_its_test_and_loses_no_record(project: Project, workers: list[str]) -> None:
    project.suite()
    project.pytester.makeconftest(CONFTEST + RAISING)
    result = project.run(*workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(["*ValueError: no more room in my database"])
    assert [record.status for record in project.records()] == ["pass"] * 6
    assert project.facts()["cells"]["pass"] == 6


@ON_WORKERS_IF_LONG
def test_what_is_no_json_is_one_sentence_of_its_test(project: Project, workers: list[str]) -> None:
    project.suite()
    project.pytester.makeconftest(CONFTEST + "def pytest_rh_record(record): return {'place': {'at': (1, 2)}}\n")
    result = project.run(*workers)
    result.assert_outcomes(failed=6)
    sentence = "plain JSON is expected (None, bool, int, float, str, list, mapping), found tuple"
    sentence = f"pytest_rh_record: extra.place.at: {sentence}"
    assert sum(line.strip() == sentence for line in result.outlines) == 6
    assert "Traceback" not in result.stdout.str()
    assert [record.status for record in project.records()] == ["pass"] * 6
    assert not any(record.extra for record in project.records())


def test_two_hooks_that_use_one_name_are_told(project: Project) -> None:
    project.suite()
    project.pytester.makeconftest(CONFTEST + ADDITION)
    project.write("suites/niah/conftest.py", ADDITION)
    result = project.run()
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(["pytest_rh_record: two hooks add 'words'"])


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"a": math.nan}, "extra.a: JSON has no number nan; use None"),
        ({"a": [0.5, -math.inf]}, "extra.a[1]: JSON has no number -inf"),
        ({"a": 1 << 63}, "extra.a: a number of more than 63 bits"),
        ({"a": {3: 1}}, "extra.a: a name is expected to be a text, found 3"),
        (
            {"a": Decimal(1)},
            "str, list, mapping), found decimal.Decimal",
        ),
        ({"a": b"text"}, "extra.a: plain JSON is expected (None, bool, int, float, str, list, mapping), found bytes"),
        ({"a": "\ud800"}, "extra.a: a text holds half of a surrogate pair"),
        ({"a": {"\ud800": 1}}, "extra.a: a text holds half of a surrogate pair"),
        ({"a": json.loads("[" * 49 + "]" * 49)}, "more than 50 lists and mappings stand in each other"),
        ("text", "a mapping or None is expected, found str"),
    ],
    ids=str,
)
def test_a_record_holds_nothing_that_cannot_be_read_again(extra: Any, sentence: str) -> None:
    with pytest.raises(AdditionError) as raised:
        added(extra)
    assert str(raised.value).startswith("pytest_rh_record: ")
    assert sentence in str(raised.value)


def test_the_deepest_and_largest_of_json_is_read_again(tmp_path: Path) -> None:
    extra = {"a": json.loads("[" * 48 + "]" * 48), "b": (1 << 63) - 1, "c": "\u2028", "d": [True, None, 1e300, ""]}
    record = added(extra)
    (tmp_path / "results.jsonl").write_text(dump_record(record) + "\n", "utf-8")
    assert read_records(tmp_path / "results.jsonl") == [record]
    assert record.extra == extra


def test_the_verdict_is_told_once(project: Project, workers: list[str]) -> None:
    project.suite(gates=["mean(pass_rate) >= 0.9", "mean(pass_rate) >= 0.4"])
    project.behave(wrong_lengths=[256])
    project.pytester.makeconftest(CONFTEST + VERDICT)
    assert project.run(*workers).ret == pytest.ExitCode.TESTS_FAILED
    assert (project.path / "verdicts").read_text() == (
        "broken; 6; 6; mean(pass_rate) >= 0.9 broken; mean(pass_rate) >= 0.4 held\n"
    )


@ON_WORKERS_IF_LONG
def test_a_verdict_hook_that_raises_fails_the_run_and_loses_nothing(project: Project, workers: list[str]) -> None:
    project.suite(gates=["mean(pass_rate) >= 0.9"])
    project.pytester.makeconftest(CONFTEST + "def pytest_rh_verdict(verdict):\n    raise OSError('nobody listens')\n")
    result = project.run(*workers, "--rh-save-baseline", "first")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=6 + 1)
    line = CONFTEST.count("\n") + 2
    assert result.outlines.count(f"pytest_rh_verdict raised OSError: nobody listens (conftest.py:{line})") == 1
    assert project.facts()["exit_status"] == pytest.ExitCode.TESTS_FAILED
    assert len(project.records()) == 6
    assert (project.latest / "gates.json").exists()
    assert (project.path / "suites/niah/baselines/first.jsonl").exists()


def test_the_engine_that_is_ready_is_told_once(project: Project, workers: list[str]) -> None:
    project.suite()
    project.pytester.makeconftest(CONFTEST + READY)
    project.run(*workers).assert_outcomes(passed=6)
    project.run("--rh-rescore").assert_outcomes(passed=6)
    assert (project.path / "ready").read_text() == "toy\n"


def test_an_engine_hook_that_raises_fails_the_session_and_every_cell_is_asked(project: Project) -> None:
    project.suite()
    project.pytester.makeconftest(CONFTEST + "def pytest_rh_engine_ready(info):\n    import no_such_meter\n")
    result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(
        ["pytest_rh_engine_ready raised ModuleNotFoundError: No module named 'no_such_meter' (*"]
    )
    assert len(project.records()) == 6
