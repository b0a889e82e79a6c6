"""What kernels that go through the keys of a paged cache have in common.

Import it where CUDA is, or with TRITON_INTERPRET=1 (Triton's interpreter, on CPU) set before the import.
"""

# ruff: noqa: N803 - in a kernel, capitals are what is known at compile time (Triton's own custom).
# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Kernels are Triton's language, not Python: their arguments have no Python types.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrieval_heads.tracing.rows import FP8

INTERPRETED: bool = triton.knobs.runtime.interpret
ALIGNED = tl.constexpr(16)  # elements from layer to layer, so that a load may be 16 bytes wide in each
LOG2E = tl.constexpr(1.0 / math.log(2.0))
START_STEPS = 4  # queries are loaded, keys are waited for, and parts written and merged


def dot_type(one: Tensor, other: Tensor) -> tl.dtype:
    """The type in which two are multiplied: one of 16 bits runs on tensor cores.

    The interpreter multiplies bfloat16 wrongly (as the integers it keeps them in); products in float32 are the same.
    """
    if INTERPRETED or one.dtype not in (torch.float16, torch.bfloat16) or other.dtype not in (one.dtype, FP8):
        return tl.float32
    return tl.float16 if one.dtype == torch.float16 else tl.bfloat16


@dataclass(frozen=True)
class Tiling:
    """How the work is cut; every choice gives the same result up to float32 rounding."""

    block_m: int
    """Lines (rows × query heads of one KV head) in a program: a power of two, 16 or more."""
    block_n: int
    """Keys in a step: a power of two, 16 or more."""
    warps: int
    """Of a program."""
    stages: int
    """Steps whose keys are on their way at once, plus one."""
    registers: int
    """At most, for a thread; 128 lets 16 warps share a multiprocessor."""
    programs: int
    """That the device runs at once."""
    columns: int = 8
    """Columns of scores that maximum, position and sum are kept for, if a step has more keys: a power of two. Of 64
    lines and more, tensor cores leave scores 8 keys apart in one thread, so that 8 need nothing from other threads."""

    def steps(self, runs: Mapping[int, int]) -> int:
        """How many steps a program takes at most.

        Programs run in rounds of as many as the device holds; a last round that is nearly empty takes as long as a full
        one, and each program takes some steps' time to start. The least sum of both, by count.

        Args:
            runs: Runs of steps that can be cut, each part being a program: how many there are of each length.
        """
        longest = max(runs)
        most = max(1, min(longest, 64 * self.programs // sum(runs.values())))
        return min(
            # Not by `triton.cdiv`, which takes microseconds outside of a kernel.
            (-(-longest // parts) for parts in range(1, most + 1)),
            key=lambda steps: (
                -(-sum(-(-run // steps) * count for run, count in runs.items()) // self.programs)
                * (steps + START_STEPS)
            ),
        )


@triton.jit
def halves(values):
    """Left and right half of the columns."""
    return tl.split(tl.permute(tl.reshape(values, [values.shape[0], 2, values.shape[1] // 2]), (0, 2, 1)))


@triton.jit
def add_columns(total, values, COLUMNS: tl.constexpr):
    """Add values to the totals of their columns: those `COLUMNS` apart to the same."""
    if values.shape[1] > COLUMNS:
        left, right = halves(values)
        total = add_columns(add_columns(total, left, COLUMNS), right, COLUMNS)
    else:
        total += values
    return total


@triton.jit
def blocks_of(
    block_ids,
    t,
    column,
    first_block,
    last_block,
    stride: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Cache block of each key of step t: one id where a step lies within a block, else `[BLOCK_N]`.

    Beyond the keys that are seen it is the first or last of them: an id there may be anything.
    """
    if BLOCK_SIZE % BLOCK_N == 0:
        block = t * BLOCK_N // BLOCK_SIZE
    elif BLOCK_N % BLOCK_SIZE == 0:
        block = t * (BLOCK_N // BLOCK_SIZE) + column // BLOCK_SIZE
    else:
        block = (t * BLOCK_N + column) // BLOCK_SIZE
    return tl.load(block_ids + tl.minimum(tl.maximum(block, first_block), last_block) * stride)


@triton.jit
def keys_of(
    k,
    block,
    t,
    column,
    element,
    k_block: tl.constexpr,
    k_key: tl.constexpr,
    k_element: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """K of step t: `[BLOCK_N, BLOCK_D]`, zeros beyond the head size. Offsets of blocks pass 2**31 elements."""
    if BLOCK_SIZE % BLOCK_N == 0:
        offset = block.to(tl.int64) * k_block + (t * BLOCK_N % BLOCK_SIZE + column) * k_key
    elif BLOCK_N % BLOCK_SIZE == 0:
        offset = block.to(tl.int64) * k_block + column % BLOCK_SIZE * k_key
    else:
        offset = block.to(tl.int64) * k_block + (t * BLOCK_N + column) % BLOCK_SIZE * k_key
    return tl.load(k + offset[:, None] + (element * k_element)[None, :], mask=(element < HEAD_SIZE)[None, :], other=0.0)


@triton.jit
def score_of(product, key, position, scale, soft_cap, slope, CAPPED: tl.constexpr, ALIBI: tl.constexpr):
    """Score of each product: scaled, capped, biased; the product itself where there is neither cap nor ALiBi."""
    if CAPPED:
        product = capped(product * scale, soft_cap)
    elif ALIBI:
        product = product * scale
    if ALIBI:
        product += slope[:, None] * (key[None, :] - position[:, None]).to(tl.float32)
    return product


@triton.jit
def capped(score, cap):
    """cap × tanh(score / cap), by exp2, which is one instruction; overflow and underflow of it give ±cap."""
    return cap - 2.0 * cap / (1.0 + tl.exp2(score * (2.0 * LOG2E / cap)))
