"""The probe: scores a request's query rows against the keys of its whole context, inside the forward.

A replayed request carries a named nnsight edit and says in its `extra_args` which rows to score. At every attention
layer the edit takes the queries on the way in; once the last layer has written its keys to the cache, the rows of all
layers are scored against it, on the device. What leaves the worker is a number for each head and score, never for a
position.

The row that predicts answer token t is the one before it: of prompt length P and n answer ids, rows P−1 … P+n−2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from retrieval_heads.tracing.attention import RowScores
from retrieval_heads.tracing.layer_kinds import LayerKind, Step, Taken
from retrieval_heads.tracing.worker import runner

EDIT = "rh_probe"
"""The edit's name; a request that lists it in `nnsight_edits` is scored."""

ARGUMENT = "rh_probe"
"""The key of `extra_args` that says what to score: the fields of `Rows`."""


def scores_of(kinds: Sequence[LayerKind]) -> tuple[str, ...]:
    """The names of a model's scores, in the order of `Probe.result`."""
    signed = ("copy_by_value",) if any(kind.is_signed for kind in kinds) else ()
    return ("copy", "copy_reference", "mass", "query", *signed)


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
        fields = extra_args[ARGUMENT]
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
class Probe:
    """One request's scores, gathered layer by layer over the steps that its rows take.

    A replay is one step as a rule; chunked prefill may split it, and then each step adds its rows.
    """

    rows: Rows
    kinds: Sequence[LayerKind]
    """Of each layer, in the order in which they run."""
    found: list[list[RowScores]] = field(init=False)
    taken: list[Taken] = field(default_factory=list)
    memories: list[dict[str, Any]] = field(init=False)
    covered: int = field(init=False)
    computed: int = 0
    step: Step = field(init=False)

    def __post_init__(self) -> None:
        self.found = [[] for _ in self.kinds]
        self.memories = [{} for _ in self.kinds]
        self.covered = self.rows.first

    @classmethod
    def of_request(cls, kinds: Sequence[LayerKind]) -> Probe:
        """The probe of the request whose block runs now."""
        request = runner().requests[_request_id()]
        return cls(Rows.of(request.sampling_params.extra_args), kinds)

    def begin_step(self) -> None:
        """Find this request's tokens in the batch of this step, from the runner's host copies.

        Raises:
            ValueError: Wanted rows came from the prefix cache, so that their queries are never computed; or any
                token, where a layer needs them all.
        """
        mediator = _mediator()
        tokens = mediator.batch_group[1]
        position = int(runner().input_batch.num_computed_tokens_cpu[mediator.row])
        if position > self.covered:
            raise ValueError(
                f"rows {self.covered} to {position - 1} came from the prefix cache; "
                f"the probe needs rows {self.rows.first} to {self.rows.end - 1}"
            )
        if position == 0:  # at its start, or again after it was preempted
            self.memories, self.computed = [{} for _ in self.kinds], 0
        if position != self.computed and any(kind.needs_whole_context for kind in self.kinds):
            raise ValueError(f"tokens {self.computed} to {position - 1} came from the prefix cache; a layer needs all")
        self.computed = position + tokens
        end = min(self.rows.end, self.computed)
        wanted = (min(max(self.covered, position), end), end)
        self.step = Step(mediator.row, position, tokens, wanted, self.rows.needle_span)

    def take(self, layer: int, module: Any, values: tuple[Tensor, ...]) -> None:
        """Keep what is wanted of this step's tokens in the next layer.

        Args:
            layer: Its index.
            module: vLLM's.
            values: What its kind read, this request's tokens alone.
        """
        memory = self.memories[layer]
        rows = self.kinds[layer].take(module, values, self.step, memory)
        self.taken.append(Taken(module, rows, memory))

    def end_step(self) -> bool:
        """Score what was taken, now that every layer's keys are in its cache; whether every wanted row is scored."""
        taken, self.taken = self.taken, []
        first, end = self.step.wanted
        if first < end:
            for kind in dict.fromkeys(self.kinds):
                layers = [layer for layer, one in enumerate(self.kinds) if one is kind]
                parts = kind.score([taken[layer] for layer in layers], self.step)
                for layer, part in zip(layers, parts, strict=True):
                    self.found[layer].append(part)
            self.covered = end
        return self.covered == self.rows.end

    def result(self) -> OnItsWay:
        """`[scores, layers, heads]` float32 in the order of `scores_of`; every rank's heads in order, NaN where a layer
        has fewer heads than another.

        With `positions`, an answer row's argmax for each head follows: `[scores + answer rows, layers, heads]`.
        Nothing here waits for the device, nor is anything done layer by layer where layers have as many heads.

        Raises:
            ValueError: The rows scored are not the rows wanted.
        """
        whole = [_joined(parts) for parts in self.found]
        figures: list[Tensor] = [torch.empty(0)] * len(whole)
        for heads in dict.fromkeys(scores.argmax.shape[1] for scores in whole):
            places = [place for place, scores in enumerate(whole) if scores.argmax.shape[1] == heads]
            found = self._figures([whole[place] for place in places])
            for place, one in zip(places, found.unbind(1), strict=True):
                figures[place] = one
        return OnItsWay(gather_heads(figures))

    def _figures(self, layers: Sequence[RowScores]) -> Tensor:
        """`[scores, layers, heads]` of layers with as many heads."""
        rows = self.rows
        argmax = torch.stack([scores.argmax for scores in layers])
        weight = (
            torch.stack([scores.span_logsumexp for scores in layers])
            - torch.stack([scores.logsumexp for scores in layers])
        ).exp()
        if argmax.shape[1] != rows.end - rows.first:
            raise ValueError(f"{argmax.shape[1]} rows were scored where {rows.end - rows.first} were wanted")
        answer = slice(rows.answer_rows[0] - rows.first, None)
        argmax = argmax[:, answer]
        if argmax.shape[1] != len(rows.answer):
            raise ValueError(f"{argmax.shape[1]} answer rows were scored for {len(rows.answer)} answer ids")
        asked = slice(rows.question_span[0] - rows.first, rows.question_span[1] - rows.first)
        scores = [*_copies(argmax, rows), weight[:, answer].mean(1), weight[:, asked].mean(1)]
        if any(kind.is_signed for kind in self.kinds):
            by_value = [one.argmax if one.argmax_by_value is None else one.argmax_by_value for one in layers]
            scores.append(_copies(torch.stack(by_value)[:, answer], rows)[0])
        return torch.cat([torch.stack(scores), *([argmax.float().movedim(1, 0)] if rows.positions else [])])


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


