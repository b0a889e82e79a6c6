"""The probe: scores a request's query rows against the keys of its whole context, inside the forward.

A replayed request carries a named nnsight edit and says in its `extra_args` which rows to score. At every attention
layer the edit takes the queries on the way in; once the last layer has written its keys to the cache, the rows of all
layers are scored against it, on the device. What leaves the worker is a number for each head and score, never for a
position.

The row that predicts answer token t is the one before it: of prompt length P and n answer ids, rows P−1 … P+n−2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrieval_heads.tracing.attention import RowScores, score_rows_dense, scorer
from retrieval_heads.tracing.keys import KeyOrder, UnreadableCache, key_order
from retrieval_heads.tracing.worker import runner

EDIT = "rh_probe"
"""The edit's name; a request that lists it in `nnsight_edits` is scored."""

ARGUMENT = "rh_probe"
"""The key of `extra_args` that says what to score: the fields of `Rows`."""

SCORES = ("copy", "copy_reference", "mass", "query")

_orders: dict[tuple[Any, ...], KeyOrder] = {}


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


@dataclass(frozen=True)
class Asked:
    """A layer's queries of one step: `rows` is `[rows, heads, head_size]`."""

    attention: Any
    rows: Tensor


@dataclass
class Probe:
    """One request's scores, gathered layer by layer over the steps that its rows take.

    A replay is one step as a rule; chunked prefill may split it, and then each step adds its rows.
    """

    rows: Rows
    layers: int
    found: list[list[RowScores]] = field(init=False)
    asked: list[Asked] = field(default_factory=list)
    covered: int = field(init=False)
    position: int = 0
    tokens: int = 0
    row: int = 0

    def __post_init__(self) -> None:
        self.found = [[] for _ in range(self.layers)]
        self.covered = self.rows.first

    @classmethod
    def of_request(cls, layers: int) -> Probe:
        """The probe of the request whose block runs now."""
        request = runner().requests[_request_id()]
        return cls(Rows.of(request.sampling_params.extra_args), layers)

    def begin_step(self) -> None:
        """Find this request's tokens in the batch of this step, from the runner's host copies.

        Raises:
            ValueError: Wanted rows came from the prefix cache, so that their queries are never computed.
        """
        mediator = _mediator()
        self.row = mediator.row
        self.tokens = mediator.batch_group[1]
        self.position = int(runner().input_batch.num_computed_tokens_cpu[self.row])
        if self.position > self.covered:
            raise ValueError(
                f"rows {self.covered} to {self.position - 1} came from the prefix cache; "
                f"the probe needs rows {self.rows.first} to {self.rows.end - 1}"
            )

    def take(self, attention: Any, query: Tensor) -> None:
        """Keep this step's wanted rows of the next layer.

        Args:
            attention: vLLM's `Attention` module.
            query: `[tokens of this step, heads × head_size]`, this rank's heads.
        """
        wanted = slice(max(0, self.covered - self.position), self.rows.end - self.position)
        rows = query.reshape(self.tokens, -1, attention.head_size)[wanted]
        # A copy: vLLM's kernels go on to write where the queries lie.
        self.asked.append(Asked(attention, rows.clone()))

    def end_step(self) -> bool:
        """Score what was taken, now that every layer's keys are in its cache; whether every wanted row is scored."""
        first = max(self.covered, self.position)
        asked, self.asked = self.asked, []
        if asked[0].rows.shape[0]:
            for group in _groups(asked):
                parts = _score([asked[layer] for layer in group], first, self.row, self.rows.needle_span)
                for layer, part in zip(group, parts, strict=True):
                    self.found[layer].append(part)
        self.covered = max(self.covered, min(self.rows.end, self.position + self.tokens))
        return self.covered == self.rows.end

    def result(self) -> Tensor:
        """`[scores, layers, heads]` float32 in the order of `SCORES`; every rank's heads, in order.

        With `positions`, an answer row's argmax for each head follows: `[scores + answer rows, layers, heads]`.

        Raises:
            ValueError: The rows scored are not the rows wanted.
        """
        return _gather(torch.stack([self._layer(parts) for parts in self.found], dim=1))

    def _layer(self, parts: Sequence[RowScores]) -> Tensor:
        rows = self.rows
        argmax = torch.cat([part.argmax for part in parts])
        weight = torch.cat([(part.span_logsumexp - part.logsumexp).exp() for part in parts])
        if argmax.shape[0] != rows.end - rows.first:
            raise ValueError(f"{argmax.shape[0]} rows were scored where {rows.end - rows.first} were wanted")
        answer = slice(rows.answer_rows[0] - rows.first, None)
        argmax = argmax[answer]
        if argmax.shape[0] != len(rows.answer):
            raise ValueError(f"{argmax.shape[0]} answer rows were scored for {len(rows.answer)} answer ids")
        asked = slice(rows.question_span[0] - rows.first, rows.question_span[1] - rows.first)
        scores = [*_copies(argmax, rows), weight[answer].mean(0), weight[asked].mean(0)]
        return torch.cat([torch.stack(scores), *([argmax.float()] if rows.positions else [])])


