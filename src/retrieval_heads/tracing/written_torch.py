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
from retrieval_heads.tracing.products import product
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
    """The part of heads' outputs that comes from some keys, float32 `[..., rows, query_heads, value_size]`.

    Args:
        q: `[..., rows, query_heads, head_size]`, consecutive rows; of several layers, as what follows.
        keys: `[..., n, kv_heads, head_size]` of those; query head h reads KV head `h // (query_heads // kv_heads)`.
        values: `[..., n, kv_heads, value_size]`.
        positions: `[n]`, where they stand.
        first_position: Position of row 0.
        logsumexp: `[..., rows, query_heads]`, nats, over all that the rows see: what `RowScores` has.
        scale: As `attention_torch.score_rows`, and what follows.
    """
    rows, kv_heads = q.shape[-3], keys.shape[-2]
    grouped = q.float().unflatten(-2, (kv_heads, -1))
    scores = torch.einsum("...rkgd,...nkd->...kgrn", grouped, keys.float()) * scale
    if soft_cap:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    away = positions - torch.arange(first_position, first_position + rows, device=q.device)[:, None]
    if alibi_slopes is not None:
        scores = scores + alibi_slopes.float().view(kv_heads, -1, 1, 1) * away
    seen = away <= 0
    if sliding_window is not None:
        seen &= away > -sliding_window
    total = logsumexp.unflatten(-1, (kv_heads, -1)).movedim(-3, -1)
    weights = (scores - total[..., None]).exp().masked_fill(~seen, 0.0)
    return torch.einsum("...kgrn,...nkv->...rkgv", weights, values.float()).flatten(-3, -2)


def written(pull: Tensor, inside: Tensor, outputs: Tensor, ratios: Tensor) -> Tensor:
    """S of rows, float32 `[..., rows, query_heads]`.

    Args:
        pull: W_Oᵀ u_y of each row and head, float32 `[..., rows, query_heads, value_size]`.
        inside: From `needle_outputs`.
        outputs: The heads' outputs, of the same shape.
        ratios: n / m of each row, `[rows]`.
    """
    ratio = ratios[:, None, None]
    return (pull * ((1 + ratio) * inside - ratio * outputs.float())).sum(-1)


def needle_rows(caches: Sequence[Tensor], block_ids: Tensor, positions: Tensor, scale: Tensor | None) -> Tensor:
    """Keys or values of some positions, `[layers, n, kv_heads, size]`: the blocks that hold them are read, no others.

    Args:
        caches: Of each layer, `[blocks, kv_heads, block_size, size]`; fp8 also as bytes.
        block_ids: `[blocks of the request]`.
        positions: Which, int64 `[n]`.
        scale: What they are multiplied by, `[layers]` or `[layers, kv_heads]`.
    """
    block_size = caches[0].shape[2]
    blocks, places = block_ids.long()[positions // block_size], positions % block_size
    plain = (cache.view(torch.uint8) if cache.dtype == FP8 else cache for cache in caches)
    cells = torch.stack([cache[blocks, :, places] for cache in plain])
    if cells.dtype == torch.uint8:
        cells = cells.view(FP8)
    return cells if scale is None else cells.float() * scale.view(len(caches), 1, -1, 1)


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
    if unembedding is not None:
        emitted, is_bfloat16 = unembedding.float(), unembedding.dtype == projections[0].dtype == torch.bfloat16
        projections = [product(emitted, projection.float(), of_bfloat16=is_bfloat16) for projection in projections]
    pulls = torch.stack([pull.view(outputs.shape[1:]) for pull in projections])
    if gates is not None:
        pulls = pulls * gates.float()
    start = 0
    for one in emissions:
        own, here = slice(one.place, one.place + len(one.tokens)), slice(start, start + len(one.tokens))
        positions = torch.tensor(one.needle(sliding_window), dtype=torch.int64, device=q.device)
        inside = needle_outputs(
            q[:, own],
            needle_rows(k_caches, block_table[one.stretch], positions, k_scale),
            needle_rows(v_caches, block_table[one.stretch], positions, v_scale),
            positions,
            one.first,
            logsumexp[:, own],
            scale=scale,
            sliding_window=sliding_window,
            soft_cap=soft_cap,
            alibi_slopes=alibi_slopes,
        )
        ratios = torch.tensor(one.ratios(sliding_window), device=q.device)
        found[:, own] = written(pulls[:, here], inside, outputs[:, here], ratios)
        start = here.stop
    return found
