"""The probe: scores query rows of requests against the keys of their whole contexts.

A replay says in its `extra_args` which rows to score. In a step that holds replays one nnsight edit runs for all of
them (`worker.Conducted` starts it): at every attention layer it takes their queries on the way in, and once the layers'
keys are in the cache it scores all rows of all replays together, on the device. `figures` says what becomes of them.
Rows that were kept while answers were written it scores behind a step (`kept_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module

from retrieval_heads.heads.looks import Look, Rows, Span, Weighing
from retrieval_heads.heads.score import HeadScore, is_wanted, needs_of
from retrieval_heads.tracing.emissions import Emission, united
from retrieval_heads.tracing.figures import (
    Arriving,
    OnItsWay,
    columns,
    figures,
    looks_of,
    scored_looks,
    scores_of,
    top_rows,
    weighings_of,
)
from retrieval_heads.tracing.key_weights import Weighed
from retrieval_heads.tracing.layer_kinds import Batch, LayerKind, Memory, Output, Part, Taken
from retrieval_heads.tracing.projections import unembedding_rows
from retrieval_heads.tracing.rows import RowScores, Stretch, joined
from retrieval_heads.tracing.worker import PROBE, Scheduled, runner

HELD_BYTES = 64 << 20
"""Of queries and outputs that wait to be scored: layers whose keys are in the cache are scored before more are held."""

_gated: WeakKeyDictionary[Module, bool] = WeakKeyDictionary()
"""Whether something stands between an attention and its output projection, by the latter."""


@dataclass
class Replay:
    """One request's scores, gathered over the steps that its rows take.

    A replay is one step as a rule; chunked prefill may split it, and then each step adds its rows.

    Args:
        rows: What is replayed.
        layers: How many can be scored.
        scores: What the model can be measured by.

    Raises:
        ValueError: A score looks from rows that are not computed.
    """

    rows: Rows
    layers: int
    scores: Sequence[HeadScore]
    looks: tuple[Look, ...] = field(init=False)
    emitting: Span = field(init=False)
    """The answer's rows whose writing is wanted."""
    top_rows: list[int | None] = field(init=False)
    """Of each look, from which row on the greatest keys are wanted."""
    parts: list[list[list[RowScores]]] = field(init=False)
    """Of each look and each step that scored rows of it, each layer's, while rows are wanted still."""
    weighings: tuple[Weighing, ...] = field(init=False)
    sums: list[dict[int, Tensor]] = field(init=False)
    """Of each weighing, by layer, what the steps so far added up to, `[sums, heads]`."""
    memories: list[Memory] = field(init=False)
    """What the kind of each layer keeps of it from step to step."""
    covered: int = field(init=False)
    computed: int = 0
    saves: dict[str, Arriving] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scores = [score for score in self.scores if is_wanted(score, self.rows.scores)]
        wanted = looks_of(self.rows, self.scores)
        self.looks = scored_looks(self.rows, wanted)
        self.emitting = _emitting(self.rows, self.scores, wanted)
        self.top_rows = top_rows(self.looks, self.scores, wanted)
        self.parts = [[] for _ in self.looks]
        self.weighings = tuple(dict.fromkeys(each for score in weighings_of(self.rows, self.scores) for each in score))
        self.sums = [{} for _ in self.weighings]
        self.memories = [{} for _ in range(self.layers)]
        self.covered = self.rows.first

    @property
    def is_done(self) -> bool:
        """Whether every wanted row is scored."""
        return self.covered == self.rows.end

    def part(self, place: Scheduled, position: int, *, needs_whole_context: bool) -> Part:
        """The request's tokens in this step.

        Args:
            place: Where they are among those of the forward.
            position: Of the first of them in the request.
            needs_whole_context: Whether a layer's scores need every token computed.

        Raises:
            ValueError: Wanted rows came from the prefix cache, so that their queries are never computed; or any
                token, where a layer needs them all.
        """
        if position > self.covered:
            raise ValueError(
                f"rows {self.covered} to {position - 1} came from the prefix cache; "
                f"the probe needs rows {self.rows.first} to {self.rows.end - 1}"
            )
        if position == 0:  # at its start, or again after it was preempted
            self.memories, self.computed = [{} for _ in range(self.layers)], 0
        if position != self.computed and needs_whole_context:
            raise ValueError(f"tokens {self.computed} to {position - 1} came from the prefix cache; a layer needs all")
        self.computed = position + place.tokens
        end = min(self.rows.end, self.computed)
        start = min(max(self.covered, position), end)
        stretches = tuple(
            self._within(look, top_from, start, end) for look, top_from in zip(self.looks, self.top_rows, strict=True)
        )
        weighed = tuple(
            Weighed(each, first, last - first, number=number)
            for number, each in enumerate(self.weighings)
            for first, last in [(max(each.rows[0], start), min(each.rows[1], end))]
            if first < last
        )
        return Part(place.row, place.start, position, place.tokens, stretches, self._emission(start, end), weighed)

    def _emission(self, start: int, end: int) -> Emission | None:
        """The rows among some whose writing is wanted."""
        first, last = max(start, self.emitting[0]), min(end, self.emitting[1])
        if first >= last:
            return None
        answer = self.rows.answer_rows[0]
        return Emission(first, self.rows.answer[first - answer : last - answer], united(self.rows.spans))

    def _within(self, look: Look, top_from: int | None, start: int, end: int) -> Stretch:
        """The rows of a look that are among some."""
        first = max(look.rows[0], start)
        rows = max(0, min(look.rows[1], end) - first)
        if top_from is None:
            return Stretch(first, rows, look.span)
        return Stretch(first, rows, look.span, len(self.rows.needle), top_from)


