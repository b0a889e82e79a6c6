"""The probe: scores query rows of replayed requests against the keys of their whole contexts, inside the forward.

A replay says in its `extra_args` which rows to score. In a step that holds replays one nnsight edit runs for all of
them (`worker.Conducted` starts it): at every attention layer it takes their queries on the way in, and once the layers'
keys are in the cache it scores all rows of all replays together, on the device. What leaves the worker is a number for
each head and score, never for a position.

The row that predicts answer token t is the one before it: of prompt length P and n answer ids, rows P−1 … P+n−2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from retrieval_heads.tracing.layer_kinds import Batch, LayerKind, Part, Taken, host_ints
from retrieval_heads.tracing.rows import RowScores, joined
from retrieval_heads.tracing.worker import PROBE, Scheduled, runner

HELD_BYTES = 64 << 20
"""Of queries that wait to be scored: layers whose keys are in the cache are scored before more are held."""


SCORES = ("copy", "copy_reference", "mass", "query")
"""Of every model."""


def scores_of(kinds: Sequence[LayerKind]) -> tuple[str, ...]:
    """The names of a model's scores, in the order of `figures`."""
    signed = ("copy_by_value",) if any(kind.is_signed for kind in kinds) else ()
    return (*SCORES, *signed)


@dataclass(frozen=True)
class Rows:
    """What a replayed request wants scored; positions are tokens of the request.

    Args:
        prompt_tokens: Where the answer starts.
        answer: The answer's token ids; the replay's last token is the one before the last of these.
        needle_span: The needle, half open.
        needle: The needle's token ids.
        question_span: The question, half open; rows that `query` is the mean over.
        positions: Hand back each row's argmax as well: for tests, since that grows with the answer.
    """

    prompt_tokens: int
    answer: tuple[int, ...]
    needle_span: tuple[int, int]
    needle: tuple[int, ...]
    question_span: tuple[int, int]
    positions: bool = False

    @classmethod
    def of(cls, extra_args: Mapping[str, Any]) -> Rows:
        """Read them from a request's `extra_args`."""
        fields = extra_args[PROBE]
        return cls(
            prompt_tokens=fields["prompt_tokens"],
            answer=tuple(fields["answer"]),
            needle_span=(fields["needle_span"][0], fields["needle_span"][1]),
            needle=tuple(fields["needle"]),
            question_span=(fields["question_span"][0], fields["question_span"][1]),
            positions=bool(fields.get("positions")),
        )

    @property
    def answer_rows(self) -> tuple[int, int]:
        """The rows that predicted the answer, half open."""
        return self.prompt_tokens - 1, self.prompt_tokens - 1 + len(self.answer)

    @property
    def first(self) -> int:
        """The first row wanted: nothing at or after it may come from the prefix cache."""
        start, end = self.question_span
        return min(start, self.answer_rows[0]) if start < end else self.answer_rows[0]

    @property
    def end(self) -> int:
        """The row after the last."""
        return self.answer_rows[1]


@dataclass
class Replay:
    """One request's scores, gathered over the steps that its rows take.

    A replay is one step as a rule; chunked prefill may split it, and then each step adds its rows.
    """

    rows: Rows
    layers: int
    parts: list[list[RowScores]] = field(default_factory=list)
    """Of each step that scored rows, each layer's, while rows are wanted still."""
    memories: list[dict[str, Any]] = field(init=False)
    """What the kind of each layer keeps of it from step to step."""
    covered: int = field(init=False)
    computed: int = 0
    saves: dict[str, Arriving] = field(default_factory=dict)
    error: str | None = None

    def __post_init__(self) -> None:
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
        wanted = (min(max(self.covered, position), end), end)
        return Part(place.row, place.start, position, place.tokens, wanted, self.rows.needle_span)


