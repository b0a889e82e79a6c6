"""Which cells are asked where not all are: decided as results come, by everybody alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_retrieval_heads.plan import SelectedCell
from pytest_retrieval_heads.sampling import Choice, Sampling, bisected, until_decided
from retrieval_heads.engine.jobs import Run
from retrieval_heads.engine.server import Server
from retrieval_heads.gates import check
from retrieval_heads.gates.expression import EffectiveLength, Gate
from retrieval_heads.gates.halving import next_length
from retrieval_heads.gates.selection import select
from retrieval_heads.matrix.gate import NotWorse
from retrieval_heads.runs.place import LENGTH, Place
from retrieval_heads.runs.record import Record
from retrieval_heads.tasks.task import Cell, Question

LENGTHS = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


def cells(count: int, length: int = 512) -> list[SelectedCell]:
    suite = cast(Any, SimpleNamespace(name="tale", path=Path("tale.yaml")))
    return [
        SelectedCell(suite, Cell(f"cell {number}", f"{length}/{number}", Place(((LENGTH, length),), number)), "tale")
        for number in range(count)
    ]


def record(cell: SelectedCell, passed: bool) -> Record:
    length = cell.cell.place.get(LENGTH)
    return Record.model_validate(
        {
            "kind": "niah",
            "suite": "tale",
            "cell": cell.cell.id,
            "context_length": length,
            "document_depth": 0.0,
            "needle": "",
            "question": "",
            "status": "pass" if passed else "low",
            "metric": "key_words",
            "scores": {"key_words": float(passed)},
            "passed": passed,
        }
    )


def played(choice: Choice, passes: Any) -> tuple[list[SelectedCell], str]:
    """All that are asked, and why no more are."""
    asked: list[SelectedCell] = []
    part: Sequence[SelectedCell] = next(choice)
    while True:
        asked += part
        try:
            part = choice.send([record(cell, passes(cell)) for cell in part])
        except StopIteration as end:
            return asked, end.value


@pytest.mark.parametrize("reached", [0, *LENGTHS])
def test_the_boundary_is_found_without_asking_every_length(reached: int) -> None:
    means: dict[int, float | None] = {}
    while (length := next_length(LENGTHS, means, 0.85)) is not None:
        assert length not in means
        means[length] = 1.0 if length <= reached else 0.2
    assert len(means) <= 4
    beyond = [length for length in LENGTHS if length > reached]
    assert {*beyond[:1], *([reached] if reached else [])} <= set(means), "both sides of it were asked"


@pytest.mark.parametrize(
    ("means", "length"),
    [
        ({512: 0.0}, None),
        ({512: None}, None),
        ({512: 0.5}, 8192),
        ({512: 0.5, 8192: 0.55}, 32768),
        ({512: 0.5, 8192: None}, 2048),
        ({512: 0.5, 8192: 0.9}, None),  # the best is one beyond, of which the shortest does not hold its share
    ],
)
def test_what_is_asked_next(means: dict[int, float | None], length: int | None) -> None:
    assert next_length(LENGTHS, means, 0.85) == length


@pytest.mark.parametrize("shares", [[0.85], [0.85, 0.4]])
@pytest.mark.parametrize("reached", [0, *LENGTHS])
def test_bisection_ends_at_what_all_cells_give(reached: int, shares: list[float]) -> None:
    every = [cell for length in LENGTHS for cell in cells(5, length)]
    measures = [EffectiveLength(share) for share in shares]

    def passes(cell: SelectedCell) -> bool:
        length = cell.cell.place.get(LENGTH)
        assert isinstance(length, int)
        return length <= reached or (length <= 16384 and cell.cell.place.seed % 2 == 0 and reached > 0)

    asked, why = played(bisected(measures, every), passes)
    assert len({cell.key for cell in asked}) == len(asked)
    assert "if longer is not easier" in why
    for measure in measures:
        found, whole = (
            _effective_length(measure, [record(cell, passes(cell)) for cell in some]) for some in (asked, every)
        )
        assert found == whole


def _effective_length(measure: EffectiveLength, records: Sequence[Record]) -> float | None:
    selected = {one.cell for one in records}
    assert not select(records, selected).gaps
    (outcome,) = check([Gate(measure, ">=", 1.0)], records, selected).outcomes
    return outcome.measured


def test_a_fall_is_certain_soon_and_an_equal_setting_is_asked_whole() -> None:
    every = cells(60)
    gates = [NotWorse("pass_rate", 0.1)]
    asked, why = played(until_decided(gates, every, lambda cell: record(cell, True)), lambda _: False)
    assert asked == every[:11]
    assert why == "11 of 60 cells made the setting's gates certain; this one was not needed"
    asked, _ = played(until_decided(gates, every, lambda cell: record(cell, True)), lambda _: True)
    assert asked == every
    two = [NotWorse("pass_rate", 0.1), NotWorse("key_words", 0.9)]
    asked, _ = played(until_decided(two, every, lambda cell: record(cell, True)), lambda _: True)
    assert asked == every, "one of them is never certain"


def test_tests_wait_until_it_is_decided_whether_their_cell_is_asked() -> None:
    every, given = cells(60), list[tuple[int, bool]]()

    def submit(some: Sequence[SelectedCell], are_more_to_come: bool) -> None:
        given.append((len(some), are_more_to_come))

    choice = until_decided([NotWorse("pass_rate", 0.1)], every, lambda cell: record(cell, True))
    sampling = Sampling(choice, submit, lambda cell: record(cell, False))
    sampling.begin()
    assert given == [(8, True)]
    assert not sampling.is_spared(every[7]), "that is known at once"
    sampling.go_on()
    assert [sampling.is_spared(cell) for cell in reversed(every)] == [True] * 49 + [False] * 11
    assert given == [(8, True), (3, True), (0, False)]


def test_what_goes_wrong_is_told_to_every_test_that_waits() -> None:
    def broken(_: SelectedCell) -> Record:
        raise ZeroDivisionError

    every = cells(60)
    choice = until_decided([NotWorse("pass_rate", 0.1)], every, broken)
    sampling = Sampling(choice, lambda some, are_more: None, broken)
    sampling.begin()
    sampling.go_on()
    for cell in every[8:]:
        with pytest.raises(ZeroDivisionError):
            sampling.is_spared(cell)


def test_once_it_was_denied_no_cells_of_a_suite_are_to_come() -> None:
    server, run = Server("key"), Run("run")
    question = {"question": Question("tale", "niah").to_json(), "cells": []}
    for more, is_unfinished in [(True, True), (True, True), (False, False), (True, False)]:
        server._submit(run, {**question, "more": more})
        assert server.unfinished == {"tale": is_unfinished}
