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

from retrieval_heads.tracing import layer_kinds, probe
from retrieval_heads.tracing.attention_torch import score_rows_dense
from retrieval_heads.tracing.keys import KeyOrder
from retrieval_heads.tracing.probe import Probe, Rows
from retrieval_heads.tracing.rows import RowScores

Counting = Callable[[Tensor, Any], tuple[Tensor, Tensor]]
"""`[layers, requests, answer rows, heads]` of argmaxes, and their requests, to `[layers, requests, heads]` twice."""

_right: Counting = probe._copies


def _counted(count: Counting) -> AbstractContextManager[Any]:
    return mock.patch.object(probe, "_copies", count)


def no_span_check(prompt: Prompt) -> AbstractContextManager[Any]:
    """Counts a look at the emitted token wherever it stands."""
    ids = torch.tensor([*prompt.ids, *prompt.needle])

    def count(argmax: Tensor, grid: Any) -> tuple[Tensor, Tensor]:
        hits = ids[argmax.long()] == grid.answer[:, :, None]
        return (hits.float().sum(2) / grid.needle.shape[1],) * 2

    return _counted(count)


def no_token_check(prompt: Prompt) -> AbstractContextManager[Any]:
    """Counts every look at the needle."""

    def count(argmax: Tensor, grid: Any) -> tuple[Tensor, Tensor]:
        start, length = grid.span
        hits = (argmax >= start) & (argmax < start + length)
        return (hits.float().sum(2) / grid.needle.shape[1],) * 2

    return _counted(count)


def one_step_late(prompt: Prompt) -> AbstractContextManager[Any]:
    """Takes the row that an answer token was the input of, for the row that predicted it."""
    return _counted(lambda argmax, grid: _right(argmax.roll(-1, 2), grid))


def position_off_by_one(prompt: Prompt) -> AbstractContextManager[Any]:
    return _counted(lambda argmax, grid: _right(argmax + 1, grid))


def span_shifted(prompt: Prompt) -> AbstractContextManager[Any]:
    """Takes the needle to begin one token late."""
    right = Rows.of

    def of(extra_args: Any) -> Rows:
        rows = right(extra_args)
        start, end = rows.needle_span
        return replace(rows, needle_span=(start + 1, end + 1), needle=prompt.ids[start + 1 : end + 1])

    return mock.patch.object(Rows, "of", of)


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
        mock.patch.object(layer_kinds, "score_rows_dense", change(score_rows_dense)),
    ):
        yield


def other_kv_heads(prompt: Prompt) -> AbstractContextManager[Any]:
    """Has query head h read KV head `h % KV heads`."""

    def change(score: Callable[..., RowScores]) -> Callable[..., RowScores]:
        def scores(q: Tensor, keys: Any, *rest: Any, **options: Any) -> RowScores:
            kv_heads = keys.shape[1] if isinstance(keys, Tensor) else keys[0].shape[1]
            order = torch.arange(q.shape[-2]).view(-1, kv_heads).T.flatten()
            found, back = score(q[..., order, :], keys, *rest, **options), order.argsort()
            return RowScores(found.argmax[..., back], found.logsumexp[..., back], found.span_logsumexp[..., back])

        return scores

    return _scored(change)


def naive_cache_read(prompt: Prompt) -> AbstractContextManager[Any]:
    """Takes K to be the first half of every cell, as it is on CUDA."""

    def order(attention: Any) -> KeyOrder:
        block_size, width = attention.kv_cache.shape[2:]
        return KeyOrder((block_size, attention.head_size), (width, 1), torch.arange(0))

    return mock.patch.object(layer_kinds, "_order", order)


def no_window_mask(prompt: Prompt) -> AbstractContextManager[Any]:
    """Scores every key that is still in the cache."""

    def change(score: Callable[..., RowScores]) -> Callable[..., RowScores]:
        return lambda *arguments, **options: score(*arguments, **{**options, "sliding_window": None})

    return _scored(change)