class Probe:
    """The replays of one step.

    Args:
        kinds: Of each layer, in the order in which they run.
        replays: Each with its part of the step.
        device: Where the model is.
    """

    def __init__(
        self, kinds: Sequence[LayerKind], replays: Sequence[tuple[Replay, Part]], device: torch.device
    ) -> None:
        self._kinds = kinds
        self._replays = replays
        self._batch = Batch([part for _, part in replays], device)
        self._taken: dict[int, Taken] = {}
        self._held = 0
        self._scores: list[RowScores | None] = [None] * len(kinds)

    @classmethod
    def of_step(cls, kinds: Sequence[LayerKind]) -> Probe:
        """The probe of the replays that are scheduled now; what is wrong with one is its own error."""
        needs_whole_context = any(kind.needs_whole_context for kind in kinds)
        computed, found = runner().input_batch.num_computed_tokens_cpu, []
        for place in runner().scheduled_replays:
            replay = place.state.get("replay")
            if replay is None:
                replay = place.state["replay"] = Replay(Rows.of(place.extra_args), len(kinds))
            if replay.error is not None:
                continue
            try:
                part = replay.part(place, int(computed[place.row]), needs_whole_context=needs_whole_context)
            except ValueError as error:
                replay.error = str(error)
            else:
                found.append((replay, part))
        return cls(kinds, found, runner().device)

    def take(self, layer: int, module: Any, values: tuple[Tensor, ...]) -> None:
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
        kept = [replay.memories[layer] for replay, part in self._replays if part.wanted[0] < part.wanted[1]]
        self._taken[layer] = Taken(module, rows, kept)
        self._held += rows.numel() * rows.element_size()

    def finish(self) -> None:
        """Score what was taken, now that every layer's keys are in the cache; send off the replays that are done."""
        if not self._batch.scored:
            return
        self._score()
        scored = [replay for replay, part in self._replays if part.wanted[0] < part.wanted[1]]
        for replay, part in zip(scored, self._batch.scored, strict=True):
            replay.covered = part.wanted[1]
        done = [replay for replay in scored if replay.is_done]
        layers = [one for one in self._scores if one is not None]
        if len(done) < len(scored) or any(replay.parts for replay in done):
            layers = self._put_together(scored, layers)
        if not done:
            return
        is_signed = any(kind.is_signed for kind in self._kinds)
        together = OnItsWay(figures(layers, [replay.rows for replay in done], is_signed=is_signed))
        for place, replay in enumerate(done):
            positions = len(replay.rows.answer) if replay.rows.positions else 0
            replay.saves["head_scores"] = Arriving(together, place, len(SCORES) + is_signed + positions)

    def _put_together(self, replays: Sequence[Replay], layers: Sequence[RowScores]) -> list[RowScores]:
        """Each layer's scores of the replays that are done, of all their steps; those of others are kept."""
        whole: list[list[RowScores]] = [[] for _ in layers]
        start = 0
        for replay, stretch in zip(replays, self._batch.stretches, strict=True):
            replay.parts.append([_rows_of(one, start, start + stretch.rows) for one in layers])
            start += stretch.rows
            if replay.is_done:
                for layer, parts in enumerate(zip(*replay.parts, strict=True)):
                    whole[layer] += parts
                replay.parts = []
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


def figures(layers: Sequence[RowScores], requests: Sequence[Rows], *, is_signed: bool) -> Tensor:
    """The scores of finished replays, `[requests, scores, layers, heads]` float32 in the order of `scores_of`.

    Every rank's heads are in order, NaN where a layer has fewer heads than another. Where a request wants `positions`,
    an answer row's argmax for each head follows: `[requests, scores + answer rows, layers, heads]`. Nothing here waits
    for the device, nor is anything done layer by layer where layers have as many heads.

    Args:
        layers: Each layer's scores of all requests' rows, one request after the other.
        requests: Whose they are.
        is_signed: Whether `copy_by_value` is wanted.

    Raises:
        ValueError: The rows scored are not the rows wanted.
    """
    wanted = sum(rows.end - rows.first for rows in requests)
    if any(scores.argmax.shape[0] != wanted for scores in layers):
        raise ValueError(f"{layers[0].argmax.shape[0]} rows were scored where {wanted} were wanted")
    grid = _Grid(requests, layers[0].argmax.device)
    found: list[Tensor] = [torch.empty(0)] * len(layers)
    for heads in dict.fromkeys(scores.argmax.shape[1] for scores in layers):
        places = [place for place, scores in enumerate(layers) if scores.argmax.shape[1] == heads]
        alike = _figures([layers[place] for place in places], grid, is_signed=is_signed)
        for place, one in zip(places, alike.unbind(1), strict=True):
            found[place] = one.flatten(0, 1)
    return gather_heads(found).unflatten(0, (-1, len(requests))).transpose(0, 1)


