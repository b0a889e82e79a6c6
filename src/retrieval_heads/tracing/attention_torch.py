"""Scores of attention rows against a KV cache: the torch path, which is the reference and what runs on CPU.

A row is one query position. What leaves is per row and head, never per key: which key wins, and the
log-sum-exps that weights are ratios of (the weight on a span is `exp(span_logsumexp - logsumexp)`).
`attention_triton` has the same contract on CUDA. Nothing here knows vLLM or waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from retrieval_heads.tracing.products import product
from retrieval_heads.tracing.rows import (
    FP8,
    RowScores,
    Stretch,
    check_layers,
    check_rows,
    joined,
    layered,
    seen_keys,
)
from retrieval_heads.tracing.top_keys import TopKeys

KEYS_AT_A_TIME = 2048  # scores of 50 rows × 9 heads × 2048 keys: 4 MB, so they stay in a CPU's cache
KEYS_PER_GROUP = 64
ROWS_AT_A_TIME = 1024  # of a long text of which every row is scored
BYTES_AT_A_TIME = 16 << 20  # of layers' queries and of their rows' scores in the span
NATS = math.log(2.0)  # in one bit
MINUS_INFINITY = -0x800000  # its bits in float32, as an int32
NO_SCORE = -3.0e38  # below every score; finite, so that -inf - NO_SCORE is -inf and not NaN

Read = Callable[[int, int], Tensor]
"""Gives a layer's keys at positions `[start, stop)`: `[kv_heads, stop - start, head_size]`."""


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
) -> RowScores:
    """Score consecutive query rows against one request's keys in a paged cache.

    The score of query x at position p and key y at position j is `scale * (x · y)`, then
    `soft_cap * tanh(score / soft_cap)`, then `+ slope * (j - p)`, in float32, for the visible keys alone:
    `max(0, p - sliding_window + 1) <= j <= p`. Blocks that no row sees are never read, and what lies in a block
    beside the visible keys (NaN too) has no influence. A soft cap is monotone, so the argmax is taken before
    it: tanh in float32 would make equal what is not.

    Args:
        q: `[rows, query_heads, head_size]`, any float dtype; row r is at `first_position + r`.
        k_cache: `[blocks, kv_heads, block_size, head_size]` with any strides (K of vLLM's cache is the slice
            `[..., :head_size]`); floats, or float8_e4m3fn, or uint8 holding float8_e4m3fn.
            Query head h reads KV head `h // (query_heads // kv_heads)`.
        block_ids: `[at least ceil((first_position + rows) / block_size)]` int32 or int64 on q's device: the
            block of each `block_size` positions. Entries of blocks that no row sees may be stale.
        first_position: Position of row 0 in the request, in tokens.
        scale: Factor of q · k, above 0.
        span: Positions `[start, end)`, absolute, that `span_logsumexp` is over; empty where start = end.
        sliding_window: Keys that a row sees, itself included; None is all of them.
        soft_cap: None or 0 is none.
        sinks: `[query_heads]`, a logit per head that joins `logsumexp` and is no position.
        alibi_slopes: `[query_heads]`.
        k_scale: What a key is multiplied by (quantised caches), above 0: a number, a tensor of one element, or of one
            for each KV head, `[1, kv_heads]`.
        top: See `Stretch`, as the next.
        top_from: Position of the first row that it is wanted of.

    Raises:
        ValueError: Shapes, dtypes or numbers that do not fit together, named.
    """
    stretch = Stretch(first_position, q.shape[0], span, top, top_from)
    check_layers(
        q[None],
        [k_cache],
        block_ids[None],
        [stretch],
        scale=scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        sinks=None if sinks is None else sinks[None],
        alibi_slopes=alibi_slopes,
        k_scale=k_scale,
    )
    options: Any = {"sliding_window": sliding_window, "soft_cap": soft_cap, "alibi_slopes": alibi_slopes}
    sinks = None if sinks is None else sinks[None]
    scores = _score_paged(q[None], [k_cache], block_ids, stretch, scale=scale, k_scale=k_scale, sinks=sinks, **options)
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
) -> RowScores:
    """Score the same rows in several layers: `score_rows` of each layer and request; on CUDA one call is far faster.

    Args:
        q: `[layers, rows, query_heads, head_size]`: the rows of the stretches, one stretch after the other.
        k_caches: One for each layer, alike in shape, strides and dtype, indexed by the same block ids (one KV group).
        block_table: `[stretches, blocks]`: the block ids of each stretch's request.
        stretches: Whose rows they are, and where they stand.
        sinks: `[layers, query_heads]`.
        k_scale: A number for all, or a tensor: of one element, of one for each layer, or `[layers, kv_heads]`.

    Returns:
        Scores `[layers, rows, query_heads]`.

    Raises:
        ValueError: As `score_rows`, caches that are not alike, or stretches that are not the rows.
    """
    check_layers(
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
    options: Any = {"sliding_window": sliding_window, "soft_cap": soft_cap, "alibi_slopes": alibi_slopes}
    options |= {"scale": scale, "k_scale": k_scale, "sinks": sinks}
    parts = q.split([stretch.rows for stretch in stretches], dim=1)
    return joined(
        [
            _score_paged(part, k_caches, block_ids, stretch, **options)
            for part, block_ids, stretch in zip(parts, block_table, stretches, strict=True)
        ]
    )


def score_rows_dense(
    q: Tensor,
    keys: Tensor,
    first_position: int,
    *,
    scale: float,
    span: tuple[int, int],
    first_key: int = 0,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    top: int = 0,
    top_from: int = 0,
) -> RowScores:
    """Score rows against keys that are no longer in blocks; otherwise as `score_rows`.

    Args:
        keys: `[n, kv_heads, head_size]`, any strides and float dtype: positions `first_key` to `first_key + n - 1`.
        first_key: Where `keys` begins; a layer with a sliding window needs nothing before its first row's window.

    Raises:
        ValueError: As `score_rows`, and when a visible key is not among `keys`.
    """
    first_seen, end = seen_keys(q.shape[0], first_position, sliding_window)
    if first_key > first_seen or first_key + keys.shape[0] < end:
        raise ValueError(
            f"rows see keys {first_seen} to {end - 1}; given are {first_key} to {first_key + keys.shape[0] - 1}"
        )

    def read(start: int, stop: int) -> Tensor:
        return keys[start - first_key : stop - first_key].transpose(0, 1)

    return score_layers_read(
        q[None],
        [read],
        keys.shape[1],
        Stretch(first_position, q.shape[0], span, top, top_from),
        scale=scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        sinks=None if sinks is None else sinks[None],
        alibi_slopes=alibi_slopes,
    ).each(itemgetter(0))


def score_layers_read(
    q: Tensor,
    reads: Sequence[Read],
    kv_heads: int,
    stretch: Stretch,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
) -> RowScores:
    """Score one request's rows in several layers against keys that are read as they are met; else as `score_layers`.

    For caches that have to be decoded first: vLLM packs K per instruction set on CPU.

    Args:
        q: `[layers, rows, query_heads, head_size]`.
        reads: Each layer's; any float dtype.
        kv_heads: How many there are.
        stretch: The rows.

    Raises:
        ValueError: As `score_rows`.
    """
    check_rows(
        q[0],
        kv_heads=kv_heads,
        head_size=q.shape[-1],
        first_position=stretch.first,
        scale=scale,
        span=stretch.span,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        alibi_slopes=alibi_slopes,
        top=stretch.top,
    )
    return _score(
        q,
        reads,
        kv_heads,
        stretch,
        scales=[scale] * len(reads),
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
    )


def _score_paged(
    q: Tensor,
    k_caches: Sequence[Tensor],
    block_ids: Tensor,
    stretch: Stretch,
    *,
    k_scale: float | Tensor | None,
    scale: float,
    **options: Any,
) -> RowScores:
    """One request's rows in several layers, of arguments that have been checked."""
    _, kv_heads, block_size, _ = k_caches[0].shape

    def read(cache: Tensor, start: int, stop: int) -> Tensor:
        first_block, skipped = divmod(start, block_size)
        blocks = cache.index_select(0, block_ids[first_block : -(-stop // block_size)])
        keys = blocks.transpose(0, 1).flatten(1, 2)[:, skipped : skipped + stop - start]
        return keys.view(FP8) if keys.dtype == torch.uint8 else keys

    layers = len(k_caches)
    scales: list[float | Tensor] = [scale] * layers
    if isinstance(k_scale, Tensor) and k_scale.numel() > 1 and k_scale.dim() > 1:
        # Into the queries, which have a KV head. Keys that tie still do.
        by_head = k_scale.float().view(layers, kv_heads).repeat_interleave(q.shape[2] // kv_heads, dim=1)
        q = q.float() * by_head[:, None, :, None]
    elif isinstance(k_scale, Tensor):
        scales = list((scale * k_scale).reshape(-1).expand(layers))
    elif k_scale is not None:
        scales = [scale * k_scale] * layers
    cells = (cache.view(torch.uint8) if cache.dtype == FP8 else cache for cache in k_caches)  # fp8 has no index_select
    return _score(q, [partial(read, cache) for cache in cells], kv_heads, stretch, scales=scales, **options)


def _score(
    q: Tensor,
    reads: Sequence[Read],
    kv_heads: int,
    stretch: Stretch,
    *,
    scales: Sequence[float | Tensor],
    sinks: Tensor | None,
    **options: Any,
) -> RowScores:
    """`[layers, rows, query_heads]`, so many layers and rows at a time as memory is to hold."""
    layers, rows, heads, head_size = q.shape
    if rows > ROWS_AT_A_TIME:
        starts = range(0, rows, ROWS_AT_A_TIME)
        parts = q.split(ROWS_AT_A_TIME, dim=1)
        pieces = [
            replace(stretch, first=stretch.first + start, rows=part.shape[1])
            for start, part in zip(starts, parts, strict=True)
        ]
        options |= {"scales": scales, "sinks": sinks}
        return joined(
            [_score(part, reads, kv_heads, piece, **options) for part, piece in zip(parts, pieces, strict=True)]
        )
    inside = stretch.span[1] - stretch.span[0] + stretch.top
    most = max(1, BYTES_AT_A_TIME // (4 * rows * heads * (head_size + inside)))
    return layered(
        [
            _score_layers(
                q[own],
                reads[own],
                kv_heads,
                stretch,
                scales=scales[own],
                sinks=None if sinks is None else sinks[own],
                **options,
            )
            for own in (slice(start, start + most) for start in range(0, layers, most))
        ]
    )


def _score_layers(
    q: Tensor,
    reads: Sequence[Read],
    kv_heads: int,
    stretch: Stretch,
    *,
    scales: Sequence[float | Tensor],
    sliding_window: int | None,
    soft_cap: float | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
) -> RowScores:
    """Go through the keys chunk by chunk, and of each layer by layer: what one layer's rows have with a chunk's keys
    stays in a CPU's cache. What is left of a chunk is a few numbers for each row, which all layers take their way with
    together.

    Partial log-sum-exps merge exactly (online softmax: arXiv 1805.02867), and so do partial maxima.
    """
    layers, rows, heads, head_size = q.shape
    group, first_position = heads // kv_heads, stretch.first
    # Rows of the heads that share a KV head are one matrix: K is multiplied once for all of them.
    folded = q.unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4)
    slopes = None if alibi_slopes is None else alibi_slopes.float().view(kv_heads, group, 1, 1)
    position = torch.arange(first_position, first_position + rows, device=q.device)
    # Without cap and ALiBi scores stay the bare products (equal products then tie whatever the scale), and the
    # scale joins the factor to bits. Sums are in bits because exp2 takes a third of the time of exp on CPU.
    is_scaled, is_capped = bool(soft_cap) or slopes is not None, bool(soft_cap) and slopes is None
    bits = [(1.0 if is_scaled else scale) / NATS for scale in scales]
    of_layers = _of_layers(bits, q.device)

    met: _Met | None = None
    topless = stretch.topless
    pieces: list[Tensor] = []
    raw_pieces: list[Tensor] = []
    chunks = _chunks(*seen_keys(rows, first_position, sliding_window), stretch.span)
    top_keys = None
    if topless < rows:
        shape = torch.Size((layers, kv_heads, group, rows - topless))
        top_keys = TopKeys(stretch.top, shape, q.device, is_in_pieces=len(chunks) > 1)
    # Memory that all layers share, as that of a chunk's keys and products: the system's new pages take as long as what
    # is done with them.
    queries = torch.empty(folded.shape[1:], device=q.device)
    for place, (start, stop) in enumerate(chunks):
        # Whole groups of keys: matrix products treat odd columns another way, and equal keys would not tie. No row
        # sees what is added: it lies behind the last of them.
        width = stop - start + (start - stop) % KEYS_PER_GROUP
        unseen = _unseen(start, width, position, first_position, sliding_window)
        key = torch.arange(start, start + width, device=q.device)
        slope = None if slopes is None else slopes * (key - position[:, None])
        own = _inside(stretch.span, start)
        is_span_met = not any(_meets(later, stretch.span) for later in chunks[place + 1 :])
        found: list[list[Tensor]] = []
        keys = torch.zeros(kv_heads, width, head_size, device=q.device)
        products = torch.empty(kv_heads, group * rows, width, device=q.device)
        for layer, read in enumerate(reads):
            given = read(start, stop)
            keys[:, : stop - start] = given
            is_bfloat16 = q.dtype == given.dtype == torch.bfloat16
            own_queries = queries.copy_(folded[layer]).flatten(1, 2)
            product(own_queries, keys.transpose(1, 2), of_bfloat16=is_bfloat16, out=products)
            scores = products.view(kv_heads, group, rows, width)
            if slope is not None:
                scores = _capped(scores * scales[layer], soft_cap).add_(slope)
            _hide(scores, unseen)
            greatest, argmax = _greatest(scores)
            best, inside = greatest, scores[..., own].clone()
            if top_keys is not None:
                wanted = scores[..., topless:, :], best[..., topless:], inside[..., topless:, :]
                top_keys.add(*wanted, is_span_met=is_span_met, at=layer)
            raw = inside
            if is_capped:
                scores, greatest = (_capped(each * scales[layer], soft_cap) for each in (scores, greatest))
                _hide(scores, unseen)  # again: tanh(-inf) is -1
                inside = scores[..., own].clone()
            found.append([best, argmax, greatest, _powers2(scores, greatest, bits[layer]).sum(-1), inside, raw])
        *numbers, inside, raw = zip(*found, strict=True)
        pieces.append(torch.stack(inside))
        raw_pieces.append(torch.stack(raw) if is_capped else pieces[-1])
        chunk = _Met.of(*map(torch.stack, numbers), start=start, bits=of_layers)
        met = chunk if met is None else met.with_more(chunk)

    assert met is not None, "there are rows, each of which sees itself"
    argmax, logsumexp = met.argmax, met.logsumexp
    undefined = ~torch.isfinite(logsumexp)
    is_top = None if top_keys is None else top_keys.among(_joined(raw_pieces)[..., topless:, :])
    span_logsumexp, of_top = _inside_sums(_joined(pieces), is_top, of_layers)
    top_logsumexp = None
    if of_top is not None:
        top_logsumexp = torch.full_like(logsumexp, float("nan"))
        top_logsumexp[..., topless:] = of_top.masked_fill(undefined[..., topless:], float("nan")) * NATS
    argmax = argmax.masked_fill(undefined, -1)
    logsumexp = logsumexp.masked_fill(undefined, float("nan")) * NATS
    span_logsumexp = span_logsumexp.masked_fill(undefined, float("nan")) * NATS
    if sinks is not None:
        logsumexp = torch.logaddexp(logsumexp, sinks.float().view(layers, kv_heads, group, 1))
    return RowScores(
        argmax=_rows_first(argmax).to(torch.int32),
        logsumexp=_rows_first(logsumexp),
        span_logsumexp=_rows_first(span_logsumexp),
        top_logsumexp=None if top_logsumexp is None else _rows_first(top_logsumexp),
    )


@dataclass(frozen=True)
class _Met:
    """Of some keys, in several layers: each row's greatest score, its place, and the log2 sum of all."""

    best: Tensor
    argmax: Tensor
    logsumexp: Tensor

    @classmethod
    def of(
        cls, best: Tensor, index: Tensor, greatest: Tensor, sums: Tensor, *, start: int, bits: float | Tensor
    ) -> _Met:
        """Of the keys of a chunk.

        Args:
            best: The greatest score, uncapped.
            index: Its place among them.
            greatest: The greatest score.
            sums: Of `_powers2` of all scores.
            start: Position of the first of them.
            bits: What a score is multiplied by, `[layers, 1, 1, 1]` or one for all.
        """
        return cls(best, index + start, _log2(sums, greatest, bits))

    def with_more(self, other: _Met) -> _Met:
        """Of these and of others; of equal scores the lowest position."""
        better = (other.best > self.best) | ((other.best == self.best) & (other.argmax < self.argmax))
        return _Met(
            torch.where(better, other.best, self.best),
            torch.where(better, other.argmax, self.argmax),
            torch.logaddexp2(self.logsumexp, other.logsumexp),
        )


def _chunks(first: int, end: int, span: tuple[int, int]) -> list[tuple[int, int]]:
    """Keys at a time, `[start, stop)` each; those that hold the span come first, as `TopKeys` wants them.

    Whether or not it is asked for, so that figures do not depend, in their last bits, on what else is.
    """
    chunks = [(start, min(end, start + KEYS_AT_A_TIME)) for start in range(first, end, KEYS_AT_A_TIME)]
    return sorted(chunks, key=lambda chunk: not _meets(chunk, span))


def _meets(chunk: tuple[int, int], span: tuple[int, int]) -> bool:
    return max(chunk[0], span[0]) < min(chunk[1], span[1])


def _inside(span: tuple[int, int], start: int) -> slice:
    """A span among keys that begin at a position."""
    return slice(max(span[0] - start, 0), max(span[1] - start, 0))


def _capped(scores: Tensor, cap: float | None) -> Tensor:
    return torch.tanh(scores / cap).mul_(cap) if cap else scores


def _of_layers(factors: Sequence[float | Tensor], device: torch.device) -> float | Tensor:
    """Each layer's factor, `[layers, 1, 1, 1]`, or the number that it is of all."""
    if not any(isinstance(one, Tensor) for one in factors):
        return factors[0]
    return torch.stack([torch.as_tensor(one, device=device) for one in factors]).view(-1, 1, 1, 1)


def _powers2(scores: Tensor, top: Tensor, bits: float | Tensor) -> Tensor:
    """`exp2(bits * (score - top))`, of each row's `top`; overwrites scores."""
    top = top.clamp(min=NO_SCORE)  # where nothing is seen all are 0, not NaN
    return scores.sub_(top[..., None]).mul_(bits).exp2_()


def _log2(sums: Tensor, top: Tensor, bits: float | Tensor) -> Tensor:
    """log2 of the sum of `exp2(bits * score)`, of the sums of `_powers2`."""
    return sums.log2_() + top.clamp(min=NO_SCORE) * bits


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Scores of keys that follow each other as those of all."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=-1)


def _inside_sums(inside: Tensor, is_top: Tensor | None, bits: float | Tensor) -> tuple[Tensor, Tensor | None]:
    """log2 sums of the span's scores, and, of the last rows, of those that are among the greatest; overwrites them.

    Args:
        inside: The scores, `[layers, kv_heads, group, rows, keys of the span]`.
        is_top: Whether they are among their row's greatest, of as many rows as it is asked of. Where any is, the
            greatest of the span is.
        bits: What a score is multiplied by, `[layers, 1, 1, 1]` or one for all.
    """
    top = inside.amax(-1) if inside.shape[-1] else inside.sum(-1).fill_(float("-inf"))
    powers = _powers2(inside, top, bits[..., None] if isinstance(bits, Tensor) else bits)
    sums = _log2(powers.sum(-1), top, bits)
    if is_top is None:
        return sums, None
    rows = is_top.shape[-2]
    return sums, _log2(powers[..., -rows:, :].mul_(is_top).sum(-1), top[..., -rows:], bits)


def _unseen(
    start: int, keys: int, position: Tensor, first_position: int, sliding_window: int | None
) -> list[tuple[slice, Tensor, Tensor]]:
    """Which keys a row does not see, at the edges alone: all rows see the rest. Of a score's bits those that are kept,
    and those that are set, `[rows, keys]` each.
    """
    found = []
    key, rows = torch.arange(start, start + keys, device=position.device), len(position)
    future = max(0, first_position + 1 - start)
    if future < keys:
        found.append((slice(future, keys), key[future:] > position[:, None]))
    if sliding_window is not None:
        past = min(keys, first_position + rows - sliding_window - start)
        if past > 0:
            found.append((slice(past), key[:past] <= position[:, None] - sliding_window))
    is_hidden = [(edge, hidden.to(torch.int32)) for edge, hidden in found]
    return [(edge, hidden - 1, hidden * MINUS_INFINITY) for edge, hidden in is_hidden]


def _hide(scores: Tensor, unseen: Sequence[tuple[slice, Tensor, Tensor]]) -> None:
    """Write -inf, in place, over the keys that a row does not see.

    Bit by bit: torch's masked_fill is not vectorised on CPU, 40 µs where these take 10.
    """
    for edge, kept, filled in unseen:
        scores.view(torch.int32)[..., edge].bitwise_and_(kept).bitwise_or_(filled)


def _greatest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Greatest score over the last dimension and its lowest index.

    torch's max with an index is not vectorised on CPU: 0.7 ms where numpy's takes 0.05.
    """
    if scores.is_cuda:
        best, keys = scores.amax(-1), scores.shape[-1]
        return best, torch.where(scores == best[..., None], torch.arange(keys, device=scores.device), keys).amin(-1)
    argmax = torch.from_numpy(scores.numpy().argmax(-1))
    return scores.gather(-1, argmax[..., None])[..., 0], argmax


def _rows_first(scores: Tensor) -> Tensor:
    """`[layers, kv_heads, group, rows]` to `[layers, rows, query_heads]`."""
    return scores.permute(0, 3, 1, 2).flatten(2)
