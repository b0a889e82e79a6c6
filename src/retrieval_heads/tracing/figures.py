"""From what a step's rows saw to the figures of its replays, on the device, and on their way to the host.

What leaves the worker is a number for each head and score, never for a position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from numpy import float32
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from retrieval_heads.heads.copy import copied_tokens
from retrieval_heads.heads.looks import Look, Result, Rows, Seen, Weighing
from retrieval_heads.heads.score import HeadScore, head_scores
from retrieval_heads.tracing.layer_kinds import LayerKind, host_ints
from retrieval_heads.tracing.rows import RowScores


def scores_of(kinds: Sequence[LayerKind], lacking: frozenset[str] = frozenset()) -> tuple[HeadScore, ...]:
    """The scores that a model can be measured by, in the order of `figures`.

    Args:
        kinds: Of its layers.
        lacking: What no layer gives of `looks.NEEDS`: scores that need it are not measured.
    """
    has_sign = any(kind.is_signed for kind in kinds)
    return tuple(
        score for score in head_scores().values() if (has_sign or not score.needs_sign) and not score.needs & lacking
    )


def looks_of(rows: Rows, scores: Sequence[HeadScore]) -> list[tuple[Look, ...]]:
    """What each score looks at in a replay.

    Raises:
        ValueError: It looks from rows that are not computed, or at what is no span.
    """
    found = []
    for score in scores:
        looks = tuple(score.looks(rows))
        for (first, end), (start, stop) in ((look.rows, look.span) for look in looks):
            if not rows.first <= first < end <= rows.end:
                raise ValueError(
                    f"{score.name} looks from rows {first} to {end - 1}; computed are {rows.first} to {rows.end - 1}"
                )
            if not 0 <= start <= stop:
                raise ValueError(f"{score.name} looks at {(start, stop)}, which is no span [start, end)")
        found.append(looks)
    return found


def weighings_of(rows: Rows, scores: Sequence[HeadScore]) -> list[tuple[Weighing, ...]]:
    """What each score has added up of a replay's weights on single keys.

    Raises:
        ValueError: It does so over rows that are not computed.
    """
    found = []
    for score in scores:
        weighings = tuple(score.weighings(rows))
        for first, end in (each.rows for each in weighings):
            if not rows.first <= first < end <= rows.end:
                raise ValueError(
                    f"{score.name} weighs from rows {first} to {end - 1}; computed are {rows.first} to {rows.end - 1}"
                )
        found.append(weighings)
    return found


def columns(requests: Sequence[Rows], scores: Sequence[HeadScore]) -> list[list[int]]:
    """Which of the figures that replays have together are each one's own, in order.

    Args:
        requests: The replays.
        scores: Which are wanted, of all of them alike.
    """
    own: list[list[int]] = [[] for _ in requests]
    start = 0
    for score in scores:
        parts = [score.parts(rows) for rows in requests]
        for places, count in zip(own, parts, strict=True):
            places += range(start, start + count)
        start += max(parts)
    for places, rows in zip(own, requests, strict=True):
        places += range(start, start + figures_a_row(rows) * len(rows.answer))
    return own


def scored_looks(rows: Rows, wanted: Sequence[tuple[Look, ...]]) -> tuple[Look, ...]:
    """What has to be scored, each once: all rows of a replay at the needle, and what scores look at besides.

    Args:
        rows: What is replayed.
        wanted: Its `looks_of`.
    """
    besides = [look for looks in wanted for look in looks if look.span != rows.needle_span]
    if rows.per_step:
        besides += [Look(rows.answer_rows, span) for span in rows.more_spans]
    return tuple(dict.fromkeys([Look((rows.first, rows.end), rows.needle_span), *besides]))


def top_rows(
    looks: Sequence[Look], scores: Sequence[HeadScore], wanted: Sequence[tuple[Look, ...]]
) -> list[int | None]:
    """From which row on some score needs `top_weight`, of each look that is scored; `None` where none does.

    Args:
        looks: The `scored_looks`.
        scores: What is wanted.
        wanted: What each of them looks at.
    """
    needed = [look for score, own in zip(scores, wanted, strict=True) if "top_weight" in score.needs for look in own]
    return [
        min((one.rows[0] for one in needed if one.span == look.span and one.rows[0] in range(*look.rows)), default=None)
        for look in looks
    ]


Sums = Mapping[Weighing, Mapping[int, Tensor]]
"""What a replay's weighings came to, `[sums, heads]` of each layer, by its place."""