def _copies(argmax: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """`copy` and `copy_reference` of each head.

    arXiv 2404.15574, section 2: the share of the needle's tokens that a head copied. A step counts where the head's
    argmax lies in the needle on the very token that the model then emits; the paper's code counts every such step,
    so that an answer repeating itself counts again.
    """
    start, end = rows.needle_span
    needle = torch.tensor(rows.needle, device=argmax.device)
    answer = torch.tensor(rows.answer, device=argmax.device)
    place = argmax.long() - start
    inside = (place >= 0) & (place < end - start)
    place = place.clamp(0, end - start - 1)
    hit = inside & (needle[place] == answer[:, None])
    copied = torch.zeros(argmax.shape[1], end - start, device=argmax.device)
    copied.scatter_reduce_(1, place.T, hit.T.float(), "amax")
    return copied.mean(1), hit.float().sum(0) / (end - start)


def _groups(asked: Sequence[Asked]) -> list[list[int]]:
    """The layers that can be scored together: one block table, one kind of cache, one mask."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for layer, one in enumerate(asked):
        attention, cache, impl = one.attention, one.attention.kv_cache, one.attention.impl
        key = (
            id(_metadata(attention).block_table),
            (cache.shape, cache.stride(), cache.dtype, one.rows.shape),
            (impl.scale, attention.sliding_window, impl.logits_soft_cap),
            getattr(impl, "sinks", None) is None,
            id(getattr(impl, "alibi_slopes", None)),
        )
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def _score(asked: Sequence[Asked], first: int, row: int, span: tuple[int, int]) -> list[RowScores]:
    """Score a group's layers; row 0 of each is at position `first`."""
    attentions = [one.attention for one in asked]
    attention, impl = attentions[0], attentions[0].impl
    cache, order, window = attention.kv_cache, _order(attention), attention.sliding_window
    block_size, last = order.shape[0], first + asked[0].rows.shape[0] - 1
    block_ids = _metadata(attention).block_table[row, : last // block_size + 1]
    options = {
        "scale": float(impl.scale),
        "span": span,
        "sliding_window": window,
        "soft_cap": impl.logits_soft_cap or None,
        "alibi_slopes": getattr(impl, "alibi_slopes", None),
    }
    has_sinks = getattr(impl, "sinks", None) is not None
    views = [order.view(each.kv_cache) for each in attentions]
    if all(view is not None for view in views):
        scores = scorer(cache.device)(
            torch.stack([one.rows for one in asked]),
            views,
            block_ids,
            first,
            sinks=torch.stack([each.impl.sinks for each in attentions]) if has_sinks else None,
            k_scale=torch.stack([each._k_scale.view(()) for each in attentions])
            if cache.dtype == torch.uint8
            else None,
            **options,
        )
        return [
            RowScores(scores.argmax[layer], scores.logsumexp[layer], scores.span_logsumexp[layer])
            for layer in range(len(asked))
        ]
    first_block = max(0, first - window + 1) // block_size if window else 0
    return [
        score_rows_dense(
            one.rows,
            order.read(one.attention.kv_cache, block_ids[first_block:]),
            first,
            first_key=first_block * block_size,
            sinks=one.attention.impl.sinks if has_sinks else None,
            **options,
        )
        for one in asked
    ]


def _metadata(attention: Any) -> Any:
    from vllm.forward_context import get_forward_context

    return get_forward_context().attn_metadata[attention.layer_name]


def _order(attention: Any) -> KeyOrder:
    cache = attention.kv_cache
    key = (type(attention.impl), cache.shape[1:], cache.dtype, attention.dtype, getattr(attention, "isa", None))
    if key not in _orders:
        _orders[key] = key_order(attention)
    order = _orders[key]
    if order.view(cache) is None and cache.dtype == torch.uint8:
        raise UnreadableCache("a quantised cache on CPU cannot be read")
    return order


def _gather(scores: Tensor) -> Tensor:
    """Every rank's heads side by side."""
    from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

    if get_tensor_model_parallel_world_size() == 1:
        return scores
    gathered: Tensor = tensor_model_parallel_all_gather(scores, dim=-1)
    return gathered


def _mediator() -> Any:
    from nnsight.intervention.interleaver import Mediator

    return Mediator.current(EDIT)


def _request_id() -> str:
    name: str = runner().input_batch.req_ids[_mediator().row]
    return name
