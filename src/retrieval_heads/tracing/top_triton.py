"""Which keys of a span are among the greatest of a row: the Triton path, with the contract of `top_keys`.

Choosing the n greatest of a context is much work; whether a span's key is one of them is little: fewer than n keys must
have a greater score. The span's scores are put in order, and how many of them are among the top is searched for: in a
round, one pass over the keys counts those above `PIVOTS` of them, which leaves one part in `PIVOTS` of the doubt. Spans
of up to 42 tokens take two rounds, of up to 300 three. A round reads the keys as the scoring does and does less with
each; programs whose rows leave no doubt read nothing.

Import it where CUDA is, or with TRITON_INTERPRET=1 (Triton's interpreter, on CPU) set before the import.
"""

# ruff: noqa: N803 - in a kernel, capitals are what is known at compile time (Triton's own custom).
# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Kernels are Triton's language, not Python: their arguments have no Python types.

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrieval_heads.tracing.rows import Stretch, seen_keys
from retrieval_heads.tracing.triton_parts import ALIGNED, Tiling, add_columns, blocks_of, keys_of, score_of

PIVOTS = 6
HELD_BYTES = 4 << 20
"""Of span scores: layers are looked at so many at a time that theirs are no more; what is made of them takes seven
times that, 28 MB.
"""


