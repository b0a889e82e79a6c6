"""What every scorer of attention rows takes and gives, whatever it runs on.

A row is one query position. What leaves is per row and head, never per key: which key wins, and the
log-sum-exps that weights are ratios of (the weight on a span is `exp(span_logsumexp - logsumexp)`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Stretch:
    """Consecutive query rows of one request.

    Args:
        first: Position of the first of them in the request, in tokens.
        rows: How many.
        span: Positions `[start, end)`, absolute, that `span_logsumexp` is over; empty where start = end.
        top: How many greatest keys of a row `top_logsumexp` looks among; 0 where it is not wanted.
        top_from: Position of the first row that it is wanted of.
    """

    first: int
    rows: int
    span: tuple[int, int]
    top: int = 0
    top_from: int = 0

    @property
    def end(self) -> int:
        """Position behind the last row."""
        return self.first + self.rows

    @property
    def topless(self) -> int:
        """How many rows, from the first on, `top_logsumexp` is not wanted of."""
        return min(max(self.top_from - self.first, 0), self.rows) if self.top else self.rows


@dataclass(frozen=True)
class RowScores:
    """What rows see, on the device of q, each `[rows, query_heads]`.

    A softmax that is not defined (a visible score is NaN or +inf, or all are -inf) gives argmax -1 and NaN in
    both sums, in that row and head alone.
    """

    argmax: Tensor
    """int32: absolute position of the key with the greatest score; of equal ones the lowest position."""
    logsumexp: Tensor
    """float32, nats: over all visible keys, after scale, soft cap and ALiBi; the sink included when given."""
    span_logsumexp: Tensor
    """float32, nats: over the visible keys in the span, without sink; -inf when the row sees none of them."""
    argmax_by_value: Tensor | None = None
    """int32, where weights have a sign: `argmax` is then that of the magnitudes, which both sums are over."""
    written: Tensor | None = None
    """float32: see `Seen.written`; NaN of rows that it is not wanted of."""
    top_logsumexp: Tensor | None = None
    """float32, nats: `span_logsumexp` over those keys of the span alone that fewer than `Stretch.top` visible keys pass
    in score: of keys that tie across the last place all are among the top. NaN of rows that it is not wanted of."""

    def each(self, change: Callable[[Tensor], Tensor]) -> RowScores:
        """The same of every tensor that there is."""
        return RowScores(**{name: None if one is None else change(one) for name, one in vars(self).items()})


def joined(parts: Sequence[RowScores]) -> RowScores:
    """Scores of rows that follow each other, `[..., rows, query_heads]`, as those of all of them."""
    if len(parts) == 1:
        return parts[0]
    return _combined(parts, lambda tensors: torch.cat(tensors, dim=-2))


def layered(parts: Sequence[RowScores]) -> RowScores:
    """Scores of the same rows in layers that follow each other, `[layers, rows, query_heads]`, as those of all."""
    return parts[0] if len(parts) == 1 else _combined(parts, torch.cat)


def _combined(parts: Sequence[RowScores], combine: Callable[[list[Tensor]], Tensor]) -> RowScores:
    found: dict[str, Tensor | None] = {}
    for name in vars(parts[0]):
        given = [vars(part)[name] for part in parts]
        has_none = all(one is None for one in given)
        found[name] = None if has_none else combine(list(map(_or_nothing, given, parts)))
    return RowScores(**found)


def _or_nothing(given: Tensor | None, rows: RowScores) -> Tensor:
    """What rows have, NaN where it is not wanted of them and is of others."""
    return torch.full_like(rows.logsumexp, torch.nan) if given is None else given


def check_layers(
    q: Tensor,
    k_caches: Sequence[Tensor],
    block_table: Tensor,
    stretches: Sequence[Stretch],
    *,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    k_scale: float | Tensor | None,
) -> Tensor:
    """Refuse what cannot be scored, from what the host knows (no device wait); return the first cache.

    Raises:
        ValueError: Which argument does not fit, and what it must be.
    """
    if q.dim() != 4 or 0 in q.shape or q.shape[0] != len(k_caches):
        raise ValueError(f"q is {list(q.shape)}; it must be [{len(k_caches)} layers, rows, query heads, head size]")
    first = k_caches[0]
    for cache in k_caches:
        if (cache.shape, cache.stride(), cache.dtype) != (first.shape, first.stride(), first.dtype):
            raise ValueError("the layers' caches differ in shape, strides or dtype; score each kind by itself")
    if first.dim() != 4:
        raise ValueError(f"a cache is {list(first.shape)}; it must be [blocks, KV heads, block size, head size]")
    if sinks is not None and list(sinks.shape) != [q.shape[0], q.shape[2]]:
        raise ValueError(f"sinks is {list(sinks.shape)}; it must be [{q.shape[0]}, {q.shape[2]}] (layers, query heads)")
    by_head = [q.shape[0], first.shape[1]]
    if isinstance(k_scale, Tensor) and k_scale.numel() > 1 and list(k_scale.shape) not in (by_head[:1], by_head):
        raise ValueError(
            f"k_scale is {list(k_scale.shape)}; it must be a number, or a tensor of 1, {by_head[:1]} (layers) or "
            f"{by_head} (layers, KV heads)"
        )
    if sum(stretch.rows for stretch in stretches) != q.shape[1] or any(stretch.rows < 1 for stretch in stretches):
        raise ValueError(f"stretches of {[stretch.rows for stretch in stretches]} rows are not the {q.shape[1]} of q")
    for stretch in stretches:
        check_rows(
            q[0],
            kv_heads=first.shape[1],
            head_size=first.shape[3],
            first_position=stretch.first,
            scale=scale,
            span=stretch.span,
            sliding_window=sliding_window,
            soft_cap=soft_cap,
            alibi_slopes=alibi_slopes,
            top=stretch.top,
        )
    most = max(stretch.end for stretch in stretches)
    needed = -(-most // first.shape[2])
    if block_table.dim() != 2 or block_table.shape[0] != len(stretches) or block_table.shape[1] < needed:
        raise ValueError(
            f"block_table is {list(block_table.shape)}; {most} keys in blocks of {first.shape[2]} take {needed} ids in "
            f"each of {len(stretches)} rows"
        )
    return first


def check_rows(
    q: Tensor,
    *,
    kv_heads: int,
    head_size: int,
    first_position: int,
    scale: float,
    span: tuple[int, int],
    sliding_window: int | None,
    soft_cap: float | None,
    alibi_slopes: Tensor | None,
    top: int,
) -> None:
    """Refuse rows of one request that cannot be scored.

    Raises:
        ValueError: Which argument does not fit, and what it must be.
    """
    if q.dim() != 3 or 0 in q.shape or q.shape[2] != head_size:
        raise ValueError(f"q is {list(q.shape)}; it must be [rows, query heads, {head_size}], nothing empty")
    if q.shape[1] % kv_heads:
        raise ValueError(f"{q.shape[1]} query heads cannot share {kv_heads} KV heads evenly")
    if first_position < 0:
        raise ValueError(f"first_position is {first_position}; positions start at 0")
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be above 0")
    if not 0 <= span[0] <= span[1]:
        raise ValueError(f"span is {span}; it must be [start, end) with 0 <= start <= end")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window is {sliding_window}; a row sees at least itself (1), None is no window")
    if soft_cap is not None and soft_cap < 0:
        raise ValueError(f"soft_cap is {soft_cap}; it must be above 0, None or 0 is none")
    if top < 0:
        raise ValueError(f"top is {top}; it must be a number of keys, 0 where none are asked for")
    if alibi_slopes is not None and list(alibi_slopes.shape) != [q.shape[1]]:
        raise ValueError(f"alibi_slopes is {list(alibi_slopes.shape)}; it must be [{q.shape[1]}], one for each head")


def seen_keys(rows: int, first_position: int, sliding_window: int | None) -> tuple[int, int]:
    """Positions `[first, end)` that at least one of the rows sees."""
    first = 0 if sliding_window is None else max(0, first_position - sliding_window + 1)
    return first, first_position + rows
