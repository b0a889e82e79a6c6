"""Scores of attention rows against a paged KV cache: the Triton kernel, with the contract of `attention`.

K is read from the block table once for all rows of a KV head: the rows of the query heads that share it are one
matrix (`BLOCK_M` rows, "lines" here), and programs that need the same keys run side by side, so that only the
first of them reads from memory and the others from the L2 cache. Long contexts are split over programs; a second
launch merges their parts (as Flash-Decoding does; online softmax, arXiv 1805.02867). The span is scored by further
programs of the same kernel, over its keys alone.

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
from operator import itemgetter

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrieval_heads.tracing.rows import FP8, RowScores, Stretch, check_layers, seen_keys
from retrieval_heads.tracing.top_triton import Paged, top_logsumexp
from retrieval_heads.tracing.triton_parts import (
    ALIGNED,
    LOG2E,
    Tiling,
    add_columns,
    blocks_of,
    capped,
    dot_type,
    halves,
    keys_of,
    score_of,
)

NO_WINDOW = 1 << 30

LN2 = tl.constexpr(math.log(2.0))
NO_SCORE = tl.constexpr(-3.0e38)  # below every score; finite, so that -inf - NO_SCORE is -inf and not NaN
NO_POSITION = tl.constexpr(2**31 - 1)
# A guessed maximum serves while the true one is within these powers of two of it: float32 holds 2**±126.
TOO_LOW = tl.constexpr(100.0)
TOO_HIGH = tl.constexpr(-60.0)


def tiling(
    lines: int, head_size: int, cache_bytes: int, float32: bool, multiprocessors: int, *, is_capped: bool = False
) -> Tiling:
    """Choose by shape; by reasons and not by an autotuner, so that no user waits for one.

    Of 128 lines, 4 warps hold 128 scores a thread, with the maximum, position and sum of 4 columns of them, in 250
    registers: two programs share a multiprocessor, and one computes while the other waits. Fewer keys a step would have
    the tensor cores wait for queries, which they read again for every step, and twice the warps for each other.
    Measured on an H200, 32 rows of 4 query heads a KV head, 32,768 keys of 16 bits: 128 keys and 4 warps 0.74 of the
    copy's rate, 64 and 4 0.71, 64 and 8 0.67, 32 and 8 0.61.

    Args:
        lines: Rows × query heads of a KV head.
        head_size: Elements of a key.
        cache_bytes: Bytes of an element of the cache.
        float32: Whether products are float32: no tensor cores, so small tiles, or registers spill.
        multiprocessors: Of the device.
        is_capped: Whether scores have a soft cap, which takes more registers.
    """
    padded = triton.next_power_of_2(head_size)
    if float32:
        return Tiling(16, 32, warps=4, stages=2, registers=255, programs=4 * multiprocessors, columns=32)
    block_m = min(128, max(16, triton.next_power_of_2(lines)))
    # fp8 keys pass through registers on their way to the tensor cores, and wide heads leave no room for two programs.
    is_slim = padded <= 128 and cache_bytes == 2
    if block_m == 128 and is_slim and not is_capped:
        return Tiling(block_m, 128, warps=4, stages=2, registers=255, programs=2 * multiprocessors)
    block_n = 64 if (padded <= 128 and block_m == 16) or (block_m == 128 and is_slim) else 32
    # Some 50 KB a multiprocessor are on the way: its share of the memory's bandwidth × latency.
    stages = 3 if block_n * padded * cache_bytes > 8192 else 4
    if block_m == 128:
        return Tiling(block_m, block_n, 8, stages, registers=128, programs=2 * multiprocessors)
    columns = 8 if block_m == 64 else block_n
    return Tiling(block_m, block_n, 4, stages, registers=128, programs=4 * multiprocessors, columns=columns)


def score_rows(
    q: Tensor,
    k_cache: Tensor,
    block_ids: Tensor,
    first_position: int,
    *,
    scale: float,
    span: tuple[int, int],
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    k_scale: float | Tensor | None = None,
    top: int = 0,
    top_from: int = 0,
    cut: Tiling | None = None,
) -> RowScores:
    """Score consecutive query rows against one request's keys in a paged cache, in two launches.

    Nothing waits for the device. Arguments, result and errors are those of `attention_torch.score_rows`; products of
    16-bit (and fp8) keys with 16-bit queries run on tensor cores and add up in float32, all others are float32.

    Args:
        cut: How to cut the work; None chooses by shape (`tiling`).
    """
    scores = score_layers(
        q[None],
        [k_cache],
        block_ids[None],
        [Stretch(first_position, q.shape[0], span, top, top_from)],
        scale=scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        sinks=None if sinks is None else sinks[None],
        alibi_slopes=alibi_slopes,
        k_scale=k_scale,
        cut=cut,
    )
    return scores.each(itemgetter(0))


def score_layers(
    q: Tensor,
    k_caches: Sequence[Tensor],
    block_table: Tensor,
    stretches: Sequence[Stretch],
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    k_scale: float | Tensor | None = None,
    cut: Tiling | None = None,
) -> RowScores:
    """Score rows of several requests in several layers at once, in two launches, as `attention_torch.score_layers`.

    A layer's keys of a few thousand tokens are read in less time than two launches take; all layers' are not.

    Args:
        cut: How to cut the work; None chooses by shape (`tiling`).
    """
    cache = check_layers(
        q,
        k_caches,
        block_table,
        stretches,
        scale=scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        k_scale=k_scale,
    )
    layers, rows, heads, head_size = q.shape
    kv_heads, block_size = cache.shape[1:3]
    if cache.dtype == torch.uint8:
        cache = cache.view(FP8)
    if k_scale is not None and not isinstance(k_scale, Tensor):
        scale, k_scale = scale * k_scale, None
    half = q.dtype in (torch.float16, torch.bfloat16) and cache.dtype in (q.dtype, FP8)
    dot = dot_type(q, cache)
    group = heads // kv_heads
    longest = max(stretch.rows for stretch in stretches)
    cut = cut or tiling(
        longest * group,
        head_size,
        cache.element_size(),
        not half,
        _multiprocessors(q.device),
        is_capped=bool(soft_cap),
    )
    plan = _plan(tuple(stretches), cut, group, kv_heads * layers, sliding_window)
    # One copy for both: from pinned memory, since a copy from any other waits for the device.
    table = torch.tensor([*plan.fields, *plan.stretch_of_row], dtype=torch.int32, pin_memory=q.is_cuda)
    table = table.to(q.device, non_blocking=True)
    stretch_of_row = table[len(plan.fields) :]

    offsets = _offsets(tuple(one.data_ptr() for one in k_caches), cache.element_size(), q.device)
    window = NO_WINDOW if sliding_window is None else min(sliding_window, NO_WINDOW)
    parts = torch.empty((2, layers, plan.parts, rows * heads), dtype=torch.float32, device=q.device)
    positions = torch.empty(parts.shape[1:], dtype=torch.int32, device=q.device)
    _score_split[(-(-longest * group // cut.block_m) * kv_heads, plan.parts, layers * len(stretches))](
        q,
        cache,
        offsets,
        block_table,
        table,
        parts,
        positions,
        None if alibi_slopes is None else alibi_slopes.contiguous(),
        k_scale,
        rows,
        len(stretches),
        window,
        plan.steps,
        scale,
        soft_cap or 0.0,
        *q.stride(),
        *cache.stride(),
        *_scale_strides(k_scale),
        *block_table.stride(),
        FIELDS=FIELDS,
        HEADS=heads,
        GROUP=group,
        HEAD_SIZE=head_size,
        BLOCK_SIZE=block_size,
        CAPPED=bool(soft_cap),
        DOT=dot,
        BLOCK_M=cut.block_m,
        BLOCK_N=cut.block_n,
        BLOCK_D=triton.next_power_of_2(head_size),
        COLUMNS=min(cut.columns, cut.block_n),
        num_warps=cut.warps,
        num_stages=cut.stages,
        maxnreg=cut.registers,
    )
    has_top = any(stretch.topless < stretch.rows for stretch in stretches)
    paged = Paged(
        q,
        cache,
        offsets,
        block_table,
        None if alibi_slopes is None else alibi_slopes.contiguous(),
        k_scale,
        _scale_strides(k_scale),
        scale,
        soft_cap or 0.0,
        window,
        dot,
    )
    sums = torch.empty((2, layers, rows, heads), dtype=torch.float32, device=q.device)
    argmax = torch.empty((layers, rows, heads), dtype=torch.int32, device=q.device)
    padded_splits = triton.next_power_of_2(plan.splits)
    block = max(4, min(32, 4096 // padded_splits))
    _merge_splits[(triton.cdiv(rows * heads, block), layers)](
        parts,
        positions,
        None if sinks is None else sinks.contiguous(),
        table,
        stretch_of_row,
        sums,
        argmax,
        rows * heads,
        plan.parts,
        FIELDS=FIELDS,
        HEADS=heads,
        SPLITS=padded_splits,
        SPAN_SPLITS=triton.next_power_of_2(max(1, plan.span_splits)),
        BLOCK=block,
    )
    return RowScores(
        argmax=argmax,
        logsumexp=sums[0],
        span_logsumexp=sums[1],
        top_logsumexp=top_logsumexp(paged, stretches, cut, argmax < 0) if has_top else None,
    )


FIELDS = 8
"""Numbers of a stretch that kernels read: `_Plan.fields`."""


@dataclass(frozen=True)
class _Plan:
    """How stretches are cut into programs.

    Args:
        fields: Of each stretch: its first position, rows, their place in q, first step, parts of its keys, the span's
            first and last position, and parts of the span.
        stretch_of_row: Of each row of q.
        steps: Of a program, at most.
        splits: Parts of keys of a stretch, at most.
        span_splits: Parts of a span, at most.
        parts: Of a stretch, both together, at most.
    """

    fields: tuple[int, ...]
    stretch_of_row: tuple[int, ...]
    steps: int
    splits: int
    span_splits: int
    parts: int


@lru_cache(maxsize=64)
def _plan(stretches: tuple[Stretch, ...], cut: Tiling, group: int, units: int, sliding_window: int | None) -> _Plan:
    """Layers of other masks have the same plan: a model has few kinds.

    Args:
        group: Query heads of a KV head.
        units: KV heads of all layers.
    """
    size, seen, runs = cut.block_n, [], Counter[int]()
    for stretch in stretches:
        first, end = seen_keys(stretch.rows, stretch.first, sliding_window)
        tiles = -(-end // size) - first // size
        seen.append((first, end, tiles))
        runs[tiles] += -(-stretch.rows * group // cut.block_m) * units
    steps = cut.steps(runs)
    fields: list[int] = []
    stretch_of_row: list[int] = []
    splits, span_splits = [], []
    for number, (stretch, (first, end, tiles)) in enumerate(zip(stretches, seen, strict=True)):
        splits.append(-(-tiles // steps))
        start, stop = max(stretch.span[0], first), min(stretch.span[1], end)
        span_splits.append(-(-(-(-stop // size) - start // size) // steps) if start < stop else 0)
        fields += [stretch.first, stretch.rows, len(stretch_of_row), first // size, splits[-1], start, stop]
        fields.append(span_splits[-1])
        stretch_of_row += [number] * stretch.rows
    most = max(one + other for one, other in zip(splits, span_splits, strict=True))
    return _Plan(tuple(fields), tuple(stretch_of_row), steps, max(splits), max(span_splits), most)


@lru_cache
def _offsets(pointers: tuple[int, ...], element_bytes: int, device: torch.device) -> Tensor | None:
    """How far each layer's cache is from the first one's, in elements; copied to the device once for a model."""
    if len(pointers) == 1:
        return None
    offsets, odd = zip(*(divmod(one - pointers[0], element_bytes) for one in pointers), strict=True)
    if any(odd) or any(offset % ALIGNED.value for offset in offsets):
        raise ValueError(f"the layers' caches do not begin whole multiples of {ALIGNED.value} elements apart")
    return torch.tensor(offsets, dtype=torch.int64, device=device)


def _scale_strides(k_scale: Tensor | None) -> tuple[int, int]:
    """How far the scales of two layers are apart, and those of two KV heads: 0 where they have the same."""
    if k_scale is None or k_scale.numel() == 1:
        return 0, 0
    return k_scale.stride(0), k_scale.stride(1) if k_scale.dim() > 1 else 0


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 4


@triton.jit(
    # They change with every call: one compilation serves all values.
    do_not_specialize=["total_rows", "stretches", "window", "steps"],
    do_not_specialize_on_alignment=["block_table", "table"],  # a row of vLLM's block table starts anywhere
)
def _score_split(
    q,
    k,
    k_offsets,
    block_table,
    table,
    parts,
    positions,
    alibi_slopes,
    k_scale,
    total_rows,
    stretches,
    window,
    steps,
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
    """One part: greatest score, its position and log2-sum-exp2 of `BLOCK_M` lines over a range of keys.

    Grid: line tiles × KV heads (neighbours read the same blocks), parts, layers × stretches; a stretch with fewer tiles
    or parts than another leaves programs with nothing to do. Programs beyond its splits take the span's keys. Parts:
    `[2, layers, parts, rows × heads]`, the greatest score (in the scores' own unit) and the log2 of the sum;
    positions: `[layers, parts, rows × heads]`.

    Every line keeps maximum, position and sum for each of `COLUMNS` columns (key modulo `COLUMNS`) rather than for
    the line, so that a step needs nothing from another thread, and not for each of `BLOCK_N`, which are too many
    registers. Exponents are taken against the maximum of the program's first step, not a running one: that is a third
    fewer instructions a score, and scores are what the kernel waits for when rows are many. A later score far above
    the guess is noticed at the end, and the sums are taken again against the true maximum.
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
    span_splits = tl.load(fields + 7)
    line_tiles = (rows * GROUP + BLOCK_M - 1) // BLOCK_M
    first_line = tl.program_id(0) % line_tiles * BLOCK_M
    kv_head = tl.program_id(0) // line_tiles
    is_wanted = (kv_head < HEADS // GROUP) & (split < splits + span_splits)
    line = first_line + tl.arange(0, BLOCK_M)
    row = line // GROUP
    head = kv_head * GROUP + line % GROUP
    real = row < tl.where(is_wanted, rows, 0)
    position = first_position + row
    oldest = first_position + first_line // GROUP
    newest = first_position + tl.minimum(rows - 1, (first_line + BLOCK_M - 1) // GROUP)
    block_ids = block_table + stretch * table_row

    # Keys of this program: [low, high) where some row sees them, in steps [tile, end_tile).
    if split < splits:
        low = 0
        high = newest + 1
        tile = first_tile + split * steps
    else:
        low = span_start
        high = tl.minimum(span_end, newest + 1)
        tile = span_start // BLOCK_N + (split - splits) * steps
    end_tile = tl.minimum(tile + steps, (high + BLOCK_N - 1) // BLOCK_N)
    end_tile = tl.where(is_wanted, end_tile, 0)
    low = tl.maximum(low, oldest - window + 1)
    tile = tl.maximum(tile, low // BLOCK_N)
    first_block = low // BLOCK_SIZE
    last_block = tl.maximum(high - 1, 0) // BLOCK_SIZE
    # Steps within these need no mask: all their keys are seen by all rows.
    all_from = tl.maximum(low, newest - window + 1)
    all_until = tl.minimum(high, oldest + 1)

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
    # Without cap and ALiBi scores stay products, and `scale` joins the exponent's factor: no instruction of its own.
    to_log2 = LOG2E if CAPPED or alibi_slopes is not None else scale * LOG2E

    column = tl.arange(0, BLOCK_N)
    best = tl.full([BLOCK_M, COLUMNS], NO_SCORE, tl.float32)
    best_start = tl.zeros([BLOCK_M, COLUMNS], tl.int32)
    best_left = tl.zeros([BLOCK_M, COLUMNS], tl.float32)
    total = tl.zeros([BLOCK_M, COLUMNS], tl.float32)
    guess = tl.zeros([BLOCK_M], tl.float32)
    # A step's block ids are loaded one step ahead: loaded in the step, they would halve how far ahead K can be.
    block = blocks_of(block_ids, tile, column, first_block, last_block, table_block, BLOCK_SIZE, BLOCK_N)
    for t in range(tile, end_tile):
        keys = keys_of(k, block, t, column, element, k_block, k_key, k_element, HEAD_SIZE, BLOCK_SIZE, BLOCK_N)
        block = blocks_of(block_ids, t + 1, column, first_block, last_block, table_block, BLOCK_SIZE, BLOCK_N)
        product = tl.dot(q_lines, tl.trans(keys.to(DOT)), input_precision="ieee")
        start = t * BLOCK_N
        key = start + column
        score = score_of(product, key, position, scale, soft_cap, slope, CAPPED, alibi_slopes is not None)
        rank = score if alibi_slopes is not None else product
        if (start < all_from) | (start + BLOCK_N > all_until):
            seen = (key < high)[None, :] & (key >= low)[None, :]
            seen &= (key[None, :] <= position[:, None]) & (key[None, :] > position[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
            rank = tl.where(seen, rank, float("-inf"))
        if t == tile:
            highest = tl.max(score, 1)
            guess = tl.where(highest > NO_SCORE, highest, 0.0) * to_log2
        total = add_columns(total, tl.exp2(score * to_log2 - guess[:, None]), COLUMNS)
        best, best_start, best_left = _best(best, best_start, best_left, rank, start, COLUMNS)

    greatest = tl.max(best, 1)
    where = best_start + tl.arange(0, COLUMNS)[None, :]
    if COLUMNS < BLOCK_N:
        where += tl.where(best_left == best, 0, COLUMNS)
    where = tl.min(tl.where(best == greatest[:, None], where, NO_POSITION), 1)
    # A soft cap is monotone, so the greatest product has the greatest score.
    highest = greatest
    if CAPPED and alibi_slopes is None:
        highest = capped(greatest * scale, soft_cap)
    highest = tl.where(greatest > NO_SCORE, highest * to_log2, guess)
    wrong = (highest - guess > TOO_LOW) | (highest - guess < TOO_HIGH)
    if tl.max(wrong.to(tl.int32), 0) > 0:
        guess = tl.where(wrong, highest, guess)
        total = tl.zeros([BLOCK_M, COLUMNS], tl.float32)
        for t in tl.range(tile, end_tile, num_stages=1):
            block = blocks_of(block_ids, t, column, first_block, last_block, table_block, BLOCK_SIZE, BLOCK_N)
            keys = keys_of(k, block, t, column, element, k_block, k_key, k_element, HEAD_SIZE, BLOCK_SIZE, BLOCK_N)
            product = tl.dot(q_lines, tl.trans(keys.to(DOT)), input_precision="ieee")
            key = t * BLOCK_N + column
            score = score_of(product, key, position, scale, soft_cap, slope, CAPPED, alibi_slopes is not None)
            seen = (key < high)[None, :] & (key >= low)[None, :]
            seen &= (key[None, :] <= position[:, None]) & (key[None, :] > position[:, None] - window)
            score = tl.where(seen, score * to_log2 - guess[:, None], float("-inf"))
            total = add_columns(total, tl.exp2(score), COLUMNS)

    count = total_rows * HEADS
    part = (layer * tl.num_programs(1) + split).to(tl.int64) * count + (first_row + row) * HEADS + head
    tl.store(parts + part, greatest, mask=real)
    tl.store(positions + part, where, mask=real)
    parts += (tl.num_programs(2) // stretches * tl.num_programs(1)).to(tl.int64) * count
    tl.store(parts + part, guess + tl.log2(tl.sum(total, 1)), mask=real)


@triton.jit
def _best(best, best_start, best_left, rank, start, COLUMNS: tl.constexpr):
    """The greatest rank of each column, and where its keys start; of equal ranks the first.

    Of `COLUMNS` keys and the next as many, the greater alone is compared; `best_left` (the former's rank where the
    greatest was found) tells at the end which it was. That is 5 instructions for 2 ranks rather than 6.
    """
    if rank.shape[1] > 2 * COLUMNS:
        left, right = halves(rank)
        best, best_start, best_left = _best(best, best_start, best_left, left, start, COLUMNS)
        start += rank.shape[1] // 2
        best, best_start, best_left = _best(best, best_start, best_left, right, start, COLUMNS)
    elif rank.shape[1] > COLUMNS:
        left, right = halves(rank)
        rank = tl.maximum(left, right)
        better = rank > best
        best_start = tl.where(better, start, best_start)
        best_left = tl.where(better, left, best_left)
        best = tl.where(better, rank, best)
    else:
        better = rank > best
        best_start = tl.where(better, start, best_start)
        best = tl.where(better, rank, best)
    return best, best_start, best_left


@triton.jit(do_not_specialize=["count", "most"], do_not_specialize_on_alignment=["table", "stretch_of_row"])
def _merge_splits(
    parts,
    positions,
    sinks,
    table,
    stretch_of_row,
    sums,
    argmax,
    count,
    most,
    FIELDS: tl.constexpr,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    SPAN_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge the parts of `BLOCK` of a layer's `count` (row, head) pairs and write them in nats."""
    layer = tl.program_id(1)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = index < count
    fields = table + tl.load(stretch_of_row + index // HEADS, mask=real, other=0) * FIELDS
    splits = tl.load(fields + 4)
    span_splits = tl.load(fields + 7)
    first_part = (layer * most).to(tl.int64) * count
    split = tl.arange(0, SPLITS)
    part = first_part + split[:, None] * count + index[None, :]
    given = (split[:, None] < splits[None, :]) & real[None, :]
    greatest = tl.load(parts + part, mask=given, other=NO_SCORE)
    where = tl.load(positions + part, mask=given, other=NO_POSITION)
    winner = tl.min(tl.where(greatest == tl.max(greatest, 0)[None, :], where, NO_POSITION), 0)

    parts += (tl.num_programs(1) * most).to(tl.int64) * count
    total = _logsumexp2(tl.load(parts + part, mask=given, other=float("-inf")))
    span_split = tl.arange(0, SPAN_SPLITS)
    part = first_part + (splits[None, :] + span_split[:, None]) * count + index[None, :]
    given = (span_split[:, None] < span_splits[None, :]) & real[None, :]
    span_total = _logsumexp2(tl.load(parts + part, mask=given, other=float("-inf")))

    undefined = (total != total) | (total == float("-inf")) | (total == float("inf"))
    total = tl.where(undefined, float("nan"), total)
    span_total = tl.where(undefined, float("nan"), span_total)
    winner = tl.where(undefined, -1, winner)
    if sinks is not None:
        sink = tl.load(sinks + layer * HEADS + index % HEADS, mask=real, other=0.0).to(tl.float32) * LOG2E
        higher = tl.maximum(total, sink)
        total = higher + tl.log2(tl.exp2(total - higher) + tl.exp2(sink - higher))
    index += layer * count
    tl.store(argmax + index, winner, mask=real)
    tl.store(sums + index, total * LN2, mask=real)
    tl.store(sums + tl.num_programs(1) * count + index, span_total * LN2, mask=real)


@triton.jit
def _logsumexp2(values):
    """log2 of the sum of exp2 over the first axis; -inf where all are."""
    highest = tl.max(values, 0)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    return highest + tl.log2(tl.sum(tl.exp2(values - highest[None, :]), 0))
