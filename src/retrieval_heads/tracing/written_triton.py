"""What heads write towards an emitted token: the Triton kernel, with the contract of `written_torch`, in one launch.

A program takes the rows of one request in one head of one layer. It makes their pull W_Oᵀ u_y in registers, from the
rows of the unembedding and the head's columns of W_O, so that neither the pulls nor a copy of W_O stand in memory. Then
it goes through the needles' keys and values, and through no others. Programs of one head run side by side, so that W_O
is read from memory once.

Import it where CUDA is, or with TRITON_INTERPRET=1 (Triton's interpreter, on CPU) set before the import.
"""

# ruff: noqa: N803 - in a kernel, capitals are what is known at compile time (Triton's own custom).
# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Kernels are Triton's language, not Python: their arguments have no Python types.

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrieval_heads.tracing.attention_triton import NO_WINDOW, _offsets, _scale_strides
from retrieval_heads.tracing.emissions import Emission
from retrieval_heads.tracing.rows import FP8
from retrieval_heads.tracing.triton_parts import ALIGNED, LOG2E, capped, dot_type

FIELDS = 6
"""Numbers of a tile that the kernel reads: position, rows, their place in q and among the emissions' rows, stretch and
emission.
"""


def score_written(
    q: Tensor,
    k_caches: Sequence[Tensor],
    v_caches: Sequence[Tensor],
    block_table: Tensor,
    emissions: Sequence[Emission],
    *,
    logsumexp: Tensor,
    outputs: Tensor,
    projections: Sequence[Tensor],
    unembedding: Tensor | None = None,
    gates: Tensor | None = None,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """S of the emissions' rows in several layers that are alike, as `written_torch.score_written`; nothing waits for
    the device. Products of 16-bit numbers run on tensor cores and add up in float32, all others are float32.
    """
    layers, rows, heads, head_size = q.shape
    value_size = outputs.shape[3]
    keys, values = (each[0].view(FP8) if each[0].dtype == torch.uint8 else each[0] for each in (k_caches, v_caches))
    longest = max(len(one.tokens) for one in emissions)
    dot = dot_type(q, keys)
    is_half = dot != tl.float32
    block_m = min(64 if value_size <= 128 else 32, max(16, triton.next_power_of_2(longest))) if is_half else 16
    count, most, table, ratio = _tables_on(q.device, tuple(emissions), block_m, sliding_window)
    found = torch.full((layers, rows, heads), float("nan"), dtype=torch.float32, device=q.device)
    weights = projections[0]
    _write[(count, heads, layers)](
        q,
        keys,
        _offsets(tuple(one.data_ptr() for one in k_caches), keys.element_size(), q.device),
        values,
        _offsets(tuple(one.data_ptr() for one in v_caches), values.element_size(), q.device),
        weights,
        _offsets(tuple(one.data_ptr() for one in projections), weights.element_size(), q.device),
        unembedding,
        outputs,
        gates,
        logsumexp.contiguous(),
        block_table,
        table,
        ratio,
        None if alibi_slopes is None else alibi_slopes.contiguous(),
        k_scale,
        v_scale,
        found,
        rows,
        count * FIELDS,
        most,
        weights.shape[0],
        NO_WINDOW if sliding_window is None else min(sliding_window, NO_WINDOW),
        scale,
        soft_cap or 0.0,
        *q.stride(),
        *keys.stride(),
        *values.stride(),
        *weights.stride(),
        *((0, 0) if unembedding is None else unembedding.stride()),
        *outputs.stride(),
        *((0,) * 4 if gates is None else gates.stride()),
        *_scale_strides(k_scale),
        *_scale_strides(v_scale),
        *block_table.stride(),
        FIELDS=FIELDS,
        HEADS=heads,
        GROUP=heads // keys.shape[1],
        HEAD_SIZE=head_size,
        VALUE_SIZE=value_size,
        BLOCK_SIZE=keys.shape[2],
        CAPPED=bool(soft_cap),
        DOT=dot,
        PULL_DOT=tl.float32 if unembedding is None else dot_type(weights, unembedding),
        BLOCK_M=block_m,
        BLOCK_N=32 if is_half else 16,
        BLOCK_C=64 if is_half else 32,
        BLOCK_D=max(16, triton.next_power_of_2(head_size)),
        BLOCK_V=max(16, triton.next_power_of_2(value_size)),
        num_warps=4,
        num_stages=3 if is_half else 2,
    )
    return found


@lru_cache(maxsize=8)  # layers that have no block table in common ask for the same ones
def _tables_on(
    device: torch.device, emissions: tuple[Emission, ...], block_m: int, sliding_window: int | None
) -> tuple[int, int, Tensor, Tensor]:
    """How many tiles there are, how many spans an emission has at most, and on the device: tiles and spans; n / m."""
    tiles, spans, ratios = _tables(emissions, block_m, sliding_window)
    # From pinned memory: a copy from any other waits for the device.
    is_cuda = device.type == "cuda"
    table = torch.tensor([*tiles, *spans], dtype=torch.int32, pin_memory=is_cuda).to(device, non_blocking=True)
    ratio = torch.tensor(ratios, dtype=torch.float32, pin_memory=is_cuda).to(device, non_blocking=True)
    return len(tiles) // FIELDS, len(spans) // len(emissions) // 2, table, ratio


def _tables(
    emissions: Sequence[Emission], block_m: int, sliding_window: int | None
) -> tuple[list[int], list[int], list[float]]:
    """Fields of every tile; each emission's spans, as many as the most has, `start, end` each; n / m of every row."""
    tiles: list[int] = []
    spans: list[int] = []
    ratios: list[float] = []
    most = max(len(one.spans) for one in emissions)
    for number, one in enumerate(emissions):
        for at in range(0, len(one.tokens), block_m):
            count = min(block_m, len(one.tokens) - at)
            tiles += [one.first + at, count, one.place + at, len(ratios) + at, one.stretch, number]
        for start, end in (*one.spans, *[(0, 0)] * (most - len(one.spans))):
            spans += [start, end]
        ratios += one.ratios(sliding_window)
    return tiles, spans, ratios


@triton.jit(
    # They change with every call: one compilation serves all values.
    do_not_specialize=["total_rows", "spans_from", "most", "window"],
    do_not_specialize_on_alignment=["block_table", "table"],  # a row of vLLM's block table starts anywhere
)
def _write(
    q,
    k,
    k_offsets,
    v,
    v_offsets,
    w,
    w_offsets,
    unembedding,
    outputs,
    gates,
    logsumexp,
    block_table,
    table,
    ratios,
    alibi_slopes,
    k_scale,
    v_scale,
    found,
    total_rows,
    spans_from,
    most,
    hidden,
    window,
    scale,
    soft_cap,
    q_layer,
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
    w_row,
    w_column,
    u_row,
    u_element,
    o_layer,
    o_row,
    o_head,
    o_element,
    g_layer,
    g_row,
    g_head,
    g_element,
    k_scale_layer,
    k_scale_head,
    v_scale_layer,
    v_scale_head,
    table_row,
    table_block,
    FIELDS: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CAPPED: tl.constexpr,
    DOT: tl.constexpr,
    PULL_DOT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """S of up to `BLOCK_M` rows of one request in one head of one layer. Grid: tiles, heads, layers."""
    head = tl.program_id(1)
    layer = tl.program_id(2)
    kv_head = head // GROUP
    fields = table + tl.program_id(0) * FIELDS
    first_position = tl.load(fields)
    rows = tl.load(fields + 1)
    place = tl.load(fields + 2)
    own_place = tl.load(fields + 3)
    stretch = tl.load(fields + 4)
    emission = tl.load(fields + 5)
    row = tl.arange(0, BLOCK_M)
    real = row < rows
    position = first_position + row
    element = tl.arange(0, BLOCK_D)
    value = tl.arange(0, BLOCK_V)
    is_value = real[:, None] & (value < VALUE_SIZE)[None, :]

    if w_offsets is not None:
        w += tl.multiple_of(tl.load(w_offsets + layer), ALIGNED)
    column = head * VALUE_SIZE + value
    if unembedding is None:
        pull = tl.load(w + (own_place + row)[:, None] * w_row + column[None, :] * w_column, mask=is_value, other=0.0)
        pull = pull.to(tl.float32)
    else:
        pull = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
        u_lines = unembedding + (own_place + row)[:, None] * u_row
        for start in range(0, hidden, BLOCK_C):
            feature = start + tl.arange(0, BLOCK_C)
            within = feature < hidden
            u = tl.load(u_lines + feature[None, :] * u_element, mask=real[:, None] & within[None, :], other=0.0)
            weight = tl.load(
                w + feature[:, None].to(tl.int64) * w_row + column[None, :] * w_column,
                mask=within[:, None] & (value < VALUE_SIZE)[None, :],
                other=0.0,
            )
            pull += tl.dot(u.to(PULL_DOT), weight.to(PULL_DOT), input_precision="ieee")
    if gates is not None:
        g = gates + layer.to(tl.int64) * g_layer + head * g_head
        gate = tl.load(g + (own_place + row)[:, None] * g_row + value[None, :] * g_element, mask=is_value, other=0.0)
        pull *= gate.to(tl.float32)

    q += layer.to(tl.int64) * q_layer + head * q_head
    q_lines = tl.load(
        q + (place + row)[:, None] * q_row + element[None, :] * q_element,
        mask=real[:, None] & (element < HEAD_SIZE)[None, :],
        other=0.0,
    ).to(DOT)
    cell = (layer.to(tl.int64) * total_rows + place + row) * HEADS + head
    total = tl.load(logsumexp + cell, mask=real, other=0.0)
    if k_offsets is not None:
        k += tl.multiple_of(tl.load(k_offsets + layer), ALIGNED)
    if v_offsets is not None:
        v += tl.multiple_of(tl.load(v_offsets + layer), ALIGNED)
    k += kv_head.to(tl.int64) * k_head
    v += kv_head.to(tl.int64) * v_head
    if k_scale is not None:
        scale *= tl.load(k_scale + layer * k_scale_layer + kv_head * k_scale_head)
    slope = tl.load(alibi_slopes + head).to(tl.float32) if alibi_slopes is not None else 0.0
    block_ids = block_table + stretch * table_row
    spans = table + spans_from + emission * most * 2
    inside = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for span in range(0, most):
        low = tl.maximum(tl.load(spans + span * 2), first_position - window + 1)
        high = tl.minimum(tl.load(spans + span * 2 + 1), first_position + rows)
        for start in tl.range(low, high, BLOCK_N, num_stages=1):
            key = start + tl.arange(0, BLOCK_N)
            within = key < high
            block = tl.load(block_ids + key // BLOCK_SIZE * table_block, mask=within, other=0).to(tl.int64)
            slot = key % BLOCK_SIZE
            keys = tl.load(
                k + (block * k_block + slot * k_key)[:, None] + element[None, :] * k_element,
                mask=within[:, None] & (element < HEAD_SIZE)[None, :],
                other=0.0,
            )
            score = tl.dot(q_lines, tl.trans(keys.to(DOT)), input_precision="ieee") * scale
            if CAPPED:
                score = capped(score, soft_cap)
            if alibi_slopes is not None:
                score += slope * (key[None, :] - position[:, None]).to(tl.float32)
            seen = within[None, :] & (key[None, :] <= position[:, None]) & (key[None, :] > position[:, None] - window)
            weights = tl.where(seen, tl.exp2((score - total[:, None]) * LOG2E), 0.0)
            values = tl.load(
                v + (block * v_block + slot * v_key)[:, None] + value[None, :] * v_element,
                mask=within[:, None] & (value < VALUE_SIZE)[None, :],
                other=0.0,
            )
            inside += tl.dot(weights.to(DOT), values.to(DOT), input_precision="ieee")
    if v_scale is not None:
        inside *= tl.load(v_scale + layer * v_scale_layer + kv_head * v_scale_head)

    outputs += layer.to(tl.int64) * o_layer + head * o_head
    output = tl.load(
        outputs + (own_place + row)[:, None] * o_row + value[None, :] * o_element, mask=is_value, other=0.0
    ).to(tl.float32)
    ratio = tl.load(ratios + own_place + row, mask=real, other=0.0)[:, None]
    written = tl.sum(pull * ((1.0 + ratio) * inside - ratio * output), 1)
    tl.store(found + cell, written, mask=real)