def _figures(layers: Sequence[RowScores], grid: _Grid, *, is_signed: bool) -> Tensor:
    """`[scores, layers, requests, heads]` of layers with as many heads."""
    argmax = grid.answers(torch.stack([scores.argmax for scores in layers]))
    weight = (
        torch.stack([scores.span_logsumexp for scores in layers]) - torch.stack([scores.logsumexp for scores in layers])
    ).exp()
    scores = [*_copies(argmax, grid), grid.answer_mean(weight), grid.question_mean(weight)]
    if is_signed:
        by_value = [one.argmax if one.argmax_by_value is None else one.argmax_by_value for one in layers]
        scores.append(_copies(grid.answers(torch.stack(by_value)), grid)[0])
    positions = [argmax.float().movedim(2, 0)] if any(rows.positions for rows in grid.requests) else []
    return torch.cat([torch.stack(scores), *positions])


class _Grid:
    """The rows of several requests as a rectangle: shorter ones are filled up with rows that do not count.

    Args:
        requests: Whose rows they are, one request after the other.
        device: Where the scores are.
    """

    def __init__(self, requests: Sequence[Rows], device: torch.device) -> None:
        self.requests = requests
        self._device = device
        self._starts = [sum(rows.end - rows.first for rows in requests[:place]) for place in range(len(requests))]

    @cached_property
    def _answer_rows(self) -> tuple[Tensor, Tensor]:
        return self._rectangle([range(*rows.answer_rows) for rows in self.requests])

    @cached_property
    def _question_rows(self) -> tuple[Tensor, Tensor]:
        return self._rectangle([range(*rows.question_span) for rows in self.requests])

    @cached_property
    def counts(self) -> Tensor:
        """Whether an answer row counts, `[requests, answer rows]`."""
        return self._answer_rows[1]

    @cached_property
    def answer(self) -> Tensor:
        """Token ids, `[requests, answer rows]`; -1 beyond an answer's end."""
        return self._padded([rows.answer for rows in self.requests])

    @cached_property
    def needle(self) -> Tensor:
        """Token ids, `[requests, needle tokens]`; -2 beyond a needle's end, which is no answer's."""
        return self._padded([rows.needle for rows in self.requests], -2)

    @cached_property
    def span(self) -> Tensor:
        """Start and length of each needle, `[2, requests, 1, 1]`."""
        starts, ends = zip(*(rows.needle_span for rows in self.requests), strict=True)
        lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        return host_ints([*starts, *lengths], self._device).view(2, -1, 1, 1)

    def answers(self, values: Tensor) -> Tensor:
        """`[layers, requests, answer rows, heads]` of `[layers, rows, heads]`."""
        index, _ = self._answer_rows
        return values[:, index]

    def answer_mean(self, values: Tensor) -> Tensor:
        """The mean over each request's answer rows, `[layers, requests, heads]` of `[layers, rows, heads]`."""
        return self._mean(values, *self._answer_rows)

    def question_mean(self, values: Tensor) -> Tensor:
        """The same over question rows; NaN where there is no question."""
        return self._mean(values, *self._question_rows)

    @staticmethod
    def _mean(values: Tensor, index: Tensor, counts: Tensor) -> Tensor:
        # `where` and not a product: NaN of a row that does not count must not get in.
        chosen = torch.where(counts[:, :, None], values[:, index], 0.0)
        return chosen.sum(2) / counts.sum(1)[:, None]

    def _rectangle(self, positions: Sequence[range]) -> tuple[Tensor, Tensor]:
        """Index among all rows, and whether it counts, `[requests, most]` each."""
        most = max(map(len, positions))
        index: list[int] = []
        for start, rows, wanted in zip(self._starts, self.requests, positions, strict=True):
            own = [start + position - rows.first for position in wanted]
            index += own + [-1] * (most - len(own))
        at = host_ints(index, self._device).view(len(positions), most)
        return at.clamp(min=0), at >= 0

    def _padded(self, rows: Sequence[Sequence[int]], filler: int = -1) -> Tensor:
        most = max(map(len, rows))
        flat = [number for row in rows for number in (*row, *[filler] * (most - len(row)))]
        return host_ints(flat, self._device).view(len(rows), most)