def _joined(parts: Sequence[RowScores]) -> RowScores:
    """A layer's rows, which several steps may have scored."""
    if len(parts) == 1:
        return parts[0]
    by_value = [part.argmax_by_value for part in parts if part.argmax_by_value is not None]
    return RowScores(
        torch.cat([part.argmax for part in parts]),
        torch.cat([part.logsumexp for part in parts]),
        torch.cat([part.span_logsumexp for part in parts]),
        torch.cat(by_value) if by_value else None,
    )


def _copies(argmax: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """`copy` and `copy_reference` of each head, `[layers, heads]`.

    arXiv 2404.15574, section 2: the share of the needle's tokens that a head copied. A step counts where the head's
    argmax lies in the needle on the very token that the model then emits; the paper's code counts every such step,
    so that an answer repeating itself counts again.

    Args:
        argmax: Of the answer's rows, `[layers, answer rows, heads]`.
        rows: The request's.
    """
    start, end = rows.needle_span
    needle, answer = _on_device(rows.needle, argmax.device), _on_device(rows.answer, argmax.device)
    place = argmax.long() - start
    inside = (place >= 0) & (place < end - start)
    place = place.clamp(0, end - start - 1)
    hit = inside & (needle[place] == answer[:, None])
    copied = torch.zeros(argmax.shape[0], argmax.shape[2], end - start, device=argmax.device)
    copied.scatter_reduce_(2, place.transpose(1, 2), hit.transpose(1, 2).float(), "amax")
    return copied.mean(2), hit.float().sum(1) / (end - start)


def _on_device(ids: Sequence[int], device: torch.device) -> Tensor:
    """Token ids there; a copy from memory that is not pinned would wait for the device."""
    return torch.tensor(ids, pin_memory=device.type == "cuda").to(device, non_blocking=True)


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


def _mediator() -> Any:
    from nnsight.intervention.interleaver import Mediator

    return Mediator.current(EDIT)


def _request_id() -> str:
    name: str = runner().input_batch.req_ids[_mediator().row]
    return name
