"""What a baseline measured and nobody asks any more."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval_heads.gates import shrinkage
from retrieval_heads.runs.record import Recipe, Record


def record(suite: str, cell: str, **keys: Any) -> Record:
    kind, _, name = suite.partition("/")
    fields = {"kind": kind, "suite": name, "cell": cell, "status": "pass", "context_length": 1, "document_depth": 0}
    return Record.model_validate({**fields, "needle": "", **keys})


BEFORE = [record("niah/a", "1"), record("niah/a", "2"), record("niah/b", "2"), record("niah/b", "3")]


@pytest.mark.parametrize(
    ("collected", "beside", "removed", "uncollected"),
    [
        ({"niah/a": ["1", "2"], "niah/b": ["2", "3"]}, {}, {}, {}),
        ({"niah/a": ["1", "2", "4"], "niah/b": ["3", "2"]}, {}, {}, {}),
        ({"niah/a": ["1"], "niah/b": ["2", "3"]}, {}, {"niah/a": 1}, {}),
        ({"niah/a": ["1", "2"]}, {}, {"niah/b": 2}, {}),
        ({"niah/a": ["1", "2"]}, {"niah/b": ["2"]}, {}, {"niah/b": 2}),
        ({"niah/a": ["1", "2"], "niah/c": ["2", "3"]}, {}, {}, {}),  # renamed
        ({"niah/a": ["1", "2", "3"], "niah/b": ["2"]}, {}, {}, {}),  # moved
        ({"niah/a": [], "niah/b": []}, {}, {"niah/a": 2, "niah/b": 2}, {}),
    ],
)
def test_cells_are_lost_moved_or_not_collected(
    collected: dict[str, list[str]],
    beside: dict[str, list[str]],
    removed: dict[str, int],
    uncollected: dict[str, int],
) -> None:
    found = shrinkage(BEFORE, collected, beside, ["niah"])
    assert {suite: len(gone) for suite, gone in found.removed.items()} == removed
    assert found.uncollected == uncollected


def test_a_suite_of_a_kind_that_may_lie_elsewhere_is_not_gone() -> None:
    found = shrinkage(BEFORE, {"niah/a": ["1", "2"]}, {}, ["detect"])
    assert found.removed == {}
    assert found.uncollected == {"niah/b": 2}


def test_what_was_never_measured_or_names_no_suite_is_not_lost() -> None:
    before = [record("niah/a", "1", status="skipped"), record("niah/a", "2", status="error"), record("niah/", "")]
    assert shrinkage(before, {"niah/a": []}, {}, ["niah"]).removed == {}


@pytest.mark.parametrize(
    ("recipe", "now", "gone"),
    [
        (True, "niah/tales/ferry-22222222/seed_0/len_128/depth_0", False),
        (True, "niah/stories/ferry-11111111/seed_0/len_128/depth_0", False),
        (False, "niah/tales/ferry-22222222/seed_0/len_128/depth_0", True),  # that it was asked otherwise is not known
        (True, "niah/tales/bus-22222222/seed_0/len_128/depth_0", True),
        (True, "niah/tales/ferry-22222222/seed_1/len_128/depth_0", True),
        (True, "niah/tales/ferry-22222222/seed_0/len_128/depth_50", True),
    ],
)
def test_a_cell_that_is_asked_in_other_words_is_not_gone(recipe: bool, now: str, gone: bool) -> None:
    said = Recipe.model_construct(haystack="tales") if recipe else None
    before = record("niah/a", "niah/tales/ferry-11111111/seed_0/len_128/depth_0").model_copy(update={"recipe": said})
    assert ("niah/a" in shrinkage([before], {"niah/a": [now]}, {}, ["niah"]).removed) is gone
    assert "niah/a" in shrinkage([before], {"niah/a": [], "niah/b": [now]}, {}, ["niah"]).removed


def test_the_gate_names_what_is_gone() -> None:
    outcome = shrinkage(BEFORE, {"niah/a": ["1"], "niah/b": ["2", "3"]}, {}, ["niah"]).outcome("niah/a")
    assert (outcome.passed, outcome.measured, outcome.suite, outcome.worst) == (False, 1, "niah/a", ("1/0",))
