"""Rows that a step leaves to be scored behind it: what a replay would compute again, kept as it is computed.

On a CPU every step runs the model's Python, so that a hook on each attention sees every token once. A request says from
which row on its queries are wanted; they stay in memory until it has finished, and are scored then against its keys:
its step's block table stands, and vLLM gives its blocks to nobody before it schedules again. So no token of its
answer is computed twice, which takes 8 % of a generation's tokens for answers of a sentence, and a quarter for short
prompts. On CUDA decode steps are graphs, in which no hook runs, and memory is dearer: there a replay computes them.

Checked on vLLM 0.32.0.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from vllm.v1.kv_cache_interface import FullAttentionSpec

from retrieval_heads.heads.looks import Rows
from retrieval_heads.heads.score import is_wanted, needs_of
from retrieval_heads.plain import Fields
from retrieval_heads.tracing.figures import scores_of
from retrieval_heads.tracing.layer_kinds import LayerKind, Part
from retrieval_heads.tracing.probe import Probe, Replay, is_gated, may_be_gated
from retrieval_heads.tracing.projections import unembedding_rows
from retrieval_heads.tracing.worker import Scheduled, failure

KEPT_BYTES = 256 << 20
"""Of queries and outputs, at most: of a request that finds no place, none are kept, and it is replayed. Where a gate
stands behind attention, what it lets through takes half as much again.
"""


@dataclass(frozen=True)
class KeptLayer:
    """A layer whose rows are kept.

    Args:
        module: Its attention.
        kind: How it is scored.
        projection: What takes its heads to the hidden state; `None` where what it writes cannot be told.
    """

    module: Module
    kind: LayerKind
    projection: Module | None


@dataclass
class _Request:
    """A request whose rows are kept.

    Args:
        name: By which it is asked for.
        first: Position of the first row.
        writes: Whether what heads put out is wanted as well.
    """

    name: str
    first: int
    writes: bool
    places: list[int] = field(default_factory=list)
    """Of its rows from the first on, in the pool."""
    row: int = -1
    """In the batch of the last step that it was in."""
    step: int = -1
    """The number of that step."""
    is_lost: bool = False
    """Whether a row is missing."""

    @property
    def end(self) -> int:
        """Position behind the last row."""
        return self.first + len(self.places)


class Pool:
    """Rows of all layers, in as many places as are needed.

    Args:
        row_bytes: Of a row of all layers.
    """

    def __init__(self, row_bytes: int) -> None:
        self.most = KEPT_BYTES // row_bytes
        self._size = 0
        self._free: list[int] = []
        self._rows: dict[object, Tensor] = {}

    def take(self, count: int) -> list[int] | None:
        """Places for so many rows; `None` where there are too few."""
        missing = count - len(self._free)
        if missing > 0:
            if self._size + missing > self.most:
                return None
            size = min(self.most, max(self._size + missing, 2 * self._size))
            self._free += range(self._size, size)
            self._size = size
        return [self._free.pop() for _ in range(count)]

    def give_back(self, places: Iterable[int]) -> None:
        """These are wanted no more."""
        self._free += places

    def write(self, key: object, places: Tensor, rows: Tensor) -> None:
        """Write rows of a layer."""
        self._sized(key, rows).index_copy_(0, places, rows)

    def read(self, key: object, places: Tensor) -> Tensor:
        """Read them; what was never written there is anything."""
        return self._sized(key, self._rows[key]).index_select(0, places)

    def _sized(self, key: object, like: Tensor) -> Tensor:
        kept = self._rows.get(key, like[:0])
        if len(kept) < self._size:
            grown = kept.new_empty((self._size, kept.shape[1]))
            grown[: len(kept)] = kept
            kept = self._rows[key] = grown
        return kept


class KeptRows:
    """The rows that a worker keeps.

    Args:
        layers: In the order in which they run.
        lacking: What no layer gives of `looks.NEEDS`.
        runner: The worker's model runner.
    """

    def __init__(self, layers: Sequence[KeptLayer], lacking: frozenset[str], runner: Any) -> None:
        self._layers = layers
        self._scores = scores_of([layer.kind for layer in layers], lacking)
        self._runner = runner
        self._requests: dict[str, _Request] = {}
        """By vLLM's names."""
        numbers = sum(
            layer.kind.heads(layer.module) * (layer.module.head_size + layer.kind.value_size(layer.module))
            for layer in layers
        )
        self._pool = Pool(numbers * runner.dtype.itemsize)
        self._step = 0
        self._places: tuple[Tensor, Tensor] | None = None
        """Of the step that runs: the rows to keep, among its tokens, and where to."""
        self._writes = False
        self._heads = torch.empty(0)
        """What the last layer put out of them."""
        self._context: Any = None
        """vLLM's forward context of the last step that had such rows."""
        for number, layer in enumerate(layers):
            layer.module.register_forward_pre_hook(partial(self._take_queries, number), with_kwargs=True)
            if layer.projection is not None:
                layer.module.register_forward_hook(partial(self._take_heads, number))
                layer.projection.register_forward_pre_hook(partial(self._take_given, number), with_kwargs=True)

    def ask(self, request: str, name: str, first: int, scores: Sequence[str]) -> None:
        """Keep a request's rows.

        Args:
            request: vLLM's name for it.
            name: By which it will be asked for.
            first: Position of the first row.
            scores: Names of those that heads will be scored by; none stands for the usual ones.
        """
        wanted = [score for score in self._scores if is_wanted(score, scores)]
        self._requests[request] = _Request(name, first, "written" in needs_of(wanted))

    def begin(self, batch: Iterable[tuple[str, int, int, int, int]]) -> None:
        """Find a step's rows.

        Args:
            batch: Of each request in it, its name, its row, where its tokens start among all of the forward, the
                position of the first of them, and how many they are.
        """
        self._step += 1
        rows: list[int] = []
        places: list[int] = []
        self._writes = False
        for request, row, start, position, tokens in batch:
            one = self._requests.get(request)
            if one is None or one.is_lost:
                continue
            one.row, one.step = row, self._step
            first, end = max(one.first, position), position + tokens
            if first >= end:
                continue
            more = self._pool.take(max(0, end - one.end)) if first <= one.end else None
            if more is None:  # earlier rows came from the cache, or there is no room
                self._lose(one)
                continue
            one.places += more
            rows += range(start + first - position, start + tokens)
            places += one.places[first - one.first : end - one.first]
            self._writes |= one.writes
        self._places = (torch.tensor(rows), torch.tensor(places)) if rows else None

    def end(self) -> None:
        """The step is over."""
        self._places = None

    def forget(self, requests: Iterable[str]) -> None:
        """Of requests that vLLM has let go of."""
        for request in requests:
            if (one := self._requests.pop(request, None)) is not None:
                self._lose(one)

    def score(self, asked: Mapping[str, tuple[str, Rows]]) -> dict[str, tuple[dict[str, Any], str | None]]:
        """Score rows of requests that finished in the last step.

        Args:
            asked: Of each replay, the name that its rows were asked for by, and what is read of them.

        Returns:
            As `Conducted.collect_carried`, by the replays' names; without those whose rows were not kept.
        """
        found: dict[str, tuple[dict[str, Any], str | None]] = {}
        replays: dict[str, tuple[Replay, Part]] = {}
        places: list[int] = []
        by_name = {one.name: one for one in self._requests.values()}
        for replay, (name, rows) in asked.items():
            one = by_name.get(name)
            if one is None or not self._has(one, rows):
                continue
            try:
                place = Scheduled({}, {}, one.row, len(places), rows.end - rows.first)
                wanted = Replay(rows, len(self._layers), self._scores)
                part = wanted.part(place, rows.first, needs_whole_context=False)
            except Exception as error:  # of a score whose looks are not of these rows: of this request alone
                found[replay] = {}, failure(error)
                continue
            replays[replay] = wanted, part
            places += one.places[rows.first - one.first : rows.end - one.first]
        if not replays:
            return found
        told = None
        try:
            with torch.inference_mode(), _context(self._context):
                self._probe(list(replays.values()), torch.tensor(places))
        except Exception as error:  # told of each of these, as an edit's is
            told = failure(error)
        for replay, (wanted, _) in replays.items():
            found[replay] = {key: save.arrived() for key, save in wanted.saves.items()}, told
        return found

    def _has(self, one: _Request, rows: Rows) -> bool:
        """Whether what a replay reads was kept, and the keys are still there."""
        needs = needs_of(score for score in self._scores if is_wanted(score, rows.scores))
        is_there = one.first <= rows.first <= rows.end <= one.end and (one.writes or "written" not in needs)
        return is_there and not one.is_lost and one.step == self._step

    def _probe(self, replays: Sequence[tuple[Replay, Part]], places: Tensor) -> None:
        kinds = [layer.kind for layer in self._layers]
        unembed = partial(unembedding_rows, self._runner.model)
        probe = Probe(kinds, replays, self._runner.device, unembed)
        for number, layer in enumerate(self._layers):
            queries = self._pool.read((number, "queries"), places).unflatten(1, (layer.kind.heads(layer.module), -1))
            probe.take(number, layer.module, (queries,))
            if probe.wants_outputs and layer.projection is not None:
                heads = self._pool.read((number, "heads"), places)
                probe.take_output(number, heads, layer.projection, partial(self._pool.read, (number, "given"), places))
        probe.finish()

    def _lose(self, one: _Request) -> None:
        self._pool.give_back(one.places)
        one.places, one.is_lost = [], True

    def _take_queries(self, layer: int, module: Module, *given: Any) -> None:
        if self._places is None:
            return
        if layer == 0:
            self._context = _current_context()
        rows, places = self._places
        self._pool.write((layer, "queries"), places, _first(*given).flatten(1).index_select(0, rows))

    def _take_heads(self, layer: int, module: Module, arguments: tuple[Tensor, ...], heads: Tensor) -> None:
        if self._places is None or not self._writes:
            return
        rows, places = self._places
        self._heads = heads.flatten(1).index_select(0, rows)
        self._pool.write((layer, "heads"), places, self._heads)

    def _take_given(self, layer: int, projection: Module, *given: Any) -> None:
        if self._places is None or not self._writes or not may_be_gated(projection):
            return
        rows, places = self._places
        passed = _first(*given).flatten(1).index_select(0, rows)
        if is_gated(projection, passed, self._heads):
            self._pool.write((layer, "given"), places, passed)