def figures(
    layers: Sequence[RowScores], requests: Sequence[Rows], scores: Sequence[HeadScore], sums: Sequence[Sums] = ()
) -> Tensor:
    """The scores of finished replays, `[requests, scores, layers, heads]` float32; of a score with several parts as
    many figures as the most of a request. `columns` tells which are whose.

    Every rank's heads are in order, NaN where a layer has fewer heads than another. For each row of the answer more
    follow where they are wanted: with `positions` each head's argmax, with `per_step` the needle token that it copied,
    counted from 1, or 0, and its weight on the needle: `[requests, scores + answer rows × figures a row, ...]`. Nothing
    here waits for the device, nor is anything done layer by layer where layers have as many heads.

    Args:
        layers: Each layer's scores of all requests' rows: one request after the other, of each its `scored_looks`.
        requests: Whose they are; all alike in `positions` and `per_step`.
        scores: Which are wanted, of all of them alike.
        sums: Of each request, what its weighings came to.

    Raises:
        ValueError: The rows scored are not the rows wanted.
    """
    grid = _Grid(requests, scores, layers[0].argmax.device)
    if any(one.argmax.shape[0] != grid.rows for one in layers):
        raise ValueError(f"{layers[0].argmax.shape[0]} rows were scored where {grid.rows} were wanted")
    found: list[Tensor] = [torch.empty(0)] * len(layers)
    for heads in dict.fromkeys(one.argmax.shape[1] for one in layers):
        places = [place for place, one in enumerate(layers) if one.argmax.shape[1] == heads]
        alike = _figures([layers[place] for place in places], grid, places, sums)
        for place, one in zip(places, alike.unbind(1), strict=True):
            found[place] = one.flatten(0, 1)
    return gather_heads(found).unflatten(0, (-1, len(requests))).transpose(0, 1)


def _figures(layers: Sequence[RowScores], grid: _Grid, places: Sequence[int], sums: Sequence[Sums]) -> Tensor:
    """`[scores, layers, requests, heads]` of layers with as many heads."""
    stacked = _Layers(layers)
    seen: dict[tuple[_Looks, _Weighings], _Seen] = {}

    def of(looks: _Looks, weighings: _Weighings = ()) -> _Seen:
        key = looks, weighings if any(weighings) else ()
        if key not in seen:
            seen[key] = _Seen(grid, looks, stacked, _together(weighings, places, sums) if key[1] else None)
        return seen[key]

    shape = (len(layers), len(grid.requests), layers[0].argmax.shape[1])
    found = []
    for score, looks, weighings in grid.looks:
        parts = max(score.parts(rows) for rows in grid.requests)
        # Of a score that no request is measured on there is nothing to be made.
        is_measured = any(looks) or any(weighings)
        made = score.figure(of(looks, weighings)) if is_measured else torch.full(shape, math.nan, device=grid.device)
        if not is_measured or (made.dim() == len(shape) and parts == 1):
            made = made.expand(parts, *made.shape)
        if made.shape != (parts, *shape):
            raise ValueError(
                f"{score.name} gives figures of shape {list(made.shape[parts == 1 :])}; "
                + (f"[layers, requests, heads] is {list(shape)}" if parts == 1 else f"expected is {[parts, *shape]}")
            )
        found.append(made.float())
    if not any(figures_a_row(rows) for rows in grid.requests):
        return torch.cat(found)
    answers = of(tuple((Look(rows.answer_rows, rows.needle_span),) for rows in grid.requests))
    each = [answers.argmax.float()] if any(rows.positions for rows in grid.requests) else []
    if any(rows.per_step for rows in grid.requests):
        each += [copied_tokens(answers).float(), _needle_weight(grid, of, answers)]
    # One row after the other, so that a shorter answer's are the first of them.
    return torch.cat([*found, torch.stack(each, dim=3).flatten(2, 3).movedim(2, 0)])


