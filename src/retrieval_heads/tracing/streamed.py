"""Attention of rows that see the first tokens and the last ones alone: what heads that stream put out.

Rows come in tiles, a tile being consecutive rows of one request; tiles of as many rows are computed together. Beside
the sinks a tile reads no more keys than its rows' windows hold, so that a decode step costs as much at any length.
`streamed_triton` does in one launch what `attended` and `write` do here. Nothing here knows vLLM or waits for the
device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from retrieval_heads.runs.mask import Stream
from retrieval_heads.tracing.keys import KeyOrder
from retrieval_heads.tracing.rows import FP8

ROWS = 128
"""Of a tile at most."""

ROWS_ON_CPU = 32
"""There, where a window is short: a key takes a row as long whether it sees it or not, and tiles share what is read."""

UNSEEN = 1 << 30
"""In the place of a key's position: behind every row."""

PRODUCTS = 16 << 20
"""Query rows times keys times heads that are computed at once: 64 MB in float32."""

PRODUCTS_ON_CPU = 2 << 20
"""There: keys, values and outputs of so many stay in a core's cache, and in memory that malloc does not give back."""


@dataclass(frozen=True)
class Tile:
    """Consecutive rows of a request.

    Args:
        request: Which of the step's.
        row: The request's row in the batch.
        start: Of the first of these among the forward's tokens.
        first: Its position in the request.
        rows: How many.
        stream: What they see.
    """

    request: int
    row: int
    start: int
    first: int
    rows: int
    stream: Stream

    @property
    def last(self) -> int:
        """Position of the last row."""
        return self.first + self.rows - 1

    @property
    def oldest(self) -> int:
        """Position of the oldest key beside the sinks that one of the rows sees."""
        fixed = self.stream.oldest
        oldest = self.first - self.stream.recent + 1 if fixed is None else fixed
        return max(self.stream.sink, oldest)

    @property
    def keys(self) -> int:
        """How many keys are read for it."""
        return min(self.stream.sink, self.last + 1) + max(0, self.last + 1 - self.oldest)

    def pieces(self, rows: int = ROWS) -> Iterator[Tile]:
        """The same in tiles of a bearable size, without those whose rows see all that there is.

        Args:
            rows: Of a tile, where the window is not longer than a few of these; at most `ROWS` where it is.
        """
        most = min(ROWS, max(rows, self.stream.recent // 4))
        most = most if self.rows >= 2 * most else ROWS
        for at in range(0, self.rows, most):
            piece = replace(self, start=self.start + at, first=self.first + at, rows=min(most, self.rows - at))
            if replace(piece, first=piece.last, rows=1).oldest > self.stream.sink:
                yield piece


def together(tiles: Iterable[Tile], heads: int, products: int = PRODUCTS, rows: int = ROWS) -> list[list[Tile]]:
    """Tiles in pieces, those of as many rows in one list as far as memory bears it.

    Args:
        tiles: The tiles.
        heads: Of which products stand in memory, 0 where none do: the kernel of `streamed_triton` keeps them to itself.
            Else tiles whose rows all hide a key are apart, since none of these rows is left as it is.
        products: How many memory bears.
        rows: See `Tile.pieces`.
    """
    lists: list[list[Tile]] = []
    open_lists: dict[tuple[int, bool], list[Tile]] = {}
    for tile in (piece for each in tiles for piece in each.pieces(rows)):
        kind = tile.rows, heads > 0 and tile.oldest > tile.stream.sink
        found = open_lists.get(kind)
        keys = max((each.keys for each in (*(found or ()), tile)), default=0)
        if found is None or (len(found) + 1) * tile.rows * keys * heads > products:
            found = open_lists[kind] = []
            lists.append(found)
        found.append(tile)
    return lists


class Seen:
    """The keys that tiles of as many rows see, N tiles of R rows and K keys each.

    Args:
        tiles: The tiles.
        device: Where the model is.
        block_size: Of a paged cache whose blocks are read whole, so that K is a multiple of it; left out, keys are read
            one by one.
    """

    def __init__(self, tiles: Sequence[Tile], device: torch.device, block_size: int | None = None) -> None:
        self.tiles = tiles
        self.requests_here = tuple(sorted({each.request for each in tiles}))
        """The requests, as numbers."""
        self._device = device
        sink = self._numbers([each.stream.sink for each in tiles])[:, None]
        oldest = self._numbers([each.oldest for each in tiles])[:, None]
        fixed = self._numbers([-1 if each.stream.oldest is None else each.stream.oldest for each in tiles])[:, None]
        recent = self._numbers([each.stream.recent for each in tiles])[:, None]
        rows = self._numbers([each.first for each in tiles])[:, None] + torch.arange(tiles[0].rows)
        low, last = torch.where(fixed < 0, rows - recent + 1, fixed), rows[:, -1:]
        size = block_size or 1
        sinks = -(-int(sink.max()) // size)
        window = max(0, *(each.last // size + 1 - each.oldest // size for each in tiles))
        blocks = torch.cat([torch.arange(sinks).expand(len(tiles), -1), oldest // size + torch.arange(window)], dim=1)
        keys = (blocks[..., None] * size + torch.arange(size)).flatten(1)
        is_sink = torch.arange(keys.shape[1]) < sinks * size
        is_seen = (keys <= last) & torch.where(is_sink, keys < sink, keys >= oldest)
        self.blocks = there(torch.minimum(blocks, last // size), device)
        """The request's block that each `block_size` keys are read from, `[N, K / block_size]`."""
        self.unwritten = [there(each, device) for each in (keys > last).nonzero(as_tuple=True)] if block_size else []
        """Tile and key of what lies behind the last row, whose memory may hold anything."""
        starts = self._numbers([each.start for each in tiles])
        self.rows = there(rows, device)
        """Position of each row, `[N, R]`."""
        self.keys = there(torch.where(is_seen, keys, UNSEEN), device)
        """Position of each key, `[N, K]`; `UNSEEN` of those that no row sees."""
        self.low = there(low, device)
        """Position of the oldest key beside the sinks that each row sees, `[N, R]`."""
        self.sink = there(sink, device)
        """How many sinks each tile's rows see, `[N, 1]`."""
        tokens = (starts[:, None] + torch.arange(tiles[0].rows)).flatten()
        self.tokens = there(tokens, device)
        """The rows among the forward's tokens, `[N × R]`."""
        follow = device.type == "cpu" and bool((tokens.diff() == 1).all())
        self.own = slice(tiles[0].start, tiles[0].start + len(tokens)) if follow else None
        """The same on a CPU, where they follow each other; else `None`: to tell which heads waits for a GPU."""
        self.places = there(self._numbers([each.row for each in tiles]), device)
        """Each tile's request in the batch, `[N]`."""
        self.requests = there(self._numbers([each.request for each in tiles]), device)
        """And among those that stream, `[N]`."""
        hides = low > sink
        self.all_hide = bool(hides.all())
        """Whether there is a key that it does not see for every row."""
        self.hides = there(hides, device)
        """Whether there is one for a row, `[N, R]`."""
        self._hidden: dict[int | None, Tensor] = {}
        self._added: dict[tuple[int | None, torch.dtype, int], Tensor] = {}
        self._cells: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self._tables: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._in_blocks: dict[int, Seen] = {}

    def in_blocks(self, block_size: int) -> Seen:
        """The same with whole blocks read; made once for all layers."""
        if block_size not in self._in_blocks:
            self._in_blocks[block_size] = Seen(self.tiles, self._device, block_size)
        return self._in_blocks[block_size]

    @staticmethod
    def _numbers(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64)

    def hidden(self, sliding_window: int | None) -> Tensor:
        """Which keys each row does not see, `[N, 1, 1, R, K]`; made once for all layers.

        Args:
            sliding_window: Keys that rows of the layer see; `None` is all.
        """
        if sliding_window not in self._hidden:
            seen = self.sees if sliding_window is None else self.sees & (self.distances < sliding_window)
            self._hidden[sliding_window] = ~seen[:, None, None]
        return self._hidden[sliding_window]

    def added(self, sliding_window: int | None, dtype: torch.dtype, group: int) -> Tensor:
        """The same as what is added to logits of the query heads of a KV head, one head's rows behind another's,
        `[N, 1, group × R, K]`.
        """
        known = sliding_window, dtype, group
        if known not in self._added:
            hidden = self.hidden(sliding_window)[:, 0]
            added = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._added[known] = added.repeat(1, 1, group, 1)
        return self._added[known]

    @cached_property
    def sees(self) -> Tensor:
        """Which key each row sees, `[N, R, K]`."""
        keys = self.keys[:, None]
        return (keys <= self.rows[..., None]) & ((keys < self.sink[..., None]) | (keys >= self.low[..., None]))

    @cached_property
    def distances(self) -> Tensor:
        """How far behind each row a key stands, `[N, R, K]`."""
        return self.rows[..., None] - self.keys[:, None]

    def cells(self, block_table: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
        """Where the keys stand in a paged cache: the block of each, and the place in it, `[N, K]`; made once for all
        layers that share a table.

        Args:
            block_table: `[requests of the batch, blocks]`.
            block_size: Tokens of a block.
        """
        known = id(block_table), block_size
        if known not in self._cells:
            # The table is kept so that no other takes its name.
            self._cells[known] = block_table, *self.cells_in(block_table[self.places], block_size)
        return self._cells[known][1:]

    def cells_in(self, blocks: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
        """The same of a table of each tile's own blocks, `[N, blocks]`."""
        # For what no row sees stands the last row, which is in the cache: memory of others may hold anything.
        keys = torch.minimum(self.keys, self.rows[:, -1:])
        return blocks.gather(1, keys // block_size).long(), keys % block_size

    def read(self, kv_cache: Tensor, order: KeyOrder, block_table: Tensor, heads: Tensor) -> Tensor:
        """Copy the keys, or values, of some KV heads, `[N, K, len(heads), size]`, zeros where none is written yet; only
        of whole blocks.
        """
        blocks, places = self._blocks(block_table)
        read = order.of_heads(kv_cache, blocks, heads)
        if places is not None:
            cells = read[0].unflatten(1, (blocks.shape[1], -1)).flatten(0, 1)
            at = places[:, None] + blocks.shape[1] * torch.arange(len(heads))[:, None]
            read = cells.index_select(0, at.flatten()).unflatten(0, at.shape).flatten(2, 3)
        tile, key = self.unwritten
        if len(tile):
            read[tile, :, key] = 0
        return (read.view(FP8) if read.dtype == torch.uint8 else read).transpose(1, 2)

    def _blocks(self, block_table: Tensor) -> tuple[Tensor, Tensor | None]:
        """The blocks that are read, `[N, K / block_size]`; or, on a CPU, where tiles have many in common, each of them
        once, `[1, blocks]`, and where among them each tile's are. Bringing one into order takes five times as long as
        copying it.
        """
        known = id(block_table)
        if known not in self._tables:
            # The table is kept so that no other takes its name.
            blocks, places = block_table[self.places].gather(1, self.blocks).long(), None
            if blocks.device.type == "cpu" and self.rows.shape[1] > 1:
                once, places_of = blocks.unique(return_inverse=True)
                if 2 * len(once) <= blocks.numel():
                    blocks, places = once[None], places_of
            self._tables[known] = block_table, blocks, places
        return self._tables[known][1:]


def attended(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Seen,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """What heads put out that see some keys alone, `[N, R, query_heads, value_size]`.

    On a CPU torch's own kernel does it, where the layer is plain; in the type that queries and cache share, as vLLM's
    does. Else float32.

    Args:
        q: `[N, R, query_heads, head_size]`; query head h reads KV head `h // (query_heads // kv_heads)`.
        keys: `[N, K, kv_heads, head_size]`.
        values: `[N, K, kv_heads, value_size]`.
        seen: Which row sees which.
        scale: As `attention_torch.score_rows`, and what follows.
        sinks: `[query_heads]`, a logit for each head that no key has.
    """
    kv_heads = keys.shape[2]
    group = q.shape[2] // kv_heads
    is_plain = not soft_cap and alibi_slopes is None and sinks is None and keys.shape[-1] == values.shape[-1]
    if q.device.type == "cpu" and is_plain:
        shared = q.dtype if q.dtype == keys.dtype == values.dtype else torch.float32
        # A KV head's query heads are rows of one product; told apart, torch would copy its keys for each.
        lines = q.to(shared).unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        keys, values = (each.to(shared).transpose(1, 2) for each in (keys, values))
        mask = seen.added(sliding_window, shared, group)
        out = scaled_dot_product_attention(lines, keys, values, attn_mask=mask, scale=scale)
        return out.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    grouped = q.float().unflatten(2, (kv_heads, -1))
    scores = torch.einsum("nrhgd,nkhd->nhgrk", grouped, keys.float()) * scale
    if soft_cap:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.float().view(kv_heads, -1, 1, 1) * seen.distances[:, None, None]
    scores = scores.masked_fill_(seen.hidden(sliding_window), float("-inf"))
    if sinks is not None:
        beside = sinks.float().view(1, kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, beside], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return torch.einsum("nhgrk,nkhv->nrhgv", weights, values.float()).flatten(2, 3)


def write(found: Tensor, seen: Seen, streaming: Tensor | None, output: Tensor, heads: Tensor | None = None) -> None:
    """Put what heads put out that stream in the place of what they had put out, in the rows that hide a key.

    Args:
        found: From `attended`.
        seen: As there.
        streaming: Which heads of which request stream, `[requests that stream, query_heads]`; `None` where all do that
            were found.
        output: `[tokens, query_heads, value_size]`.
        heads: Which query heads were found; all, in order, if left out.
    """
    if streaming is None and seen.all_hide and seen.own is not None and heads is not None:
        # Slices are copied five times as fast as single rows and heads.
        place, numbers = output[seen.own].unflatten(0, seen.rows.shape), heads.tolist()
        ends = [at for at in range(1, len(numbers)) if numbers[at] != numbers[at - 1] + 1]
        for first, end in pairwise([0, *ends, len(numbers)]):
            place[:, :, numbers[first] : numbers[first] + end - first] = found[:, :, first:end]
        return
    found = found.to(output.dtype).flatten(0, 1)
    at = (seen.tokens,) if heads is None else (seen.tokens[:, None], heads)
    if streaming is None and seen.all_hide:
        output[at] = found
        return
    chosen = seen.hides.flatten()[:, None]
    if streaming is not None:
        chosen = (streaming[seen.requests][:, None] & seen.hides[..., None]).flatten(0, 1)
        chosen = chosen if heads is None else chosen[:, heads]
    output[at] = torch.where(chosen[..., None], found, output[at])


def there(numbers: Tensor, device: torch.device) -> Tensor:
    """On a device; a copy from memory that is not pinned would wait for it."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers
