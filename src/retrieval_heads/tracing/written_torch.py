"""What heads write towards an emitted token, from the needles against the rest: the torch path, which is the reference.

For a row that predicted token y, φ_j = α_j · u_yᵀ W_O v_j is what the value of key j adds to y's logit through one
head (LOCOS, arXiv 2607.01002), and S = Σ_needles φ − (n / m) Σ_others φ, of n needle keys and m others that the row
sees. All of it is linear in the values: with the pull W_Oᵀ u_y, the head's output o = Σ α_j v_j, which the layer has
computed, and the needles' part of it o_N, S = pull · ((1 + n / m) o_N − (n / m) o): only the needles' keys and values
are read.
`written_triton` has the same contract on CUDA. Nothing here knows vLLM or waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval_heads.tracing.emissions import Emission
from retrieval_heads.tracing.rows import FP8


def needle_outputs(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    first_position: int,
    logsumexp: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """The part of heads' outputs that comes from some keys, float32 `[rows, query_heads, value_size]`.

    Args:
        q: `[rows, query_heads, head_size]`, consecutive rows.
        keys: `[n, kv_heads, head_size]` of those keys; query head h reads KV head `h // (query_heads // kv_heads)`.
        values: `[n, kv_heads, value_size]`.
        positions: `[n]`, where they stand.
        first_position: Position of row 0.
        logsumexp: `[rows, query_heads]`, nats, over all that the rows see: what `RowScores` has.
        scale: As `attention_torch.score_rows`, and what follows.
    """
    rows, heads, _ = q.shape
    kv_heads = keys.shape[1]
    grouped = q.float().unflatten(1, (kv_heads, -1))
    scores = torch.einsum("rkgd,nkd->kgrn", grouped, keys.float()) * scale
    if soft_cap:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    away = positions - torch.arange(first_position, first_position + rows, device=q.device)[:, None]
    if alibi_slopes is not None:
        scores = scores + alibi_slopes.float().view(kv_heads, -1, 1, 1) * away
    seen = away <= 0
    if sliding_window is not None:
        seen &= away > -sliding_window
    total = logsumexp.view(rows, kv_heads, -1).permute(1, 2, 0)
    weights = (scores - total[..., None]).exp().masked_fill(~seen, 0.0)
    return torch.einsum("kgrn,nkv->rkgv", weights, values.float()).reshape(rows, heads, -1)


def written(pull: Tensor, inside: Tensor, outputs: Tensor, ratios: Tensor) -> Tensor:
    """S of rows, float32 `[rows, query_heads]`.

    Args:
        pull: W_Oᵀ u_y of each row and head, float32 `[rows, query_heads, value_size]`.
        inside: From `needle_outputs`.
        outputs: The heads' outputs, of the same shape.
        ratios: n / m of each row, `[rows]`.
    """
    ratio = ratios[:, None, None]
    return (pull * ((1 + ratio) * inside - ratio * outputs.float())).sum(-1)


def needle_rows(cache: Tensor, block_ids: Tensor, positions: Sequence[int], scale: Tensor | None) -> Tensor:
    """Keys or values of some positions, `[n, kv_heads, size]`: the blocks that hold them are read, and no others.

    Args:
        cache: `[blocks, kv_heads, block_size, size]`; fp8 also as bytes.
        block_ids: `[blocks of the request]`.
        positions: Which.
        scale: What they are multiplied by, `[1]` or `[kv_heads]`.
    """
    block_size = cache.shape[2]
    where = torch.tensor(positions, dtype=torch.int64, device=cache.device)
    plain = cache.view(torch.uint8) if cache.dtype == FP8 else cache
    cells = plain[block_ids.long()[where // block_size], :, where % block_size]
    if cells.dtype == torch.uint8:
        cells = cells.view(FP8)
    return cells if scale is None else cells.float() * scale.view(1, -1, 1)


@dataclass(frozen=True)
class Blocks:
    """The blocks that hold needles.

    Args:
        ids: In the cache, `[blocks]`.
        table: Of a cache that holds these alone, in this order: `[stretches, blocks]`.
    """

    ids: Tensor
    table: Tensor


def needle_blocks(emissions: Sequence[Emission], block_table: Tensor, block_size: int) -> Blocks:
    """Find them in a block table, `[stretches, blocks]`."""
    places = sorted({(one.stretch, key // block_size) for one in emissions for key in one.needle()})
    where = tuple(torch.tensor(places, device=block_table.device).T)
    table = torch.zeros_like(block_table)
    table[where] = torch.arange(len(places), dtype=table.dtype, device=table.device)
    return Blocks(block_table[where], table)


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
    """S of the emissions' rows in several layers that are alike, float32 `[layers, rows, query_heads]`; NaN of others.

    Args:
        q: `[layers, rows, query_heads, head_size]`: the queries of all rows that the step scores.
        k_caches: One for each layer, `[blocks, kv_heads, block_size, head_size]`, alike.
        v_caches: The same of values.
        block_table: `[stretches, blocks]`.
        emissions: Whose rows, W in all, are wanted.
        logsumexp: `[layers, rows, query_heads]`.
        outputs: Of the heads, `[layers, W, query_heads, value_size]`.
        projections: Of each layer W_O, `[hidden, query_heads × value_size]`; without `unembedding` what it would give
            with it, the pulls, `[W, query_heads × value_size]`.
        unembedding: Row u_y of the token that each row predicted, `[W, hidden]`.
        gates: What a head's output is multiplied by before its projection, as `outputs`.
        scale: As `attention_torch.score_layers`, and what follows.
        v_scale: What values are multiplied by: `[layers]`, or `[layers, kv_heads]`.
    """
    found = torch.full(logsumexp.shape, float("nan"), device=q.device)
    ratios = [torch.tensor(one.ratios(sliding_window), device=q.device) for one in emissions]
    for layer, projection in enumerate(projections):
        pulls = projection if unembedding is None else unembedding.float() @ projection.float()
        pulls = pulls.view(outputs.shape[1:])
        if gates is not None:
            pulls = pulls * gates[layer].float()
        start = 0
        for one, ratio in zip(emissions, ratios, strict=True):
            own, here = slice(one.place, one.place + len(one.tokens)), slice(start, start + len(one.tokens))
            positions, block_ids = one.needle(sliding_window), block_table[one.stretch]
            inside = needle_outputs(
                q[layer, own],
                needle_rows(k_caches[layer], block_ids, positions, None if k_scale is None else k_scale[layer]),
                needle_rows(v_caches[layer], block_ids, positions, None if v_scale is None else v_scale[layer]),
                torch.tensor(positions, dtype=torch.int64, device=q.device),
                one.first,
                logsumexp[layer, own],
                scale=scale,
                sliding_window=sliding_window,
                soft_cap=soft_cap,
                alibi_slopes=alibi_slopes,
            )
            found[layer, own] = written(pulls[here], inside, outputs[layer, here], ratio)
            start = here.stop
    return found