def figures_a_row(rows: Rows) -> int:
    """Figures that are handed back of each row of an answer, beside the scores."""
    return rows.positions + 2 * rows.per_step


def _needle_weight(grid: _Grid, of: Callable[[_Looks], _Seen], answers: _Seen) -> Tensor:
    """Each answer row's weight on all needles that are asked for, `[layers, requests, rows, heads]`."""
    total = torch.where(answers.counts[:, :, None], answers.weight, 0.0)
    for number in range(1, max(len(rows.spans) for rows in grid.requests)):
        more = of(
            tuple(tuple(Look(rows.answer_rows, span) for span in rows.spans[number:][:1]) for rows in grid.requests)
        )
        weight = torch.where(more.counts[:, :, None], more.weight, 0.0)
        total[:, :, : weight.shape[2]] += weight
    return total


def _together(weighings: _Weighings, places: Sequence[int], sums: Sequence[Sums]) -> Tensor:
    """What a score's weighings came to, `[layers, requests, sums, heads]`, 0 beyond those of a request."""
    whole = [
        [torch.cat([found[each][place] for each in own]) for place in places] if own else []
        for own, found in zip(weighings, sums, strict=True)
    ]
    most = max(len(each[0]) for each in whole if each)
    empty = torch.zeros_like(next(each[0] for each in whole if each)[:1].expand(most, -1))
    rectangle = [
        torch.stack([pad(one, (0, 0, 0, most - len(one))) for one in each] or [empty] * len(places)) for each in whole
    ]
    return torch.stack(rectangle, dim=1)


_Looks = tuple[tuple[Look, ...], ...]
"""A score's, of each request."""

_Weighings = tuple[tuple[Weighing, ...], ...]
"""Likewise."""


class _Grid:
    """Where the rows of several requests stand, and which of them each score reads.

    Args:
        requests: Whose rows they are, one request after the other.
        scores: What is wanted of them.
        device: Where they are.
    """

    def __init__(self, requests: Sequence[Rows], scores: Sequence[HeadScore], device: torch.device) -> None:
        self.requests = requests
        self.device = device
        wanted = [looks_of(rows, scores) for rows in requests]
        weighings = [weighings_of(rows, scores) for rows in requests]
        self.looks: list[tuple[HeadScore, _Looks, _Weighings]] = list(
            zip(scores, zip(*wanted, strict=True), zip(*weighings, strict=True), strict=True)
        )
        self.rows = 0
        """Of all requests."""
        self._starts: list[dict[Look, int]] = []
        for rows, looks in zip(requests, wanted, strict=True):
            starts = {}
            for look in scored_looks(rows, looks):
                starts[look] = self.rows
                self.rows += look.rows[1] - look.rows[0]
            self._starts.append(starts)
        self._rectangles: dict[_Looks, tuple[Tensor, Tensor]] = {}

    def rectangle(self, looks: _Looks) -> tuple[Tensor, Tensor]:
        """Index among all rows, and whether it counts, `[requests, most]` each."""
        if looks not in self._rectangles:
            places = [
                [place for look in each for place in self._places(number, look)] for number, each in enumerate(looks)
            ]
            index = self.ints(places, -1)
            self._rectangles[looks] = index.clamp(min=0), index >= 0
        return self._rectangles[looks]

    def _places(self, number: int, look: Look) -> range:
        rows, starts = self.requests[number], self._starts[number]
        first, end = look.rows
        if look.span == rows.needle_span:
            start = starts[Look((rows.first, rows.end), rows.needle_span)] + first - rows.first
        else:
            start = starts[look]
        return range(start, start + end - first)

    def ints(self, numbers: Sequence[Sequence[int]], filler: int) -> Tensor:
        """See `Seen`."""
        most = max(map(len, numbers))
        flat = [number for row in numbers for number in (*row, *[filler] * (most - len(row)))]
        return host_ints(flat, self.device).view(len(numbers), most)


