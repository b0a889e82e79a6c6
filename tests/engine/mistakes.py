"""The mistakes that a detector of copying heads can make, each made on purpose in the running probe.

Every one takes the prompt that is scored, and is in force until its context ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from oracle import Prompt
from torch import Tensor

from retrieval_heads.heads import copy
from retrieval_heads.heads.copy import Hits
from retrieval_heads.heads.looks import Rows, Seen
from retrieval_heads.tracing import layer_kinds
from retrieval_heads.tracing.attention_torch import score_layers_read
from retrieval_heads.tracing.keys import KeyOrder
from retrieval_heads.tracing.probe import Probe
from retrieval_heads.tracing.rows import RowScores

Counting = Callable[[Tensor, Seen], Hits]
"""Of argmaxes, `[layers, requests, answer rows, heads]`."""

_right: Counting = copy.hits_at


def _counted(count: Counting) -> AbstractContextManager[Any]:
    return mock.patch.object(copy, "hits_at", count)


def _steps(argmax: Tensor) -> Tensor:
    """Each step's number, as if it were its token in the needle."""
    return torch.arange(argmax.shape[2])[:, None].expand(argmax.shape)


def no_span_check(prompt: Prompt) -> AbstractContextManager[Any]:
    """Counts a look at the emitted token wherever it stands."""
    ids = torch.tensor([*prompt.ids, *prompt.needle])

    def count(argmax: Tensor, seen: Seen) -> Hits:
        answer = seen.ints([rows.answer for rows in seen.requests])
        # Each step on a token of its own: no look hides another.
        steps = ids[argmax.long()] == answer[:, :, None]
        return replace(_right(argmax, seen), steps=steps, places=_steps(argmax), longest=argmax.shape[2])

    return _counted(count)


def no_token_check(prompt: Prompt) -> AbstractContextManager[Any]:
    """Counts every look at the needle."""

    start, end = prompt.needle_span

    def count(argmax: Tensor, seen: Seen) -> Hits:
        steps = (argmax >= start) & (argmax < end)
        return replace(_right(argmax, seen), steps=steps, places=_steps(argmax), longest=argmax.shape[2])

    return _counted(count)


def one_step_late(prompt: Prompt) -> AbstractContextManager[Any]:
    """Takes the row that an answer token was the input of, for the row that predicted it."""
    return _counted(lambda argmax, seen: _right(argmax.roll(-1, 2), seen))


def position_off_by_one(prompt: Prompt) -> AbstractContextManager[Any]:
    return _counted(lambda argmax, seen: _right(argmax + 1, seen))


def span_shifted(prompt: Prompt) -> AbstractContextManager[Any]:
    """Takes the needle to begin one token late."""
    right = Rows.of_json

    def of_json(fields: Any) -> Rows:
        rows = right(fields)
        start, end = rows.needle_span
        return replace(rows, needle_span=(start + 1, end + 1), needle=prompt.ids[start + 1 : end + 1])

    return mock.patch.object(Rows, "of_json", of_json)


def heads_transposed(prompt: Prompt) -> AbstractContextManager[Any]:
    """Takes queries to lie channel by channel rather than head by head."""
    right = Probe.take

    def take(self: Probe, layer: int, module: Any, values: tuple[Tensor, ...]) -> None:
        mixed = values[0].flatten(1).unflatten(-1, (module.head_size, -1)).transpose(1, 2)
        right(self, layer, module, (mixed,))

    return mock.patch.object(Probe, "take", take)


@contextmanager
def _scored(change: Callable[[Callable[..., RowScores]], Callable[..., RowScores]]) -> Iterator[None]:
    right = layer_kinds.scorer
    with (
        mock.patch.object(layer_kinds, "scorer", lambda device: change(right(device))),
        mock.patch.object(layer_kinds, "score_layers_read", change(score_layers_read)),
    ):
        yield


def other_kv_heads(prompt: Prompt) -> AbstractContextManager[Any]:
    """Has query head h read KV head `h % KV heads`."""

    def change(score: Callable[..., RowScores]) -> Callable[..., RowScores]:
        def scores(q: Tensor, keys: Any, *rest: Any, **options: Any) -> RowScores:
            kv_heads = keys[0].shape[1] if isinstance(keys[0], Tensor) else rest[0]
            order = torch.arange(q.shape[-2]).view(-1, kv_heads).T.flatten()
            found, back = score(q[..., order, :], keys, *rest, **options), order.argsort()
            return RowScores(found.argmax[..., back], found.logsumexp[..., back], found.span_logsumexp[..., back])

        return scores

    return _scored(change)


def naive_cache_read(prompt: Prompt) -> AbstractContextManager[Any]:
    """Takes K to be the first half of every cell, as it is on CUDA."""

    def order(attention: Any) -> KeyOrder:
        block_size, width = attention.kv_cache.shape[2:]
        offsets = torch.arange(block_size)[:, None] * width + torch.arange(attention.head_size)
        return KeyOrder((block_size, attention.head_size), (width, 1), offsets.flatten())

    return mock.patch.object(layer_kinds, "_order", order)


def no_window_mask(prompt: Prompt) -> AbstractContextManager[Any]:
    """Scores every key that is still in the cache."""

    def change(score: Callable[..., RowScores]) -> Callable[..., RowScores]:
        return lambda *arguments, **options: score(*arguments, **{**options, "sliding_window": None})

    return _scored(change)