def keep_rows(worker: Any, layers: Sequence[tuple[str, LayerKind, str | None]], lacking: frozenset[str]) -> bool:
    """In a worker: keep rows from now on, of requests that ask for it (`worker.KEEP`); whether that can be done.

    Args:
        worker: vLLM's.
        layers: Of each its attention's path in the model, its kind, and its projection's path where what it writes can
            be told.
        lacking: What no layer gives of `looks.NEEDS`.
    """
    runner = worker.model_runner
    groups = runner.kv_cache_config.kv_cache_groups
    if any(type(group.kv_cache_spec) is not FullAttentionSpec for group in groups):
        return False  # keys are let go of while a request is at work
    modules = {envoy.path: envoy._module for envoy in runner.nnsight_model.modules()}
    found = [KeptLayer(modules[path], kind, projection and modules[projection]) for path, kind, projection in layers]
    runner.kept_rows = KeptRows(found, lacking, runner)
    return True


def score_kept(worker: Any, asked: Mapping[str, tuple[str, Fields]]) -> bytes:
    """In a worker: see `KeptRows.score`; pickled.

    Args:
        worker: vLLM's.
        asked: As there, `Rows` as plain JSON.
    """
    kept = worker.model_runner.kept_rows
    rows = {replay: (name, Rows.of_json(fields)) for replay, (name, fields) in asked.items()}
    return pickle.dumps({} if kept is None else kept.score(rows))


def _first(arguments: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> Tensor:
    """The first of what a module is called with."""
    return next(iter((*arguments, *named.values())))


def _current_context() -> Any:
    from vllm.forward_context import get_forward_context

    return get_forward_context()


def _context(context: Any) -> AbstractContextManager[None]:
    from vllm.forward_context import override_forward_context

    found: AbstractContextManager[None] = override_forward_context(context)
    return found
