"""Attention of rows that see the first tokens and the last ones alone: the Triton kernel, which writes in place.

A program takes the rows of one tile in the heads of one KV head, goes through the keys that the tile reads and writes
what streaming heads put out over what they had put out. One launch a layer takes the place of some thirty.

Import it where CUDA is, or with TRITON_INTERPRET=1 (Triton's interpreter, on CPU) set before the import.
"""

# ruff: noqa: N803 - in a kernel, capitals are what is known at compile time (Triton's own custom).
# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Kernels are Triton's language, not Python: their arguments have no Python types.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrieval_heads.tracing.attention_triton import NO_WINDOW
from retrieval_heads.tracing.rows import FP8
from retrieval_heads.tracing.streamed import Seen
from retrieval_heads.tracing.triton_parts import LOG2E, capped, dot_type


def write_attended(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seen: Seen,
    streaming: Tensor,
    output: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Write `streamed.attended` of the heads that stream into a layer's output; nothing waits for the device.

    Products of 16-bit numbers run on tensor cores and add up in float32, all others are float32.

    Args:
        q: `[N, R, query_heads, head_size]`; query head h reads KV head `h // (query_heads // kv_heads)`.
        k_cache: `[blocks, kv_heads, block_size, head_size]`, any strides; fp8 also as bytes.
        v_cache: The same of values.
        block_table: `[requests of the batch, blocks]`.
        seen: Which row sees which key.
        streaming: Which heads of which request stream, `[requests that stream, query_heads]`; heads of a KV head alike.
        output: `[tokens, query_heads, value_size]`, written in the rows that hide a key.
        scale: As `attention_torch.score_rows`, and what follows.
        sinks: `[query_heads]`, a logit for each head that no key has.
        k_scale: What keys are multiplied by, `[1]` or `[kv_heads]`.
        v_scale: The same of values.
    """
    tiles, rows, heads, head_size = q.shape
    keys, values = (cache.view(FP8) if cache.dtype == torch.uint8 else cache for cache in (k_cache, v_cache))
    kv_heads, value_size = keys.shape[1], values.shape[3]
    dot = dot_type(q, keys)
    is_half = dot != tl.float32
    lines = rows * heads // kv_heads
    block_m, block_n, warps, stages = _tiling(lines, max(head_size, value_size), is_half=is_half)
    blocks, places = seen.cells(block_table, keys.shape[2])
    _attend[(triton.cdiv(lines, block_m), kv_heads, tiles)](
        q,
        keys,
        values,
        blocks,
        places,
        seen.keys,
        seen.rows,
        seen.low,
        seen.sink,
        seen.tokens,
        seen.requests,
        streaming,
        output,
        alibi_slopes,
        sinks,
        k_scale,
        v_scale,
        rows,
        seen.keys.shape[1],
        NO_WINDOW if sliding_window is None else min(sliding_window, NO_WINDOW),
        scale,
        soft_cap or 0.0,
        *q.stride(),
        *keys.stride(),
        *values.stride(),
        *output.stride(),
        *streaming.stride(),
        int(k_scale is not None and k_scale.numel() > 1),
        int(v_scale is not None and v_scale.numel() > 1),
        GROUP=heads // kv_heads,
        HEAD_SIZE=head_size,
        VALUE_SIZE=value_size,
        CAPPED=bool(soft_cap),
        DOT=dot,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=max(16, triton.next_power_of_2(head_size)),
        BLOCK_V=max(16, triton.next_power_of_2(value_size)),
        num_warps=warps,
        num_stages=stages,
    )


def _tiling(lines: int, size: int, *, is_half: bool) -> tuple[int, int, int, int]:
    """Lines and keys of a program's step, its warps, and stages of its loop.

    Args:
        lines: Rows × query heads of one KV head, of a tile.
        size: Features of a key or a value.
        is_half: Whether 16-bit numbers are multiplied.
    """
    block_m = min(64 if is_half else 16, max(16, triton.next_power_of_2(lines)))
    if not is_half:
        return block_m, 16, 4, 2
    return block_m, 64 if size <= 128 else 32, 4, 3 if size <= 128 else 2


@triton.jit(do_not_specialize=["rows", "key_count", "window"])  # they change: one compilation serves all values
def _attend(
    q,
    k,
    v,
    blocks,
    places,
    keys,
    positions,
    lows,
    sinks_seen,
    tokens,
    requests,
    streaming,
    output,
    alibi_slopes,
    sinks,
    k_scale,
    v_scale,
    rows,
    key_count,
    window,
    scale,
    soft_cap,
    q_tile,
    q_row,
    q_head,
    q_element,
    k_block,
    k_head,
    k_key,
    k_element,
    v_block,
    v_head,
    v_key,
    v_element,
    o_token,
    o_head,
    o_element,
    s_request,
    s_head,
    k_scale_head,
    v_scale_head,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    CAPPED: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Up to `BLOCK_M` lines (rows × query heads of one KV head) of one tile. Grid: parts, KV heads, tiles."""
    kv_head = tl.program_id(1)
    tile = tl.program_id(2).to(tl.int64)
    request = tl.load(requests + tile)
    # Query heads that share keys stream together.
    if tl.load(streaming + request * s_request + kv_head * GROUP * s_head) == 0:
        return
    line = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = line < rows * GROUP
    row = line // GROUP
    head = kv_head * GROUP + line % GROUP
    at = tile * rows + row
    sink = tl.load(sinks_seen + tile)
    low = tl.load(lows + at, mask=real, other=0)
    real &= low > sink
    element = tl.arange(0, BLOCK_D)
    value = tl.arange(0, BLOCK_V)
    q_lines = tl.load(
        q + (tile * q_tile + row * q_row + head * q_head)[:, None] + element[None, :] * q_element,
        mask=real[:, None] & (element < HEAD_SIZE)[None, :],
        other=0.0,
    ).to(DOT)
    position = tl.load(positions + at, mask=real, other=0)
    if k_scale is not None:
        scale *= tl.load(k_scale + kv_head * k_scale_head)
    slope = tl.zeros([BLOCK_M], tl.float32)
    if alibi_slopes is not None:
        slope += tl.load(alibi_slopes + head, mask=real, other=0.0).to(tl.float32)
    greatest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if sinks is not None:
        greatest = tl.load(sinks + head, mask=real, other=0.0).to(tl.float32) * LOG2E
        total += 1.0
    k += kv_head.to(tl.int64) * k_head
    v += kv_head.to(tl.int64) * v_head
    found = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for start in range(0, key_count, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        within = key < key_count
        cell = tile * key_count + key
        block = tl.load(blocks + cell, mask=within, other=0).to(tl.int64)
        place = tl.load(places + cell, mask=within, other=0)
        key_position = tl.load(keys + cell, mask=within, other=0)
        k_lines = tl.load(
            k + (block * k_block + place * k_key)[:, None] + (element * k_element)[None, :],
            mask=within[:, None] & (element < HEAD_SIZE)[None, :],
            other=0.0,
        ).to(DOT)
        score = tl.dot(q_lines, tl.trans(k_lines), input_precision="ieee") * scale
        if CAPPED:
            score = capped(score, soft_cap)
        away = key_position[None, :] - position[:, None]
        if alibi_slopes is not None:
            score += slope[:, None] * away.to(tl.float32)
        is_seen = (
            (away <= 0) & (away > -window) & ((key_position < sink)[None, :] | (key_position[None, :] >= low[:, None]))
        )
        score = tl.where(is_seen & within[None, :], score * LOG2E, float("-inf"))
        higher = tl.maximum(greatest, tl.max(score, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(score - base[:, None])
        before = tl.exp2(greatest - base)
        total = total * before + tl.sum(weights, 1)
        v_lines = tl.load(
            v + (block * v_block + place * v_key)[:, None] + (value * v_element)[None, :],
            mask=within[:, None] & (value < VALUE_SIZE)[None, :],
            other=0.0,
        ).to(DOT)
        found = found * before[:, None] + tl.dot(weights.to(DOT), v_lines, input_precision="ieee")
        greatest = higher
    if v_scale is not None:
        found *= tl.load(v_scale + kv_head * v_scale_head)
    token = tl.load(tokens + at, mask=real, other=0)
    tl.store(
        output + (token * o_token + head * o_head)[:, None] + (value * o_element)[None, :],
        (found / total[:, None]).to(output.dtype.element_ty),
        mask=real[:, None] & (value < VALUE_SIZE)[None, :],
    )