class _Layers:
    """What all rows saw in layers that have as many heads, `[layers, rows, heads]`."""

    def __init__(self, layers: Sequence[RowScores]) -> None:
        self._layers = layers

    @cached_property
    def argmax(self) -> Tensor:
        return torch.stack([one.argmax for one in self._layers])

    @cached_property
    def argmax_by_value(self) -> Tensor:
        return torch.stack([one.argmax if one.argmax_by_value is None else one.argmax_by_value for one in self._layers])

    @cached_property
    def written(self) -> Tensor:
        none = torch.full_like(self._layers[0].logsumexp, math.nan)
        return torch.stack([none if one.written is None else one.written for one in self._layers])

    @cached_property
    def top_weight(self) -> Tensor:
        none = torch.full_like(self._layers[0].logsumexp, math.nan)
        inside = torch.stack([none if one.top_logsumexp is None else one.top_logsumexp for one in self._layers])
        return (inside - torch.stack([one.logsumexp for one in self._layers])).exp()

    @cached_property
    def weight(self) -> Tensor:
        inside = torch.stack([one.span_logsumexp for one in self._layers])
        return (inside - torch.stack([one.logsumexp for one in self._layers])).exp()


class _Seen(Seen):
    """Of some looks, in layers that have as many heads."""

    def __init__(self, grid: _Grid, looks: _Looks, layers: _Layers, sums: Tensor | None = None) -> None:
        self.requests = grid.requests
        self._grid = grid
        self._layers = layers
        self._sums = sums
        self._index, self._counts = grid.rectangle(looks)
        self._made: dict[Callable[[Seen], object], Any] = {}

    @property
    def counts(self) -> Tensor:
        return self._counts

    @cached_property
    def argmax(self) -> Tensor:
        return self._layers.argmax[:, self._index]

    @cached_property
    def argmax_by_value(self) -> Tensor:
        return self._layers.argmax_by_value[:, self._index]

    @cached_property
    def weight(self) -> Tensor:
        return self._layers.weight[:, self._index]

    @cached_property
    def written(self) -> Tensor:
        return self._layers.written[:, self._index]

    @property
    def sums(self) -> Tensor:
        assert self._sums is not None, "the score weighs nothing"
        return self._sums

    @cached_property
    def top_weight(self) -> Tensor:
        return self._layers.top_weight[:, self._index]

    def mean(self, values: Tensor) -> Tensor:
        # `where` and not a product: NaN of a row that does not count must not get in.
        chosen = torch.where(self._counts[:, :, None], values, 0.0)
        return chosen.sum(2) / self._counts.sum(1)[:, None]

    def ints(self, numbers: Sequence[Sequence[int]], filler: int = -1) -> Tensor:
        return self._grid.ints(numbers, filler)

    def once(self, work: Callable[[Seen], Result]) -> Result:
        if work not in self._made:
            self._made[work] = work(self)
        found: Result = self._made[work]
        return found


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
        own: Which of the figures are its own, in order.
    """

    together: OnItsWay
    place: int
    own: Sequence[int]

    def arrived(self) -> NDArray[float32]:
        """Wait for them; `[figures, layers, heads]`."""
        found: NDArray[float32] = self.together.arrived()[self.place].numpy()[list(self.own)]
        return found


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