def _copies(argmax: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """`copy` and `copy_reference` of each head, `[layers, requests, heads]`.

    arXiv 2404.15574, section 2: the share of the needle's tokens that a head copied. A step counts where the head's
    argmax lies in the needle on the very token that the model then emits; the paper's code counts every such step,
    so that an answer repeating itself counts again.

    Args:
        argmax: Of the answers' rows, `[layers, requests, answer rows, heads]`.
        grid: The requests'.
    """
    start, length = grid.span
    place = argmax.long() - start
    inside = (place >= 0) & (place < length) & grid.counts[:, :, None]
    place = torch.minimum(place.clamp(min=0), length - 1)
    request = torch.arange(len(grid.requests), device=argmax.device)[:, None, None]
    hit = inside & (grid.needle[request, place] == grid.answer[:, :, None])
    layers, requests, _, heads = argmax.shape
    copied = torch.zeros(layers, requests, heads, grid.needle.shape[1], device=argmax.device)
    copied.scatter_reduce_(3, place.transpose(2, 3), hit.transpose(2, 3).float(), "amax")
    tokens = length[:, :, 0]
    return copied.sum(3) / tokens, hit.float().sum(2) / tokens


class OnItsWay:
    """A tensor that is being copied to the host, behind what the device has been given to do before."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._copied = tensor, None
        if tensor.is_cuda:
            # Pinned: a copy to any other memory waits for the device.
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def arrived(self) -> Tensor:
        """Wait for it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensor


@dataclass(frozen=True)
class Arriving:
    """One replay's figures among those of a step.

    Args:
        together: All of the step's, `[replays, figures, layers, heads]`.
        place: Which replay's.
        count: How many figures are its own.
    """

    together: OnItsWay
    place: int
    count: int

    def arrived(self) -> NDArray[Any]:
        """Wait for them; `[figures, layers, heads]`."""
        found: NDArray[Any] = self.together.arrived()[self.place, : self.count].numpy()
        return found


def _rows_of(scores: RowScores, start: int, end: int) -> RowScores:
    by_value = scores.argmax_by_value
    return RowScores(
        scores.argmax[start:end],
        scores.logsumexp[start:end],
        scores.span_logsumexp[start:end],
        None if by_value is None else by_value[start:end],
    )


def gather_heads(layers: Sequence[Tensor]) -> Tensor:
    """Every rank's heads of every layer, side by side.

    Args:
        layers: `[figures, heads of this rank]` each; as many heads on every rank.

    Returns:
        `[figures, layers, heads]`, NaN beyond a layer's heads.
    """
    from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

    ranks = get_tensor_model_parallel_world_size()
    stacked = _padded(layers)
    if ranks == 1:
        return stacked
    parts = tensor_model_parallel_all_gather(stacked, dim=-1).unflatten(-1, (ranks, -1))
    return _padded([parts[:, place, :, : layer.shape[1]].flatten(1) for place, layer in enumerate(layers)])


def _padded(layers: Sequence[Tensor]) -> Tensor:
    most = max(layer.shape[1] for layer in layers)
    return torch.stack(
        [
            layer if layer.shape[1] == most else pad(layer, (0, most - layer.shape[1]), value=math.nan)
            for layer in layers
        ],
        dim=1,
    )
