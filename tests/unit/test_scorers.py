"""Scores that a suite chooses: exact, a pattern, a number, and a function of a user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from retrieval_heads.errors import ConfigError, RetrievalHeadsError
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.scoring import judge
from retrieval_heads.scoring.scorers import scorer
from retrieval_heads.scoring.settings import Scoring

OWN = """\
def score(answer, expected):
    return len(set(answer.split()) & set(expected.reference.split())) / len(set(expected.reference.split()))

def broken(answer, expected):
    return 1 / 0

def wild(answer, expected):
    return 7

NAME = "no function"
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_scores.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    sys.modules.pop("own_scores", None)
    from retrieval_heads.scoring import scorers

    scorers._placed.cache_clear()


def value(metric: str, answer: str, *references: str, question: str = "?", **more: object) -> float:
    expected = Expectation(question, references[0], references[1:])
    return judge(answer, expected, Scoring.model_validate({"metric": metric, **more})).scores[metric]


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("Oslo", ["Oslo"], 1),
        ("  oslo.\n", ["Oslo"], 1),
        ("Ｏｓｌｏ", ["Oslo"], 1),
        ("It is Oslo.", ["Oslo"], 0),
        ("Bergen", ["Oslo", "Bergen"], 1),
        ("", ["Oslo"], 0),
    ],
)
def test_exact_is_the_whole_answer(answer: str, references: list[str], score: float) -> None:
    assert value("exact", answer, *references) == score


@pytest.mark.parametrize(
    ("answer", "pattern", "score"),
    [("code 4821-B", r"\b\d{4}-[A-Z]\b", 1), ("code 482-B", r"\b\d{4}-[A-Z]\b", 0), ("NOON", "(?i)noon", 1)],
)
def test_a_pattern_is_found(answer: str, pattern: str, score: float) -> None:
    assert value("regex", answer, pattern) == score


def test_a_broken_pattern_is_told() -> None:
    with pytest.raises(RetrievalHeadsError, match=r"'\(a' is no regular expression \(missing \)"):
        value("regex", "a", "(a")


@pytest.mark.parametrize(
    ("answer", "reference", "tolerance", "score"),
    [
        ("It weighs 1,250 kg.", "1250", 0, 1),
        ("It weighs 1,251 kg.", "1250", 0, 0),
        ("It weighs 1,251 kg.", "1250", 0.01, 1),
        ("It weighs 1,300 kg.", "1250", 0.01, 0),
        ("minus: -5", "-5", 0, 1),
        ("10-20", "-20", 0, 0),
        ("In 1927 it weighed 80 kg.", "80 kg", 0, 1),
        ("20 or 80", "80", 0, 0),
        ("none", "80", 0, 0),
    ],
)
def test_a_number_has_one_value(answer: str, reference: str, tolerance: float, score: float) -> None:
    assert value("number", answer, reference, question="What did it weigh in 1927?", tolerance=tolerance) == score


def test_a_number_is_expected_of_the_suite() -> None:
    with pytest.raises(RetrievalHeadsError, match="the expected answer 'noon' holds no number"):
        value("number", "12", "noon")


@pytest.mark.usefixtures("own")
def test_a_function_of_ones_own_scores() -> None:
    assert value("own_scores:score", "a jar of honey", "a jar of jam") == pytest.approx(3 / 4)
    judged = judge("a jar", Expectation("?", "a jar of jam"), Scoring(metric="own_scores:score", threshold=0.4))
    assert judged.passed
    assert judged.scores == {"own_scores:score": 0.5}


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("own_scores:broken", "scoring.metric own_scores:broken: ZeroDivisionError: division by zero"),
        ("own_scores:wild", "scoring.metric own_scores:wild: expected a number from 0 to 1, it gave 7"),
    ],
)
def test_what_it_does_wrong_is_one_sentence(metric: str, said: str) -> None:
    with pytest.raises(RetrievalHeadsError) as told:
        value(metric, "a", "a")
    assert str(told.value) == said


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("no_such_package:score", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("own_scores:nothing", "AttributeError"),
        ("own_scores:NAME", "own_scores:NAME is a str, and a function is expected"),
        ("key_wrds", "unknown metric 'key_wrds'"),
    ],
)
def test_one_that_is_not_there_is_refused_where_settings_are_read(metric: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Scoring(metric=metric)


def test_a_name_that_nobody_registered_is_told_with_those_that_are() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown scorer 'exakt'; did you mean 'exact'.* there are: exact, regex, number"
    ):
        scorer("exakt")
