"""Reading keys and values out of vLLM's paged KV cache, whatever order a backend packs them in.

On CUDA the cache is `[blocks, kv_heads, block_size, 2 × head_size]` and K is its first half. On CPU the same shape
holds K packed for the instruction set, and a plain slice returns garbage without an error. So the order is never
assumed: keys (or values) that say where they stand are written through the layer's own writer into a scratch block, and
read back; the order found is what the real cache is read with. Checked on vLLM 0.26.0 and 0.32.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from retrieval_heads.tracing.rows import FP8

_PAIRS = {1: torch.int16, 2: torch.int32, 4: torch.int64}
"""By bytes of an element, what holds two of them."""
_DIGIT = 8  # 1 to 8 are exact in every float type of a cache, float8 included


class UnreadableCache(Exception):
    """A cache whose packing is no plain order of its keys, or of its values."""


@dataclass(frozen=True)
class KeyOrder:
    """Where a layer's keys, or values, lie inside one (block, head) cell `[block_size, 2 × head_size]` of its cache.

    Args:
        shape: `[block_size, head_size]` of a cell's keys; a value may be of another size than a key.
        strides: Elements of a cell from a position to the next and from a channel to the next; `None` where the
            order is no such grid.
        offsets: `[block_size × head_size]`: each key element's place in the flattened cell, position by position.
        start: The first one's place.
        digits: Counts and strides, the slowest first, of the digits that a position and a channel are written in, where
            places grow with each digit: tiles, and pairs in them; empty where they do not.
    """

    shape: tuple[int, int]
    strides: tuple[int, int] | None
    offsets: Tensor
    start: int = 0
    digits: tuple[tuple[int, int], ...] = ()

    def view(self, kv_cache: Tensor) -> Tensor | None:
        """The keys of a cache, `[blocks, kv_heads, block_size, head_size]`, without a copy; `None` if they lie on
        no grid, and `read` is to copy them instead.
        """
        width, size = kv_cache.shape[3], self.shape[1]
        if self.strides == (width, 1) and self.start + size <= width:
            return kv_cache[..., self.start : self.start + size]
        if self.strides is None or kv_cache.stride()[2:] != (width, 1):
            return None
        strides = (*kv_cache.stride()[:2], *self.strides)
        start = kv_cache.storage_offset() + self.start
        return kv_cache.as_strided((*kv_cache.shape[:2], *self.shape), strides, start)

    def read(self, kv_cache: Tensor, block_ids: Tensor) -> Tensor:
        """Copy the keys of some blocks, `[len(block_ids) × block_size, kv_heads, head_size]`, those of a head in one
        piece; quantised ones as float8_e4m3fn, not multiplied by their scale.
        """
        keys = self.paged(kv_cache, block_ids).transpose(0, 1).flatten(1, 2).transpose(0, 1)
        return keys.view(FP8) if keys.dtype == torch.uint8 else keys

    def of_heads(self, kv_cache: Tensor, blocks: Tensor, heads: Tensor) -> Tensor:
        """Copy the keys of some heads in some blocks, `[N, len(heads), B × block_size, head_size]`; quantised ones as
        bytes.

        Args:
            kv_cache: The cache.
            blocks: `[N, B]`.
            heads: Of which KV heads.
        """
        kv_cache = kv_cache.view(torch.uint8) if kv_cache.dtype == FP8 else kv_cache
        if kv_cache.stride(0) == kv_cache.shape[1] * kv_cache.stride(1):  # each cell is a block of one head
            at = blocks[:, None] * kv_cache.shape[1] + heads[:, None]
            read = self.paged(kv_cache.flatten(0, 1)[:, None], at.flatten()).unflatten(0, at.shape)[:, :, :, 0]
        else:
            read = self.paged(kv_cache, blocks.flatten()).unflatten(0, blocks.shape)[:, :, heads].transpose(1, 2)
        return read.flatten(2, 3)

    def paged(self, kv_cache: Tensor, block_ids: Tensor) -> Tensor:
        """The same in blocks, `[len(block_ids), kv_heads, block_size, head_size]`; quantised ones as bytes."""
        ordered = self._ordered(kv_cache)
        if ordered is None:
            cells = kv_cache.index_select(0, block_ids).flatten(2).index_select(2, self.offsets)
        else:
            cells = ordered.index_select(0, block_ids).flatten(2).view(kv_cache.dtype)
        return cells.unflatten(2, self.shape)

    def _ordered(self, kv_cache: Tensor) -> Tensor | None:
        """A view of the cache in the order of the keys, `[blocks, kv_heads, ...]`, in integers that are pairs of
        elements where these lie together; `None` if there is none. Picking elements one by one takes thirteen times as
        long.
        """
        width = kv_cache.shape[3]
        if not self.digits or kv_cache.stride()[2:] != (width, 1):
            return None
        wide, outer = _PAIRS.get(kv_cache.element_size()), [each for _, each in self.digits[:-1]]
        outer = [kv_cache.storage_offset() + self.start, *kv_cache.stride()[:2], *outer]
        if wide is None or self.digits[-1] != (2, 1) or width % 2 or any(number % 2 for number in outer):
            sizes, strides = zip(*self.digits, strict=True)
            return kv_cache.as_strided((*kv_cache.shape[:2], *sizes), (*outer[1:3], *strides), outer[0])
        sizes = tuple(size for size, _ in self.digits[:-1])
        first, *steps = (number // 2 for number in outer)
        return kv_cache.view(wide).as_strided((*kv_cache.shape[:2], *sizes), steps, first)


def key_order(attention: Module) -> KeyOrder:
    """Find the order of a layer's keys by writing keys that say where they stand.

    Args:
        attention: vLLM's `Attention` module, its cache bound.

    Raises:
        UnreadableCache: What comes back is not what was written.
    """
    return _order(attention, "keys")


def value_order(attention: Module) -> KeyOrder:
    """The same of its values."""
    return _order(attention, "values")


def _order(attention: Module, what: str) -> KeyOrder:
    cache, head_size = attention.kv_cache, int(attention.head_size)
    value_size = int(getattr(attention, "head_size_v", head_size))
    size = head_size if what == "keys" else value_size
    _, heads, block_size, _ = cache.shape
    scales = key_scales(attention) if what == "keys" else value_scales(attention)
    scratch = torch.zeros_like(cache[:1])
    slots = torch.arange(block_size, dtype=torch.int64, device=cache.device)
    count = block_size * size
    place = torch.arange(count, device=cache.device)
    found = torch.zeros(scratch[0].shape[0], scratch[0, 0].numel(), dtype=torch.int64, device=cache.device)
    written = torch.zeros_like(found, dtype=torch.bool)
    scale, step = 1, 0
    while scale < count or step == 0:
        digits = (place // scale % _DIGIT + 1).view(block_size, 1, size)
        planted = digits.expand(block_size, heads, size)
        if scales is not None:  # the writer divides by them
            planted = planted * scales.view(1, -1, 1)
        planted = planted.to(attention.dtype).contiguous()
        if what == "keys":
            keys, values = planted, planted.new_zeros(block_size, heads, value_size)
        else:
            keys, values = planted.new_zeros(block_size, heads, head_size), planted
        attention.impl.do_kv_cache_update(attention, keys, values, scratch, slots)
        read = _floats(scratch[0].flatten(1)).round().to(torch.int64)
        written = read > 0
        found += (read - 1).clamp(min=0) * scale
        scale, step = scale * _DIGIT, step + 1
    offsets = []
    for head in range(heads):
        at = written[head].nonzero().flatten()
        order = torch.full((count,), -1, dtype=torch.int64, device=cache.device)
        if at.numel() == count:
            order[found[head, at].clamp(max=count - 1)] = at
        if at.numel() != count or bool((order < 0).any()):
            raise UnreadableCache(
                f"{type(attention.impl).__name__} packs {what} of {cache.dtype} in an order that cannot be read"
            )
        offsets.append(order)
    if any(not torch.equal(order, offsets[0]) for order in offsets[1:]):
        raise UnreadableCache(f"{type(attention.impl).__name__} packs the {what} of each head in another order")
    places, start = offsets[0], int(offsets[0][0])
    digits = digits_of(places - start, block_size, size)
    counts, steps = zip(*digits, strict=True) if digits else ((), ())
    is_grid = counts == (block_size, size) and min(steps) > 0
    return KeyOrder((block_size, size), steps if is_grid else None, places, start, digits)


def key_scales(attention: Module) -> Tensor | None:
    """What the keys in a layer's cache are multiplied by, float32, `[1]` or `[kv_heads]`; `None` where by nothing.

    A checkpoint's calibrated scales, or those that vLLM came to at its start. The CPU's kernel writes and reads with
    one number a layer, of scales by head the greatest.
    """
    return _scales(attention, "_k_scale")


def value_scales(attention: Module) -> Tensor | None:
    """The same of the values."""
    return _scales(attention, "_v_scale")


def _scales(attention: Module, name: str) -> Tensor | None:
    cache: Tensor = attention.kv_cache
    if cache.dtype not in (torch.uint8, FP8):
        return None
    if type(attention.impl).__name__ == "CPUAttentionBackendImpl":
        return torch.tensor([float(getattr(attention, f"{name}_float"))])
    scale: Tensor = getattr(attention, name)
    return scale.detach().float().reshape(-1)


def digits_of(offsets: Tensor, positions: int, channels: int) -> tuple[tuple[int, int], ...]:
    """Counts and strides that give the offsets, those of a position before those of a channel; none where none do."""
    order = offsets.view(positions, channels)
    found = (*_radix(order[:, 0].tolist()), *_radix(order[0].tolist()))
    places = torch.zeros(1, dtype=torch.int64, device=order.device)
    for count, stride in found:
        places = (places[:, None] + stride * torch.arange(count, device=order.device)).flatten()
    return found if torch.equal(places, offsets) else ()


def _radix(places: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The same along one of the two; what comes of places without any regularity gives others."""
    if len(places) == 1:
        return ()
    stride = places[1] - places[0]
    count = next((at for at, place in enumerate(places) if place != places[0] + at * stride), len(places))
    while len(places) % count:
        count -= 1
    if count == 1:
        return ((len(places), stride),)
    return (*_radix(places[::count]), (count, stride))


def _floats(values: Tensor) -> Tensor:
    return values.view(FP8).float() if values.dtype == torch.uint8 else values.float()
