"""Which rows are kept of requests that are computed in any order, in pieces and again; torch alone, no engine."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Module

from retrieval_heads.heads.looks import Rows
from retrieval_heads.tracing import kept_rows, probe
from retrieval_heads.tracing.figures import looks_of
from retrieval_heads.tracing.kept_rows import KeptLayer, KeptRows
from retrieval_heads.tracing.layer_kinds import SoftmaxAttention

pytestmark = pytest.mark.engine

LAYERS, HEADS, SIZE = 2, 2, 4


class Attention(Module):
    """Puts out ten times its queries."""

    num_heads, head_size, head_size_v = HEADS, SIZE, SIZE

    def forward(self, query: Tensor, key: None, value: None) -> Tensor:
        return query * 10


class Projection(Module):
    """Is given what its attention put out, times a gate."""

    def forward(self, heads: Tensor) -> Tensor:
        return heads


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_rows, "_current_context", lambda: None)


def keeper(places: int = 10_000) -> KeptRows:
    layers = [KeptLayer(Attention(), SoftmaxAttention(), Projection()) for _ in range(LAYERS)]
    found = KeptRows(layers, frozenset(), SimpleNamespace(dtype=torch.float32))
    found._pool.most = places
    return found


def step(rows: KeptRows, batch: list[tuple[str, int, int]], *, gate: float = 1.0, version: int = 0) -> None:
    """One forward.

    Args:
        rows: Who keeps them.
        batch: Of each request, its name, the position of its first token and how many they are, in their order.
        gate: What outputs are multiplied by before they are projected.
        version: Of the numbers that are computed.
    """
    starts = [sum(tokens for *_, tokens in batch[:place]) for place in range(len(batch) + 1)]
    rows.begin((name, row, starts[row], position, tokens) for row, (name, position, tokens) in enumerate(batch))
    computed = [number(name, at, version) for name, first, tokens in batch for at in range(first, first + tokens)]
    for place, layer in enumerate(rows._layers):
        queries = torch.tensor(computed)[:, None].expand(-1, HEADS * SIZE) + place / 8
        assert layer.projection is not None
        layer.projection(layer.module(queries, None, None) * gate)
    rows.end()


def number(name: str, position: int, version: int) -> float:
    return position + 128.0 * "abc".index(name) + 512 * version


def found(rows: KeptRows, name: str, what: str = "queries", layer: int = 0) -> list[float] | None:
    """What is kept of a request, row by row; `None` where a row is missing."""
    one = rows._requests[name]
    if one.is_lost:
        return None
    read = (
        rows._pool.read((layer, what), torch.tensor(one.places, dtype=torch.int64)) if one.places else torch.ones(0, 1)
    )
    return [float(value) for value in read[:, 0]]


def taken(rows: KeptRows) -> int:
    return rows._pool._size - len(rows._pool._free)


@st.composite
def histories(draw: st.DrawFn) -> list[Any]:
    """Steps of three requests: some are left out, are computed in pieces, or begin again where a cache ends."""
    at, steps = {"a": 0, "b": 0, "c": 0}, []
    for _ in range(draw(st.integers(1, 12))):
        batch = []
        for name in draw(st.permutations(sorted(at))):
            doing = draw(st.sampled_from(["nothing", "goes on", "goes on", "begins again", "comes from the cache"]))
            if doing == "nothing":
                continue
            if doing == "begins again":
                at[name] = draw(st.integers(0, at[name]))
            if doing == "comes from the cache":
                at[name] += draw(st.integers(0, 3))
            tokens = draw(st.integers(1, 5))
            batch.append((name, at[name], tokens))
            at[name] += tokens
        if batch:
            steps.append(batch)
    return steps


@given(histories(), st.integers(0, 9), st.sampled_from([10, 10_000]))
def test_each_row_is_kept_as_it_was_computed_last_or_the_request_is_lost(
    history: list[Any], first: int, places: int
) -> None:
    rows, known, lost = keeper(places), {name: [] for name in "abc"}, set()
    for name in "abc":
        rows.ask(name, name, first, ())
    for version, batch in enumerate(history):
        step(rows, batch, version=version)
        for name, position, tokens in batch:
            wanted = [at for at in range(position, position + tokens) if at >= first]
            if wanted and wanted[0] > first + len(known[name]):
                lost.add(name)
            for at in wanted:
                known[name][at - first : at - first + 1] = [number(name, at, version)]
    for name in "abc":
        of_name = found(rows, name)
        if name in lost:
            assert of_name is None
        elif of_name is None:
            assert places == 10, "there was room"
        else:
            assert of_name == known[name]
            assert found(rows, name, layer=1) == [value + 1 / 8 for value in known[name]]
            if known[name]:
                assert found(rows, name, "heads") == [value * 10 for value in known[name]]
    assert taken(rows) <= places
    rows.forget("abc")
    assert taken(rows) == 0
    assert not rows._requests


def rows_between(first: int, end: int, scores: tuple[str, ...] = ("mass",)) -> Rows:
    return Rows(first + 1, (7,) * (end - first), (1, 2), (7,), (0, 0), scores=scores)


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The parts that are probed, with the places of their rows; nothing is scored."""
    seen: list[Any] = []
    monkeypatch.setattr(KeptRows, "_probe", lambda self, replays, places: seen.append((replays, places.tolist())))
    monkeypatch.setattr(kept_rows, "_context", lambda context: nullcontext())
    return seen


