"""Attention over sinks and a recent window, against the definition written as loops."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

from retrieval_heads.runs.mask import Stream
from retrieval_heads.tracing.keys import KeyOrder, digits_of
from retrieval_heads.tracing.streamed import ROWS, Seen, Tile, attended, together, write

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = not INTERPRETED and torch.cuda.is_available()

BLOCK, TOKENS, KV_HEADS, GROUP, SIZE, VALUE = 16, 100, 2, 3, 8, 6


def sees(stream: Stream, row: int, key: int, window: int | None = None) -> bool:
    """The definition."""
    oldest = row - stream.recent + 1 if stream.anchor == "row" else stream.context - stream.recent
    return key <= row and (key < stream.sink or key >= oldest) and (window is None or row - key < window)


@pytest.fixture(scope="module", params=[VALUE, SIZE], ids=["smaller values", "values as keys"])
def cache(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks of keys and of values, and the block table of two requests; what no request has written is NaN."""
    generator = torch.Generator().manual_seed(0)
    blocks = 2 * -(-TOKENS // BLOCK) + 1
    table = 1 + torch.randperm(blocks - 1, generator=generator).view(2, -1)
    keys = torch.full((blocks, KV_HEADS, BLOCK, SIZE), float("nan"))
    values = torch.full((blocks, KV_HEADS, BLOCK, request.param), float("nan"))
    for one in range(2):
        for position in range(TOKENS):
            where = table[one, position // BLOCK], slice(None), position % BLOCK
            keys[where] = torch.randn(KV_HEADS, SIZE, generator=generator)
            values[where] = torch.randn(KV_HEADS, request.param, generator=generator)
    return keys, values, table


def order_of(cells: Tensor) -> KeyOrder:
    """One key behind another."""
    size = cells.shape[-1]
    return KeyOrder((BLOCK, size), (size, 1), torch.arange(BLOCK * size), digits=((BLOCK, size), (size, 1)))


def expected(q: Tensor, cache: tuple[Tensor, Tensor, Tensor], tile: Tile, options: dict[str, Any]) -> Tensor:
    """Row by row and head by head, over the keys that the definition names."""
    keys, values, table = cache
    out = torch.empty(tile.rows, KV_HEADS * GROUP, values.shape[-1])
    for at in range(tile.rows):
        row = tile.first + at
        seen = [key for key in range(row + 1) if sees(tile.stream, row, key, options.get("sliding_window"))]
        cells = [(table[tile.row, key // BLOCK], key % BLOCK) for key in seen]
        for head in range(KV_HEADS * GROUP):
            scores = []
            for key, (block, place) in zip(seen, cells, strict=True):
                score = float(q[at, head] @ keys[block, head // GROUP, place]) * options["scale"]
                if cap := options.get("soft_cap"):
                    score = cap * math.tanh(score / cap)
                if "alibi_slopes" in options:
                    score += float(options["alibi_slopes"][head]) * (key - row)
                scores.append(score)
            beside = [float(options["sinks"][head])] if "sinks" in options else []
            weights = torch.tensor([*scores, *beside]).softmax(0)[: len(scores)]
            out[at, head] = weights @ torch.stack([values[block, head // GROUP, place] for block, place in cells])
    return out


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 20},
    "soft cap and ALiBi": {"soft_cap": 2.0, "alibi_slopes": torch.linspace(0.01, 0.3, KV_HEADS * GROUP)},
    "sinks": {"sinks": torch.linspace(-1, 2, KV_HEADS * GROUP)},
}
STREAMS = [(0, 1), (1, 15), (15, 16), (16, 17), (17, 1), (33, 48), (64, 64)]


@pytest.mark.parametrize("anchor", ["row", "context"])
@pytest.mark.parametrize(
    ("sink", "recent", "options"),
    [
        pytest.param(
            *sizes, options, id=f"{sizes}-{name}", marks=pytest.mark.long if bool(options) and sizes != (16, 17) else ()
        )
        for sizes in STREAMS
        for name, options in OPTIONS.items()
    ],
)
def test_rows_see_sinks_and_their_window(cache: Any, sink: int, recent: int, anchor: str, options: Any) -> None:
    stream = Stream(sink, recent, anchor, context=40)
    other = Stream(3, 30, anchor, context=50)
    tiles = [
        Tile(0, 0, 0, 40, 7, stream),
        Tile(0, 0, 7, 47, 1, stream),
        Tile(1, 1, 8, 90, 7, other),
        Tile(1, 1, 15, 99, 1, other),
        Tile(0, 0, 16, 0, 7, Stream(sink, recent, prefill=True)),
    ]
    asked = {"scale": 0.5, **options}
    q = torch.randn(23, KV_HEADS * GROUP, SIZE, generator=torch.Generator().manual_seed(1))
    keys, values, table = cache
    told = set()
    for group in together(tiles, KV_HEADS * GROUP):
        seen = Seen(group, torch.device("cpu"))
        blocks, places = seen.cells(table, BLOCK)
        rows = q[seen.tokens].unflatten(0, seen.rows.shape)
        found = attended(rows, keys[blocks, :, places], values[blocks, :, places], seen, **asked)
        whole_blocks, heads = seen.in_blocks(BLOCK), torch.arange(KV_HEADS)
        read = [whole_blocks.read(one, order_of(one), table, heads) for one in (keys, values)]
        from_blocks = attended(rows, *read, whole_blocks, **asked)
        for number, tile in enumerate(group):
            here = q[tile.start : tile.start + tile.rows]
            right = expected(here, cache, tile, asked)
            torch.testing.assert_close(found[number], right, rtol=0, atol=1e-5)
            torch.testing.assert_close(from_blocks[number], right, rtol=0, atol=1e-5)
            hides = [not all(sees(tile.stream, row, key) for key in range(row)) for row in seen.rows[number].tolist()]
            assert seen.hides[number].tolist() == hides
            told.add(tile.start)
    whole = {
        tile.start
        for tile in tiles
        if all(sees(tile.stream, row, key) for row in range(tile.first, tile.last + 1) for key in range(row))
    }
    assert told == {tile.start for tile in tiles} - whole, "rows that see everything are left as they are"


def test_blocks_that_tiles_share_are_read_once(cache: Any) -> None:
    keys, values, table = cache
    stream = Stream(3, 20, prefill=True)
    tiles = [Tile(1, 1, at, 30 + at, 10, stream) for at in range(0, 70, 10)]
    seen = Seen(tiles, torch.device("cpu")).in_blocks(BLOCK)
    read, places = seen._blocks(table)
    assert places is not None
    assert sorted(read.flatten().tolist()) == sorted(table[1, : -(-TOKENS // BLOCK)].tolist())
    q = torch.randn(70, KV_HEADS * GROUP, SIZE, generator=torch.Generator().manual_seed(3))
    for heads in (torch.arange(KV_HEADS), torch.tensor([1])):
        own = (heads[:, None] * GROUP + torch.arange(GROUP)).flatten()
        cells = [seen.read(one, order_of(one), table, heads) for one in (keys, values)]
        found = attended(q[:, own].unflatten(0, (7, 10)), *cells, seen, scale=0.5)
        for number, tile in enumerate(tiles):
            right = expected(q[tile.start : tile.start + 10], cache, tile, {"scale": 0.5})[:, own]
            torch.testing.assert_close(found[number], right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recent", [2, 9], ids=["all rows hide a key", "some do"])
def test_heads_that_stream_in_all_requests_need_no_mask(recent: int) -> None:
    stream = Stream(1, recent, prefill=True)
    seen = Seen([Tile(0, 0, 0, 7, 5, stream), Tile(1, 1, 5, 8, 5, stream)], torch.device("cpu"))
    assert seen.all_hide == (recent == 2)
    heads, found = torch.tensor([1, 3]), torch.randn(2, 5, 2, VALUE)
    streaming = torch.zeros(2, 4, dtype=torch.bool)
    streaming[:, heads] = True
    masked, unmasked = torch.zeros(11, 4, VALUE), torch.zeros(11, 4, VALUE)
    write(found, seen, streaming, masked, heads)
    write(found, seen, None, unmasked, heads)
    assert torch.equal(masked, unmasked)
    rows, columns = masked.any(-1).nonzero(as_tuple=True)
    assert set(columns.tolist()) == {1, 3}
    assert set(rows.tolist()) == set(range(10) if recent == 2 else (3, 4, 7, 8, 9))


def test_long_tiles_are_cut_into_pieces_that_cover_them() -> None:
    stream = Stream(4, 8, prefill=True)
    groups = together([Tile(0, 0, 5, 0, 3 * ROWS + 1, stream), Tile(1, 1, 9, 700, 1, stream)], heads=4)
    pieces = sorted((tile.start, tile.first, tile.rows) for group in groups for tile in group)
    assert pieces == sorted(
        [(5 + at, at, ROWS) for at in range(0, 3 * ROWS, ROWS)] + [(5 + 3 * ROWS, 3 * ROWS, 1), (9, 700, 1)]
    )
    assert all(len({tile.rows for tile in group}) == 1 for group in groups)


@pytest.mark.parametrize(("recent", "rows"), [(8, 32), (200, 50), (4096, ROWS)])
def test_short_windows_have_small_tiles_if_asked(recent: int, rows: int) -> None:
    tile = Tile(0, 0, 0, 8000, 2 * ROWS, Stream(4, recent, prefill=True))
    assert next(tile.pieces(32)).rows == rows
    assert sum(piece.rows for piece in tile.pieces(32)) == tile.rows
    assert [piece.rows for piece in replace(tile, rows=40).pieces(32)] == [40], "few rows stay together"


def test_many_tiles_are_not_computed_at_once() -> None:
    tiles = [Tile(0, 0, at, at, 1, Stream(1000, 1000, prefill=True)) for at in range(5000, 5100)]
    groups = together(tiles, heads=1000)
    assert [len(group) for group in groups] == [8] * 12 + [4]


PACKED = [
    # How vLLM packs bfloat16 keys for AMX: 16 keys' pairs of channels beside each other.
    (32, 64, lambda key, channel: key // 16 * 1024 + channel // 2 * 32 + key % 16 * 2 + channel % 2),
    (32, 64, lambda key, channel: key * 128 + channel),
    (16, 6, lambda key, channel: channel * 16 + key),
    (16, 6, lambda key, channel: key * 6 + channel + 1),
    (6, 8, lambda key, channel: (key * 8 + channel) * 7 % 48),
    (4, 8, lambda key, channel: key // 2 * 32 + channel // 2 * 4 + key % 2 * 2 + channel % 2 + 2),
    (1, 8, lambda key, channel: channel),
    (8, 1, lambda key, channel: (key * 3) % 8),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
@pytest.mark.parametrize(("size", "channels", "place"), PACKED)
def test_blocks_are_read_in_any_order(size: int, channels: int, place: Any, dtype: torch.dtype) -> None:
    offsets = torch.tensor([[place(key, channel) for channel in range(channels)] for key in range(size)])
    start = int(offsets[0, 0])
    keys = KeyOrder(
        (size, channels), None, offsets.flatten(), start, digits_of((offsets - start).flatten(), size, channels)
    )
    for spare in (0, 1):  # a cache may lie anywhere in what was allocated, and an odd width has no pairs
        width = 2 * channels + spare
        cache = torch.arange(spare + 5 * 3 * size * width).to(dtype)[spare:].view(5, 3, size, width)
        found = keys.paged(cache, torch.tensor([4, 0, 2]))
        assert torch.equal(found, cache[[4, 0, 2]].flatten(2)[..., offsets])
        blocks, heads = torch.tensor([[4, 0], [0, 2], [1, 1]]), torch.tensor([2, 0])
        # With room between its blocks as well.
        for each in (cache, torch.cat([cache, cache], dim=1)[:, : cache.shape[1]]):
            of_heads = keys.of_heads(each, blocks, heads)
            assert of_heads.shape == (3, 2, 2 * size, channels)
            for tile, head in itertools.product(range(3), range(2)):
                ordered = cache[blocks[tile], heads[head]].flatten(1)[:, offsets].flatten(0, 1)
                assert torch.equal(of_heads[tile, head], ordered)


def test_orders_that_count_in_digits_are_known() -> None:
    found = [
        digits_of(
            torch.tensor([place(key, channel) - place(0, 0) for key in range(size) for channel in range(channels)]),
            size,
            channels,
        )
        for size, channels, place in PACKED
    ]
    assert found[0] == ((2, 1024), (16, 2), (32, 32), (2, 1))
    assert found[1] == ((32, 128), (64, 1))
    assert found[2] == ((16, 1), (6, 16))
    assert found[4] == ()
    assert found[5] == ((2, 32), (2, 2), (4, 4), (2, 1))
    assert found[6] == ((8, 1),)


KERNEL = {
    "plain": {},
    "window": {"sliding_window": 20},
    "soft cap": {"soft_cap": 2.0},
    "ALiBi": {"alibi_slopes": torch.linspace(0.01, 0.3, KV_HEADS * GROUP)},
    "sinks": {"sinks": torch.linspace(-1, 2, KV_HEADS * GROUP)},
}


@pytest.mark.skipif(not INTERPRETED and not COMPILED, reason="Triton needs CUDA, or its interpreter (tests/kernels)")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if COMPILED else [torch.float32])
@pytest.mark.parametrize(
    ("options", "anchor"),
    [
        pytest.param(
            options,
            anchor,
            id=f"{name}-{anchor}",
            marks=pytest.mark.long if anchor == "row" and name != "plain" else (),
        )
        for name, options in KERNEL.items()
        for anchor in ("row", "context")
    ],
)
def test_the_kernel_writes_what_torch_does(cache: Any, options: Any, anchor: str, dtype: torch.dtype) -> None:
    from retrieval_heads.tracing.streamed_triton import write_attended

    device = torch.device("cuda" if COMPILED else "cpu")
    windows = [Stream(17, 19, anchor, context=40), Stream(3, 30, anchor, context=50)]
    tiles = [
        Tile(0, 0, 0, 40, 7, windows[0]),
        Tile(1, 1, 7, 92, 7, windows[1]),
        Tile(0, 0, 14, 0, 41, Stream(4, 9, prefill=True)),
        Tile(1, 1, 55, 99, 1, windows[1]),
    ]
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(57, KV_HEADS * GROUP, SIZE, generator=generator).to(device, dtype)
    keys, values, table = (one.to(device) for one in cache)
    keys, values = keys.to(dtype), values.to(dtype)
    options = {name: one.to(device) if isinstance(one, Tensor) else one for name, one in options.items()}
    streaming = torch.tensor([[True] * GROUP + [False] * GROUP, [False] * GROUP + [True] * GROUP], device=device)
    found = torch.full((57, KV_HEADS * GROUP, values.shape[-1]), float("nan"), device=device, dtype=dtype)
    wanted = found.clone()
    for group in together(tiles, KV_HEADS * GROUP):
        seen = Seen(group, device)
        rows = q[seen.tokens].unflatten(0, seen.rows.shape)
        write_attended(rows, keys, values, table, seen, streaming, found, scale=0.5, **options)
        blocks, places = seen.cells(table, BLOCK)
        read = (cells[blocks, :, places].float() for cells in (keys, values))
        write(attended(rows.float(), *read, seen, scale=0.5, **options), seen, streaming, wanted)
    assert 0 < int(wanted.isnan().sum()) < wanted.numel()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    # What does not stream is left as it was.
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance, equal_nan=True)