def _emitting(rows: Rows, scores: Sequence[HeadScore], looks: Sequence[Sequence[Look]]) -> Span:
    """The answer's rows that a score which needs what is written looks at the needle from; of all such, the hull."""
    wanted = [
        look.rows
        for score, each in zip(scores, looks, strict=True)
        if "written" in score.needs
        for look in each
        if look.span == rows.needle_span
    ]
    start, end = rows.answer_rows
    first = min((max(start, row) for row, _ in wanted), default=start)
    return first, max((min(end, row) for _, row in wanted), default=first)


class Probe:
    """The replays of one step.

    Args:
        kinds: Of each layer, in the order in which they run.
        replays: Each with its part of the step.
        device: Where the model is.
        unembed: See `Batch`.
    """

    def __init__(
        self,
        kinds: Sequence[LayerKind],
        replays: Sequence[tuple[Replay, Part]],
        device: torch.device,
        unembed: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._kinds = kinds
        self._replays = replays
        needs = needs_of(score for replay, _ in replays for score in replay.scores)
        self._batch = Batch([part for _, part in replays], device, needs, unembed)
        self._taken: dict[int, Taken] = {}
        self._held = 0
        self._scores: list[RowScores | None] = [None] * len(kinds)

    @classmethod
    def of_step(cls, kinds: Sequence[LayerKind], lacking: frozenset[str] = frozenset()) -> Probe:
        """The probe of the replays that are scheduled now; what is wrong with one is its own error.

        Args:
            kinds: Of each layer.
            lacking: What no layer gives of `looks.NEEDS`.
        """
        needs_whole_context, scores = any(kind.needs_whole_context for kind in kinds), scores_of(kinds, lacking)
        computed, found = runner().input_batch.num_computed_tokens_cpu, []
        for place in runner().scheduled[PROBE]:
            if "error" in place.state:
                continue
            try:
                if "replay" not in place.state:
                    place.state["replay"] = Replay(Rows.of_json(place.extra_args[PROBE]), len(kinds), scores)
                replay = place.state["replay"]
                part = replay.part(place, int(computed[place.row]), needs_whole_context=needs_whole_context)
            except ValueError as error:
                place.state["error"] = str(error)
            else:
                found.append((replay, part))
        return cls(kinds, found, runner().device, partial(unembedding_rows, runner().model))

    def take(self, layer: int, module: Module, values: tuple[Tensor, ...]) -> None:
        """Keep what is wanted of this step's tokens in a layer.

        Args:
            layer: Its index.
            module: vLLM's.
            values: What its kind read, of all tokens of the forward.
        """
        if not self._replays:
            return
        if self._held > HELD_BYTES:
            self._score()
        memories = [replay.memories[layer] for replay, _ in self._replays]
        rows = self._kinds[layer].take(module, values, self._batch, memories)
        kept = [replay.memories[layer] for replay, part in self._replays for _ in part.scored]
        self._taken[layer] = Taken(module, rows, kept)
        self._held += rows.numel() * rows.element_size()

    @property
    def wants_outputs(self) -> bool:
        """Whether what the layers' heads put out is wanted."""
        return bool(self._batch.emissions)

    def take_output(self, layer: int, heads: Tensor, projection: Module, given: Callable[[], Tensor]) -> None:
        """Keep what a layer's heads put out, of the rows whose writing is wanted.

        Args:
            layer: Its index.
            heads: What its attention put out, of all tokens of the forward; this rank's heads.
            projection: What takes it to the hidden state.
            given: What that is given, every rank's heads or this one's: asked for at a layer's first time, and ever
                after if a gate stands between.
        """
        taken = self._taken.get(layer)
        if taken is None:
            return
        value_size = self._kinds[layer].value_size(taken.module)
        rows = heads.flatten(1).index_select(0, self._batch.emitted)
        gates = None
        if may_be_gated(projection):
            passed = _of_rank(given().flatten(1).index_select(0, self._batch.emitted), rows.shape[1])
            if is_gated(projection, passed, rows):
                # What the head put out as nothing was multiplied by nothing that could be told.
                gates = (passed.float() / rows.float()).masked_fill_(rows == 0, 0.0).unflatten(1, (-1, value_size))
        output = Output(rows.unflatten(1, (-1, value_size)), gates, projection)
        self._taken[layer] = replace(taken, output=output)
        for tensor in (output.heads, output.gates):
            self._held += 0 if tensor is None else tensor.numel() * tensor.element_size()

    def finish(self) -> None:
        """Score what was taken, now that every layer's keys are in the cache; send off the replays that are done."""
        if not self._batch.scored:
            return
        self._score()
        scored = [(replay, part) for replay, part in self._replays if part.scored]
        for replay, part in scored:
            replay.covered = part.scored[0].end
        layers = [one for one in self._scores if one is not None]
        done = [replay for replay, _ in scored if replay.is_done]
        groups: dict[object, list[Replay]] = {}
        for replay in done:
            groups.setdefault((replay.rows.scores, replay.rows.per_step), []).append(replay)
        is_plain = len(done) == len(scored) and len(groups) == 1 and not any(any(replay.parts) for replay in done)
        if not is_plain:
            self._keep(scored, layers)
        for alike in groups.values():  # one as a rule: replays of two suites may want other scores
            self._send(alike, layers if is_plain else self._put_together(alike, len(layers)))

    @staticmethod
    def _send(replays: Sequence[Replay], layers: Sequence[RowScores]) -> None:
        """Send off the figures of replays that are done and want the same scores.

        Args:
            replays: The replays.
            layers: Each layer's scores of all their rows, one replay after the other.
        """
        scores = replays[0].scores
        requests = [replay.rows for replay in replays]
        sums = [dict(zip(replay.weighings, replay.sums, strict=True)) for replay in replays]
        together = OnItsWay(figures(layers, requests, scores, sums))
        for place, (replay, own) in enumerate(zip(replays, columns(requests, scores), strict=True)):
            replay.saves["head_scores"] = Arriving(together, place, own)

    @staticmethod
    def _keep(replays: Sequence[tuple[Replay, Part]], layers: Sequence[RowScores]) -> None:
        """Keep each replay's scores, look by look.

        Args:
            replays: Those that have rows in this step, each with its part of it.
            layers: Each layer's scores of these rows.
        """
        start = 0
        for replay, part in replays:
            for stretch, steps in zip(part.stretches, replay.parts, strict=True):
                if stretch.rows:
                    steps.append([one.each(itemgetter(slice(start, start + stretch.rows))) for one in layers])
                    start += stretch.rows

    @staticmethod
    def _put_together(replays: Sequence[Replay], layers: int) -> list[RowScores]:
        """Each layer's scores of replays that are done, look by look of all their steps."""
        whole: list[list[RowScores]] = [[] for _ in range(layers)]
        for replay in replays:
            for steps in replay.parts:
                for layer, parts in enumerate(zip(*steps, strict=True)):
                    whole[layer] += parts
            replay.parts = [[] for _ in replay.looks]
        return [joined(parts) for parts in whole if parts]

    def _score(self) -> None:
        taken, self._taken, self._held = self._taken, {}, 0
        if not self._batch.scored:
            return
        for kind in dict.fromkeys(self._kinds):
            layers = [layer for layer in taken if self._kinds[layer] is kind]
            found = kind.score([taken[layer] for layer in layers], self._batch) if layers else []
            for layer, scores in zip(layers, found, strict=True):
                self._scores[layer] = scores
            if layers and self._batch.weighed:
                each = kind.weigh([taken[layer] for layer in layers], found, self._batch)
                for layer, sums in zip(layers, each, strict=True):
                    self._add(layer, sums)

    def _add(self, layer: int, sums: Sequence[Tensor]) -> None:
        """Add what a layer's weighings of this step came to."""
        for weighed, found in zip(self._batch.weighed, sums, strict=True):
            whole = self._replays[weighed.part][0].sums[weighed.number]
            whole[layer] = whole[layer] + found if layer in whole else found


def may_be_gated(projection: Module) -> bool:
    """Whether something stands between an attention and its output projection, as far as is known."""
    return _gated.get(projection, True)


def is_gated(projection: Module, given: Tensor, heads: Tensor) -> bool:
    """Whether something does, by what they gave and were given; found out once in the life of an engine, since that
    waits for the device.

    Args:
        projection: The projection.
        given: What it was given.
        heads: What the attention put out, of the same rows.
    """
    if projection not in _gated:
        _gated[projection] = not torch.equal(given, heads)
    return _gated[projection]


def _of_rank(rows: Tensor, width: int) -> Tensor:
    """This rank's heads of every rank's."""
    if rows.shape[1] == width:
        return rows
    from vllm.distributed import get_tensor_model_parallel_rank

    return rows[:, get_tensor_model_parallel_rank() * width :][:, :width]