def test_rows_are_scored_where_they_stand_in_the_batch_of_the_step_that_ended_their_request(probed: list[Any]) -> None:
    rows = keeper()
    for name, first in (("a", 2), ("b", 4)):
        rows.ask(name, f"the {name}", first, ())
    step(rows, [("a", 0, 5), ("c", 0, 4), ("b", 0, 6)])
    step(rows, [("b", 6, 1), ("a", 5, 1)])
    asked = {"1": ("the b", rows_between(4, 7)), "2": ("the a", rows_between(3, 5)), "3": ("the b", rows_between(5, 6))}
    assert set(rows.score(asked)) == {"1", "2", "3"}
    ((replays, places),) = probed
    b, a = rows._requests["b"].places, rows._requests["a"].places
    assert places == [*b, *a[1:3], b[1]]
    assert [(part.row, part.start, part.position, part.tokens) for _, part in replays] == [
        (0, 0, 4, 3),
        (1, 3, 3, 2),
        (0, 5, 5, 1),
    ]


def test_rows_of_an_earlier_step_or_fewer_than_are_wanted_are_not_scored(probed: list[Any]) -> None:
    rows = keeper()
    for name in "abc":
        rows.ask(name, name, 2, ("mass",))
    step(rows, [("a", 0, 6), ("b", 0, 6), ("c", 0, 6)])
    step(rows, [("b", 6, 1), ("c", 6, 1)])
    asked = {
        "gone": ("a", rows_between(2, 6)),
        "earlier": ("b", rows_between(1, 6)),
        "later": ("b", rows_between(2, 8)),
        "outputs": ("b", rows_between(2, 6, ("mass", "write"))),
        "unknown": ("d", rows_between(2, 6)),
        "fine": ("c", rows_between(2, 7)),
    }
    assert rows.score(asked) == {"fine": ({}, None)}
    assert len(probed) == 1


def test_a_mistake_in_one_replay_is_its_own_error(probed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = keeper()
    for name in "ab":
        rows.ask(name, name, 2, ())
    step(rows, [("a", 0, 6), ("b", 0, 6)])

    def looks(of: Rows, scores: Any) -> Any:
        if of.answer[0] == 8:
            raise ZeroDivisionError("of a user's score")
        return looks_of(of, scores)

    monkeypatch.setattr(probe, "looks_of", looks)
    bad = replace(rows_between(2, 6), answer=(8, 8, 8, 8))
    found = rows.score({"bad": ("a", bad), "good": ("b", rows_between(2, 6))})
    assert found == {"bad": ({}, "ZeroDivisionError: of a user's score"), "good": ({}, None)}


def test_what_scoring_raises_is_the_error_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_rows, "_context", lambda context: nullcontext())
    rows = keeper()
    rows.ask("a", "a", 2, ())
    step(rows, [("a", 0, 6)])
    monkeypatch.setattr(rows, "_probe", lambda *_: 1 / 0)
    assert rows.score({"it": ("a", rows_between(2, 6))}) == {"it": ({}, "ZeroDivisionError: division by zero")}


def test_what_a_gate_lets_through_is_kept_where_there_is_one() -> None:
    plain, gated = keeper(), keeper()
    for rows, gate in ((plain, 1.0), (gated, 0.5)):
        rows.ask("a", "a", 0, ())
        step(rows, [("a", 0, 3)], gate=gate)
    assert found(gated, "a", "given") == [5 * value for value in found(gated, "a") or ()]
    assert (0, "given") not in plain._pool._rows


def test_what_heads_put_out_is_not_kept_for_scores_that_do_not_read_it() -> None:
    rows = keeper()
    rows.ask("a", "a", 0, ("copy", "mass"))
    step(rows, [("a", 0, 3)])
    assert set(rows._pool._rows) == {(0, "queries"), (1, "queries")}


def test_a_request_that_nobody_asked_for_costs_nothing() -> None:
    rows = keeper()
    step(rows, [("a", 0, 3)])
    assert taken(rows) == 0
    assert not rows._pool._rows
