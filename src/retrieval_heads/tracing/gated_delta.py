"""Effective attention of a gated delta recurrence: what weight each position's value has in a row's output.

Such a layer keeps a state in place of keys. Per head and token j, with decay a, write strength b, key k, value v:

    S_j = a_j (I - b_j k_j k_jᵀ) S_{j-1} + b_j k_j v_jᵀ        o_t = S_tᵀ q_t

(Yang, Kautz, Hatamizadeh 2024, Gated Delta Networks, arXiv 2412.06464, section 3.1.) That is linear in the values, so
o_t = Σ_i w_{t,i} v_i with w_{t,i} = b_i k_iᵀ (Π_{j=i+1..t} a_j (I - b_j k_j k_jᵀ)) q_t, the factor of j = t meeting q
first. Weights have a sign and do not sum to 1. Nothing here knows vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from retrieval_heads.tracing.rows import Stretch
from retrieval_heads.tracing.top_keys import TopKeys

CHUNK = 64
NORM_EPSILON = 1e-6  # of vLLM's l2norm, beside the sum of squares


@dataclass(frozen=True)
class SignedScores:
    """What rows draw on, on the device of q, each `[rows, v_heads]`.

    Where anything that a row sees is not finite, its argmaxes are -1 and its share is NaN, in that row and head alone.
    A row whose weights are all 0 points nowhere: -1, and its share is 0.
    """

    argmax_magnitude: Tensor
    """int32: absolute position of the weight farthest from 0; of equal ones the lowest position."""
    argmax_value: Tensor
    """int32: absolute position of the greatest weight, the sign counted; of equal ones the lowest position."""
    span_share: Tensor
    """float: sum of |weight| over the visible positions of the span, divided by that over all visible positions."""
    top_share: Tensor | None = None
    """float: the same of those positions of the span alone whose |weight| is among the greatest of the row, as
    `RowScores.top_logsumexp` has it; NaN of rows that it is not wanted of.
    """


@dataclass(frozen=True)
class Recurrence:
    """What the recurrence of one layer reads, for consecutive tokens."""

    q: Tensor
    """`[tokens, k_heads, head_k_dim]`, unit vectors times head_k_dim^-1/2; v-heads of one k-head share it."""
    keys: Tensor
    """`[tokens, k_heads, head_k_dim]`, unit vectors."""
    log_decay: Tensor
    """`[tokens, v_heads]`, nats, at most 0."""
    strength: Tensor
    """`[tokens, v_heads]`, 0 to 1."""


def score_rows_gated_delta(
    q: Tensor,
    first_position: int,
    keys: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    *,
    span: tuple[int, int],
    top: int = 0,
    top_from: int = 0,
    chunk: int = CHUNK,
) -> SignedScores:
    """Fold the weights of `effective_weights` chunk by chunk; nothing of size rows × context is kept.

    Args:
        span: Positions `[start, end)`, absolute, that `span_share` is over; empty where start = end.
        top: See `Stretch`, as the next.
        top_from: Position of the first row that it is wanted of.

    Raises:
        ValueError: As `effective_weights`, or a span that is none.
    """
    if not 0 <= span[0] <= span[1]:
        raise ValueError(f"span is {span}; it must be [start, end) with 0 <= start <= end")
    position = torch.arange(first_position, first_position + q.shape[0], device=q.device)
    greatest = torch.full(q.shape[:2], float("-inf"), dtype=_dtype(q), device=q.device)
    farthest, total, inside = torch.zeros_like(greatest), torch.zeros_like(greatest), torch.zeros_like(greatest)
    argmax_value = torch.zeros_like(greatest, dtype=torch.long)
    argmax_magnitude = torch.zeros_like(argmax_value)
    topless = Stretch(first_position, q.shape[0], span, top, top_from).topless
    top_keys = None if topless == q.shape[0] else TopKeys(top, greatest[topless:].shape, q.device, greatest.dtype)
    in_span: list[Tensor] = []

    for start, weights in effective_weights(q, first_position, keys, log_decay, strength, chunk=chunk):
        magnitudes = weights.abs()
        total += magnitudes.sum(-1)
        own = slice(max(span[0] - start, 0), max(span[1] - start, 0))
        inside += magnitudes[..., own].sum(-1)
        # Chunks come from high positions to low: of equal weights the one met last lies lowest.
        best, index = magnitudes.max(-1)
        if top_keys is not None:
            in_span.append(magnitudes[topless:, ..., own].clone())
            top_keys.add(magnitudes[topless:], best[topless:], in_span[-1], is_span_met=start <= span[0])
        argmax_magnitude = torch.where(best >= farthest, index + start, argmax_magnitude)
        farthest = torch.maximum(best, farthest)
        if start + weights.shape[-1] > first_position + 1:  # a weight of 0 is no weight where the row does not see
            unseen = torch.arange(start, start + weights.shape[-1], device=q.device) > position[:, None]
            weights = weights.masked_fill(unseen[:, None], float("-inf"))
        best, index = weights.max(-1)
        argmax_value = torch.where(best >= greatest, index + start, argmax_value)
        greatest = torch.maximum(best, greatest)

    undefined, nothing = ~torch.isfinite(total), total == 0
    nowhere = undefined | nothing
    total = total.masked_fill(nothing, 1.0)
    top_share = None
    if top_keys is not None:
        magnitudes = torch.cat(in_span, dim=-1)
        is_top = top_keys.among(magnitudes)
        top_share = torch.full_like(total, float("nan"))
        share = (magnitudes * is_top).sum(-1) / total[topless:]
        top_share[topless:] = share.masked_fill(undefined[topless:], float("nan"))
    return SignedScores(
        argmax_magnitude=argmax_magnitude.masked_fill(nowhere, -1).to(torch.int32),
        argmax_value=argmax_value.masked_fill(nowhere, -1).to(torch.int32),
        span_share=(inside / total).masked_fill(undefined, float("nan")),
        top_share=top_share,
    )


def effective_weights(
    q: Tensor,
    first_position: int,
    keys: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    *,
    chunk: int = CHUNK,
) -> Iterator[tuple[int, Tensor]]:
    """Weights of consecutive rows on every position, from the last chunk of positions to the first.

    Each row carries u = (Π a_j (I - b_j k_j k_jᵀ)) q backwards. In a chunk whose last vector is u,
    `w_j = b_j (A_j k_j·u - Σ_{m>j} Γ_jm (k_j·k_m) w_m)`, with Γ_jm = Π_{j<i<=m} a_i and A_j the same to the chunk's end
    (or to the row, where it lies in the chunk): unit upper triangular, the chunked form of section 3.3 read from its
    other end. Decays enter as products over a range, never as a quotient, so nothing overflows.

    Args:
        q: `[rows, v_heads, head_k_dim]`, scaled; row r is at `first_position + r`. Float64 is computed in float64,
            all else in float32.
        first_position: Position of row 0 in the request, in tokens.
        keys: `[at least first_position + rows, k_heads, head_k_dim]`, unit vectors from position 0 on. V-head h reads
            k-head `h // (v_heads // k_heads)`.
        log_decay: `[as keys, v_heads]`, nats, at most 0.
        strength: `[as keys, v_heads]`.
        chunk: Positions at a time.

    Yields:
        The chunk's first position and its weights `[rows, v_heads, up to chunk]`: 0 where a row does not see. Below a
        visible position that holds something not finite they are NaN, and above it they may be, in its chunk.

    Raises:
        ValueError: Shapes or numbers that do not fit together, named.
    """
    _check(q, first_position, keys, log_decay, strength, chunk)
    return _backwards(q, first_position, keys, log_decay, strength, chunk)


def recurrence(
    mixed: Tensor,
    conv_weight: Tensor,
    b: Tensor,
    a: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    *,
    k_heads: int,
    head_k_dim: int,
    conv_bias: Tensor | None = None,
    earlier: Tensor | None = None,
) -> Recurrence:
    """What the recurrence reads, from the layer's two projections; part by part the same as at once.

    Args:
        mixed: `[tokens, channels]`, q, k and v before the convolution, heads in order; v may be left out.
        conv_weight: `[channels, width]` of the causal depthwise convolution.
        b: `[tokens, v_heads]`, write strength before its sigmoid.
        a: `[tokens, v_heads]`, decay before its softplus.
        a_log: `[v_heads]`; `log_decay = -exp(a_log) * softplus(a + dt_bias)`.
        dt_bias: `[v_heads]`.
        k_heads: Heads of q and of k.
        head_k_dim: Size of each.
        conv_bias: `[channels]`.
        earlier: `[up to width - 1, channels]`: the rows of `mixed` just before these; None where the request starts.

    Raises:
        ValueError: Shapes that do not fit together, named.
    """
    size = k_heads * head_k_dim
    if mixed.dim() != 2 or mixed.shape[1] < 2 * size:
        raise ValueError(f"mixed is {list(mixed.shape)}; it must be [tokens, at least {2 * size}] (q and k)")
    if a_log.dim() != 1 or dt_bias.shape != a_log.shape:
        raise ValueError(
            f"a_log is {list(a_log.shape)} and dt_bias {list(dt_bias.shape)}; both must be [v-heads]: "
            "one decay for each head, not for each channel"
        )
    tokens, v_heads = mixed.shape[0], a_log.shape[0]
    for name, gate in (("b", b), ("a", a)):
        if list(gate.shape) != [tokens, v_heads]:
            raise ValueError(f"{name} is {list(gate.shape)}; it must be [{tokens}, {v_heads}] (tokens, v-heads)")
    convolved = causal_conv(
        mixed[:, : 2 * size],
        conv_weight[: 2 * size],
        None if conv_bias is None else conv_bias[: 2 * size],
        None if earlier is None else earlier[:, : 2 * size],
    )
    dtype = _dtype(mixed)
    q, keys = _unit(convolved.view(tokens, 2, k_heads, head_k_dim)).unbind(1)
    return Recurrence(
        q=q * head_k_dim**-0.5,
        keys=keys,
        log_decay=-a_log.to(dtype).exp() * functional.softplus(a.to(dtype) + dt_bias.to(dtype)),
        strength=b.to(dtype).sigmoid(),
    )


def causal_conv(features: Tensor, weight: Tensor, bias: Tensor | None = None, earlier: Tensor | None = None) -> Tensor:
    """Causal depthwise convolution along the tokens, then SiLU: `[tokens, channels]`.

    Computed in float64 for float64, else in float32, and rounded to the dtype of `features` as the layer stores it.

    Args:
        features: `[tokens, channels]`.
        weight: `[channels, width]`; the last column is the token's own.
        bias: `[channels]`.
        earlier: `[up to width - 1, channels]`, the features just before these; what is missing counts as 0.

    Raises:
        ValueError: Shapes that do not fit together, named.
    """
    tokens, channels = features.shape
    if weight.dim() != 2 or weight.shape[0] != channels:
        raise ValueError(f"the convolution's weight is {list(weight.shape)}; it must be [{channels}, width]")
    reach = weight.shape[1] - 1
    before = features[:0] if earlier is None else earlier
    if before.shape[0] > reach or before.shape[1:] != features.shape[1:]:
        raise ValueError(f"earlier is {list(before.shape)}; it must be [up to {reach}, {channels}]")
    dtype = _dtype(features)
    padded = functional.pad(torch.cat([before, features]), (0, 0, reach - before.shape[0], 0)).to(dtype)
    taps = weight.to(dtype)
    out = padded[reach:] * taps[:, reach]
    for tap in range(reach):
        out.addcmul_(padded[tap : tap + tokens], taps[:, tap])
    if bias is not None:
        out += bias.to(dtype)
    return functional.silu(out).to(features.dtype).to(dtype)


def _backwards(
    q: Tensor, first_position: int, keys: Tensor, log_decay: Tensor, strength: Tensor, chunk: int
) -> Iterator[tuple[int, Tensor]]:
    rows, v_heads, size = q.shape
    k_heads, dtype = keys.shape[1], _dtype(q)
    position = torch.arange(first_position, first_position + rows, device=q.device)
    u = q.to(dtype).transpose(0, 1)  # [v_heads, rows, size], each at the row's own position or the chunk's end
    end = first_position + rows
    for start in range((end - 1) // chunk * chunk, -1, -chunk):
        stop = min(end, start + chunk)
        k = keys[start:stop].to(dtype).transpose(0, 1)  # [k_heads, length, size]
        b = strength[start:stop].to(dtype).T  # [v_heads, length]
        # In float64: a difference of two sums far from 0 is a small number.
        log_a = log_decay[start:stop].double().T
        heard, length = b, stop - start
        straddles = stop > first_position + 1
        if straddles:
            # A row must not meet what lies above it. NaN stays in the right-hand sides, where a row is a column.
            good = k.isfinite().all(-1).repeat_interleave(v_heads // k_heads, 0) & b.isfinite() & log_a.isfinite()
            heard = b.masked_fill(~good, float("nan"))
            k, b, log_a = (each.nan_to_num(0.0, 0.0, 0.0) for each in (k, b, log_a))
        sums = functional.pad(log_a.cumsum(-1), (1, 0))  # [v_heads, length + 1], the first before the chunk
        # How many of the chunk's positions a row sees: all of them, for every row, below the rows.
        reach = (position if straddles else position[:1]).sub(start - 1).clamp(0, length)
        here, after = sums[:, reach, None], sums[:, None, 1:]

        known = _per_key_head(u, k_heads) @ k.transpose(1, 2)
        known = known.view(v_heads, rows, length) * _decay(here - after, dtype) * heard[:, None]
        if straddles:
            unseen = torch.arange(length, device=q.device) >= reach[:, None]
            known = known.masked_fill_(unseen, 0.0)
        between = _decay(after - sums[:, 1:, None], dtype) * b[..., None]
        between.view(k_heads, -1, length, length).mul_((k @ k.transpose(1, 2))[:, None])
        weights = torch.linalg.solve_triangular(between, known.transpose(1, 2), upper=True, unitriangular=True)
        weights = weights.transpose(1, 2)  # [v_heads, rows, length]
        taken = _per_key_head(weights * _decay(after, dtype), k_heads) @ k
        u = _decay(here, dtype) * u - taken.view(v_heads, rows, size)
        yield start, weights.transpose(0, 1)


def _decay(log_decay: Tensor, dtype: torch.dtype) -> Tensor:
    """Factors at most 1: those above are of no use, yet infinity must not lie in the half a solver skips."""
    return log_decay.to(dtype).clamp(max=0.0).exp_()


def _per_key_head(each: Tensor, k_heads: int) -> Tensor:
    """`[v_heads, rows, n]` to `[k_heads, v-heads of it × rows, n]`: one matrix for all that read a key head."""
    return each.reshape(k_heads, -1, each.shape[-1])


def _unit(vectors: Tensor) -> Tensor:
    return vectors * (vectors.square().sum(-1, keepdim=True) + NORM_EPSILON).rsqrt()


def _dtype(given: Tensor) -> torch.dtype:
    return torch.float64 if given.dtype == torch.float64 else torch.float32


def _check(q: Tensor, first_position: int, keys: Tensor, log_decay: Tensor, strength: Tensor, chunk: int) -> None:
    if keys.dim() != 3 or 0 in keys.shape:
        raise ValueError(f"keys is {list(keys.shape)}; it must be [context, k-heads, head size], nothing empty")
    context, k_heads, size = keys.shape
    if q.dim() != 3 or 0 in q.shape or q.shape[2] != size:
        raise ValueError(f"q is {list(q.shape)}; it must be [rows, v-heads, {size}], nothing empty")
    rows, v_heads, _ = q.shape
    if v_heads % k_heads:
        raise ValueError(f"{v_heads} v-heads cannot share {k_heads} k-heads evenly")
    for name, gate in (("log_decay", log_decay), ("strength", strength)):
        if list(gate.shape) != [context, v_heads]:
            raise ValueError(f"{name} is {list(gate.shape)}; it must be [{context}, {v_heads}] (context, v-heads)")
    if first_position < 0:
        raise ValueError(f"first_position is {first_position}; positions start at 0")
    if first_position + rows > context:
        raise ValueError(f"rows see positions 0 to {first_position + rows - 1}; given are 0 to {context - 1}")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1 position")