@dataclass(frozen=True)
class Paged:
    """Rows and the keys that they see; see `attention_triton.score_layers`.

    Args:
        q: `[layers, rows, query heads, head size]`.
        cache: The first layer's, `[blocks, KV heads, block size, head size]`.
        offsets: How far each layer's is from it, in elements; `None` for one layer.
        block_table: `[stretches, blocks]`.
        alibi_slopes: `[query heads]`.
        k_scale: What keys are multiplied by, beside `scale`.
        scale_strides: From one layer's to the next in `k_scale`, and from one KV head's.
        scale: Factor of q · k.
        soft_cap: 0 is none.
        window: Keys that a row sees.
        dot: What products are made of.
    """

    q: Tensor
    cache: Tensor
    offsets: Tensor | None
    block_table: Tensor
    alibi_slopes: Tensor | None
    k_scale: Tensor | None
    scale_strides: tuple[int, int]
    scale: float
    soft_cap: float
    window: int
    dot: Any

    def nats(self, ranks: Tensor) -> Tensor:
        """Scores of what keys are ranked by, `[layers, rows, query heads, keys]`: the ranks, with ALiBi."""
        if self.alibi_slopes is not None:
            return ranks
        factor: Tensor | float = self.scale
        if self.k_scale is not None:
            heads = self.q.shape[2]
            each = self.k_scale.float().view(len(self.k_scale) if self.k_scale.numel() > 1 else 1, -1)
            factor = self.scale * each.repeat_interleave(heads // each.shape[1], dim=1)[:, None, :, None]
        scores = ranks * factor
        if not self.soft_cap:
            return scores
        return (torch.tanh(scores / self.soft_cap) * self.soft_cap).masked_fill(ranks == -math.inf, -math.inf)

    def of_layers(self, first: int, end: int) -> Paged:
        """Some of the layers."""
        k_scale, offsets = self.k_scale, self.offsets
        if k_scale is not None and k_scale.numel() > 1:
            k_scale = k_scale[first:end]
        return Paged(
            **{
                **vars(self),
                "q": self.q[first:end],
                "offsets": None if offsets is None else offsets[first:end],
                "k_scale": k_scale,
            }
        )


def top_logsumexp(paged: Paged, stretches: Sequence[Stretch], cut: Tiling, is_undefined: Tensor) -> Tensor:
    """`RowScores.top_logsumexp` of all rows, `[layers, rows, query heads]`; nothing waits for the device.

    Args:
        paged: The rows and their keys.
        stretches: Whose rows they are, one stretch after the other.
        cut: How to cut the work.
        is_undefined: Rows and heads whose softmax is not defined.
    """
    layers, rows, heads, _ = paged.q.shape
    kv_heads = paged.cache.shape[1]
    plan = _plan(tuple(stretches), cut, heads // kv_heads, kv_heads * layers, paged.window)
    table = torch.tensor([*plan.fields, *plan.counts], dtype=torch.int32, pin_memory=paged.q.is_cuda)
    table = table.to(paged.q.device, non_blocking=True)
    counts = table[len(plan.fields) :]
    together = max(1, HELD_BYTES // (4 * rows * heads * plan.longest))
    parts = [
        _of_layers(paged.of_layers(first, min(first + together, layers)), table, counts, plan, cut)
        for first in range(0, layers, together)
    ]
    # Rows that want no keys are no numbers either.
    return torch.cat(parts).masked_fill(is_undefined | (counts == 0)[:, None], math.nan)


FIELDS = 7
"""Numbers of a stretch that kernels read: `_Plan.fields`."""


@dataclass(frozen=True)
class _Plan:
    """How the rows whose greatest keys are wanted are cut into programs.

    Args:
        fields: Of each stretch: its first wanted row's position, how many there are, their place in q, first step,
            parts of its keys, the span's first and last position that are seen.
        counts: Of each row of q, how many greatest keys are looked among; 0 where they are not wanted.
        lines: Rows of a stretch, at most.
        steps: Of a program, at most.
        splits: Parts of keys of a stretch, at most.
        longest: Tokens of a span, at most, and at least 1.
    """

    fields: tuple[int, ...]
    counts: tuple[int, ...]
    lines: int
    steps: int
    splits: int
    longest: int


@lru_cache(maxsize=64)
def _plan(stretches: tuple[Stretch, ...], cut: Tiling, group: int, units: int, window: int) -> _Plan:
    size, runs, seen = cut.block_n, Counter[int](), []
    for stretch in stretches:
        rows, position = stretch.rows - stretch.topless, stretch.first + stretch.topless
        first, end = seen_keys(rows, position, window) if rows else (0, 0)
        tiles = -(-end // size) - first // size
        seen.append((rows, position, first, end, tiles))
        if rows:
            runs[tiles] += -(-rows * group // cut.block_m) * units
    steps = cut.steps(runs)
    fields: list[int] = []
    counts: list[int] = []
    splits, longest = [], [1]
    for stretch, (rows, position, first, end, tiles) in zip(stretches, seen, strict=True):
        splits.append(-(-tiles // steps))
        start, stop = max(stretch.span[0], first), min(stretch.span[1], end)
        longest.append(stop - start)
        fields += [position, rows, len(counts) + stretch.topless, first // size, splits[-1], start, max(start, stop)]
        counts += [0] * stretch.topless + [stretch.top] * rows
    lines = max(rows for rows, *_ in seen)
    return _Plan(tuple(fields), tuple(counts), lines, steps, max(splits), max(longest))


def rounds(longest: int) -> int:
    """Passes over the keys that a span of so many tokens takes."""
    count = 0
    while longest > 0:
        longest, count = -(-longest // PIVOTS) - 1, count + 1
    return count


def _of_layers(paged: Paged, table: Tensor, counts: Tensor, plan: _Plan, cut: Tiling) -> Tensor:
    layers, rows, heads, _ = paged.q.shape
    ranks = torch.full((layers, rows, heads, plan.longest), -math.inf, device=paged.q.device)
    _launch(paged, table, plan, cut, -(-plan.longest // cut.block_n) + 1, None, ranks)
    ranks = ranks.sort(dim=-1, descending=True).values
    place = torch.arange(plan.longest, device=ranks.device)
    # Of the span's own keys, those before the first of a run of equal ones are greater.
    is_new = torch.cat([torch.ones_like(ranks[..., :1], dtype=torch.bool), ranks[..., 1:] != ranks[..., :-1]], -1)
    above = torch.where(is_new, place, 0).cummax(-1).values
    # Those in front of `low` are among the top, those from `high` on are not.
    low = torch.zeros(ranks.shape[:3], dtype=torch.int64, device=ranks.device)
    high = torch.full_like(low, plan.longest)
    part = torch.arange(PIVOTS, device=ranks.device)
    for _ in range(rounds(plan.longest)):
        pivots = low[..., None] + part * (high - low)[..., None] // PIVOTS
        pivots = torch.minimum(pivots, high[..., None] - 1).clamp(min=0)
        thresholds = ranks.gather(-1, pivots)
        # No key is above infinity, so that nothing is counted where nothing is in doubt.
        thresholds = thresholds.masked_fill((low >= high)[..., None], math.inf)
        passing = torch.zeros(pivots.shape, dtype=torch.int32, device=ranks.device)
        _launch(paged, table, plan, cut, plan.splits, thresholds, passing)
        is_in = (passing + above.gather(-1, pivots) < counts[:, None, None]) & (low < high)[..., None]
        is_out = ~is_in & (low < high)[..., None]
        low = torch.maximum(low, torch.where(is_in, pivots + 1, 0).amax(-1))
        high = torch.minimum(high, torch.where(is_out, pivots, plan.longest).amin(-1))
    found: Tensor = paged.nats(ranks).masked_fill(place >= low[..., None], -math.inf).logsumexp(-1)
    return found


def _launch(
    paged: Paged, table: Tensor, plan: _Plan, cut: Tiling, parts: int, thresholds: Tensor | None, found: Tensor
) -> None:
    layers, rows, heads, head_size = paged.q.shape
    kv_heads, block_size = paged.cache.shape[1:3]
    stretches = len(paged.block_table)
    lines = -(-plan.lines * (heads // kv_heads) // cut.block_m)
    _pass[(lines * kv_heads, parts, layers * stretches)](
        thresholds,
        found,
        paged.q,
        paged.cache,
        paged.offsets,
        paged.block_table,
        table,
        paged.alibi_slopes,
        paged.k_scale,
        rows,
        stretches,
        paged.window,
        plan.steps,
        found.shape[-1],
        paged.scale,
        paged.soft_cap,
        *paged.q.stride(),
        *paged.cache.stride(),
        *paged.scale_strides,
        *paged.block_table.stride(),
        FIELDS=FIELDS,
        HEADS=heads,
        GROUP=heads // kv_heads,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=block_size,
        CAPPED=bool(paged.soft_cap),
        DOT=paged.dot,
        BLOCK_M=cut.block_m,
        BLOCK_N=cut.block_n,
        BLOCK_D=triton.next_power_of_2(head_size),
        COLUMNS=min(cut.columns, cut.block_n),
        num_warps=cut.warps,
        num_stages=cut.stages,
        maxnreg=cut.registers,
    )


@triton.jit(
    # They change with every call: one compilation serves all values.
    do_not_specialize=["total_rows", "stretches", "window", "steps", "width"],
    do_not_specialize_on_alignment=["block_table", "table"],  # a row of vLLM's block table starts anywhere
)
def _pass(
    thresholds,
    found,
    q,
    k,
    k_offsets,
    block_table,
    table,
    alibi_slopes,
    k_scale,
    total_rows,
    stretches,
    window,
    steps,
    width,
    scale,
    soft_cap,
    q_layer,
    q_row,
    q_head,
    q_element,
    k_block: tl.constexpr,
    k_head: tl.constexpr,
    k_key: tl.constexpr,
    k_element: tl.constexpr,
    k_scale_layer,
    k_scale_head,
    table_row,
    table_block: tl.constexpr,
    FIELDS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CAPPED: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One part of a pass over the keys of `BLOCK_M` lines.

    With thresholds, `[layers, rows, heads, 6]`, it adds to `found`, of the same shape, how many keys beside the span's
    are above each. Without, it writes what the span's keys are ranked by, `[layers, rows, heads, width]`.

    Grid: line tiles × KV heads (neighbours read the same blocks), parts, layers × stretches; a stretch with fewer tiles
    or parts than another leaves programs with nothing to do. Keys are read and ranked as `attention_triton` does, in
    tiles of the same shape, so that a product is the same number in both.
    """
    layer = tl.program_id(2) // stretches
    stretch = tl.program_id(2) % stretches
    split = tl.program_id(1)
    fields = table + stretch * FIELDS
    first_position = tl.load(fields)
    rows = tl.load(fields + 1)
    first_row = tl.load(fields + 2)
    first_tile = tl.load(fields + 3)
    splits = tl.load(fields + 4)
    span_start = tl.load(fields + 5)
    span_end = tl.load(fields + 6)
    line_tiles = tl.maximum((rows * GROUP + BLOCK_M - 1) // BLOCK_M, 1)
    first_line = tl.program_id(0) % line_tiles * BLOCK_M
    kv_head = tl.program_id(0) // line_tiles
    line = first_line + tl.arange(0, BLOCK_M)
    row = line // GROUP
    head = kv_head * GROUP + line % GROUP
    position = first_position + row
    oldest = first_position + first_line // GROUP
    newest = first_position + tl.minimum(rows - 1, (first_line + BLOCK_M - 1) // GROUP)
    block_ids = block_table + stretch * table_row

    # Keys of this program: [low, high) where some row sees them, in steps [tile, end_tile).
    if thresholds is not None:
        is_wanted = (rows > 0) & (kv_head < HEADS // GROUP) & (split < splits)
        low = tl.maximum(0, oldest - window + 1)
        high = newest + 1
        tile = tl.maximum(first_tile + split * steps, low // BLOCK_N)
        end_tile = first_tile + (split + 1) * steps
    else:
        is_wanted = (rows > 0) & (kv_head < HEADS // GROUP)
        low = tl.maximum(span_start, oldest - window + 1)
        high = tl.minimum(span_end, newest + 1)
        tile = span_start // BLOCK_N + split
        end_tile = tile + 1
    real = row < tl.where(is_wanted, rows, 0)
    end_tile = tl.where(is_wanted, tl.minimum(end_tile, (high + BLOCK_N - 1) // BLOCK_N), 0)
    first_block = low // BLOCK_SIZE
    last_block = tl.maximum(high - 1, low) // BLOCK_SIZE
    # Steps within these need no mask, but for the span: all their keys are seen by all rows.
    all_from = tl.maximum(low, newest - window + 1)
    all_until = tl.minimum(high, oldest + 1)

    place = (layer.to(tl.int64) * total_rows + first_row + row) * HEADS + head
    found += place * width
    if thresholds is not None:
        thresholds += place * width
        above_0 = tl.load(thresholds, mask=real, other=float("inf"))
        above_1 = tl.load(thresholds + 1, mask=real, other=float("inf"))
        above_2 = tl.load(thresholds + 2, mask=real, other=float("inf"))
        above_3 = tl.load(thresholds + 3, mask=real, other=float("inf"))
        above_4 = tl.load(thresholds + 4, mask=real, other=float("inf"))
        above_5 = tl.load(thresholds + 5, mask=real, other=float("inf"))
        # Where nothing is in doubt the first, which is the highest, is infinite.
        end_tile = tl.where(tl.min(above_0, 0) < float("inf"), end_tile, 0)
        count_0 = tl.zeros([BLOCK_M, COLUMNS], tl.int32)
        count_1 = tl.zeros([BLOCK_M, COLUMNS], tl.int32)
        count_2 = tl.zeros([BLOCK_M, COLUMNS], tl.int32)
        count_3 = tl.zeros([BLOCK_M, COLUMNS], tl.int32)
        count_4 = tl.zeros([BLOCK_M, COLUMNS], tl.int32)
        count_5 = tl.zeros([BLOCK_M, COLUMNS], tl.int32)

    element = tl.arange(0, BLOCK_D)
    present = element < HEAD_SIZE
    q += layer.to(tl.int64) * q_layer
    q_lines = tl.load(
        q + ((first_row + row) * q_row + head * q_head)[:, None] + (element * q_element)[None, :],
        mask=real[:, None] & present[None, :],
        other=0.0,
    ).to(DOT)
    k += kv_head.to(tl.int64) * k_head
    if k_offsets is not None:
        k += tl.multiple_of(tl.load(k_offsets + layer), ALIGNED)
    if k_scale is not None:
        scale *= tl.load(k_scale + layer * k_scale_layer + kv_head * k_scale_head, mask=is_wanted, other=1.0)
    slope = tl.load(alibi_slopes + head, mask=real, other=0.0).to(tl.float32) if alibi_slopes is not None else 0.0

    column = tl.arange(0, BLOCK_N)
    block = blocks_of(block_ids, tile, column, first_block, last_block, table_block, BLOCK_SIZE, BLOCK_N)
    for t in range(tile, end_tile):
        keys = keys_of(k, block, t, column, element, k_block, k_key, k_element, HEAD_SIZE, BLOCK_SIZE, BLOCK_N)
        block = blocks_of(block_ids, t + 1, column, first_block, last_block, table_block, BLOCK_SIZE, BLOCK_N)
        rank = tl.dot(q_lines, tl.trans(keys.to(DOT)), input_precision="ieee")
        start = t * BLOCK_N
        key = start + column
        if alibi_slopes is not None:
            rank = score_of(rank, key, position, scale, soft_cap, slope, CAPPED, True)
        seen = (key[None, :] <= position[:, None]) & (key[None, :] > position[:, None] - window)
        if thresholds is not None:
            is_near = (start < span_end) & (start + BLOCK_N > span_start)
            if (start < all_from) | (start + BLOCK_N > all_until) | is_near:
                seen &= ((key >= low) & (key < high) & ((key < span_start) | (key >= span_end)))[None, :]
                rank = tl.where(seen, rank, float("-inf"))
            count_0 = add_columns(count_0, (rank > above_0[:, None]).to(tl.int32), COLUMNS)
            count_1 = add_columns(count_1, (rank > above_1[:, None]).to(tl.int32), COLUMNS)
            count_2 = add_columns(count_2, (rank > above_2[:, None]).to(tl.int32), COLUMNS)
            count_3 = add_columns(count_3, (rank > above_3[:, None]).to(tl.int32), COLUMNS)
            count_4 = add_columns(count_4, (rank > above_4[:, None]).to(tl.int32), COLUMNS)
            count_5 = add_columns(count_5, (rank > above_5[:, None]).to(tl.int32), COLUMNS)
        else:
            seen &= ((key >= low) & (key < high))[None, :] & real[:, None]
            tl.store(found[:, None] + (key - span_start)[None, :], rank, mask=seen)

    if thresholds is not None:
        tl.atomic_add(found, tl.sum(count_0, 1), mask=real)
        tl.atomic_add(found + 1, tl.sum(count_1, 1), mask=real)
        tl.atomic_add(found + 2, tl.sum(count_2, 1), mask=real)
        tl.atomic_add(found + 3, tl.sum(count_3, 1), mask=real)
        tl.atomic_add(found + 4, tl.sum(count_4, 1), mask=real)
        tl.atomic_add(found + 5, tl.sum(count_5, 1), mask=real)
