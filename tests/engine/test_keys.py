"""Keys that were planted in a cache come back as they were, whatever order the backend packs them in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl, _get_attn_isa

from retrieval_heads.tracing.keys import UnreadableCache, key_order, value_order

pytestmark = pytest.mark.engine

KV_HEADS = 3
CACHES = [
    pytest.param(dtype, block_size, head_size, id=f"{str(dtype).removeprefix('torch.')}-{block_size}-{head_size}")
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for block_size in (32, 64, 128, 256)
    for head_size in (64, 80, 128)
]


def layer(dtype: torch.dtype, block_size: int, head_size: int, blocks: int = 7) -> Any:
    """An attention layer on CPU with vLLM's real writer and an empty cache."""
    impl = object.__new__(CPUAttentionBackendImpl)  # its constructor wants a whole engine's config
    impl.attn_type, impl.kv_cache_dtype = AttentionType.DECODER, "auto"
    return SimpleNamespace(
        impl=impl,
        isa=_get_attn_isa(dtype, block_size, head_size),
        head_size=head_size,
        dtype=dtype,
        _k_scale_float=1.0,
        _v_scale_float=1.0,
        kv_cache=torch.zeros(blocks, KV_HEADS, block_size, 2 * head_size, dtype=dtype),
    )


def plant(attention: Any, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Write random keys and values into scattered blocks; the keys and their block table."""
    keys, _, table = plant_both(attention, tokens)
    return keys, table


def plant_both(attention: Any, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same, and the values."""
    blocks, _, block_size, _ = attention.kv_cache.shape
    random = torch.Generator().manual_seed(0)
    table = torch.randperm(blocks, generator=random)
    keys = torch.randn(tokens, KV_HEADS, attention.head_size, generator=random).to(attention.dtype)
    values = torch.randn(tokens, KV_HEADS, attention.head_size, generator=random).to(attention.dtype)
    place = torch.arange(tokens)
    slots = table[place // block_size] * block_size + place % block_size
    attention.impl.do_kv_cache_update(attention, keys, values, attention.kv_cache, slots)
    return keys, values, table


@pytest.mark.parametrize(("dtype", "block_size", "head_size"), CACHES)
def test_planted_keys_are_read_back(dtype: torch.dtype, block_size: int, head_size: int) -> None:
    attention = layer(dtype, block_size, head_size)
    order = key_order(attention)
    tokens = 5 * block_size + 7
    keys, table = plant(attention, tokens)
    assert torch.equal(order.read(attention.kv_cache, table)[:tokens], keys)
    assert order.digits, "blocks are brought into order without an index of each element"
    blocks, heads = torch.tensor([[4, 0], [2, 1]]), torch.tensor([2, 0])
    expected = keys[: 5 * block_size].unflatten(0, (5, block_size))[blocks][..., heads, :].permute(0, 3, 1, 2, 4)
    assert torch.equal(order.of_heads(attention.kv_cache, table[blocks], heads), expected.flatten(2, 3))
    view = order.view(attention.kv_cache)
    if view is not None:
        read = view.index_select(0, table).transpose(1, 2).flatten(0, 1)[:tokens]
        assert torch.equal(read, keys)


@pytest.mark.parametrize(("dtype", "block_size", "head_size"), CACHES)
def test_planted_values_are_read_back(dtype: torch.dtype, block_size: int, head_size: int) -> None:
    attention = layer(dtype, block_size, head_size)
    order = value_order(attention)
    tokens = 5 * block_size + 7
    _, values, table = plant_both(attention, tokens)
    assert torch.equal(order.read(attention.kv_cache, table)[:tokens], values)
    read = order.of_heads(attention.kv_cache, table[None, :2], torch.tensor([1]))
    assert torch.equal(read[0, 0], values[: 2 * block_size, 1])
    assert order.digits, "blocks are brought into order without an index of each element"
    view = order.view(attention.kv_cache)
    if view is not None:
        assert torch.equal(view.index_select(0, table).transpose(1, 2).flatten(0, 1)[:tokens], values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_slice_of_a_cpu_cache_is_not_the_keys(dtype: torch.dtype) -> None:
    attention = layer(dtype, 128, 64)
    keys, table = plant(attention, 640)
    naive = attention.kv_cache[table[:5], ..., :64].transpose(1, 2).flatten(0, 1)
    assert not torch.equal(naive, keys)


def test_finding_the_order_leaves_the_cache_as_it_was() -> None:
    attention = layer(torch.float32, 32, 64)
    plant(attention, 100)
    before = attention.kv_cache.clone()
    key_order(attention)
    assert torch.equal(attention.kv_cache, before)


def test_a_writer_whose_keys_cannot_be_found_again_is_refused() -> None:
    attention = layer(torch.float32, 32, 64)
    write = attention.impl.do_kv_cache_update

    def lossy(layer: Any, key: torch.Tensor, *rest: Any) -> None:
        write(layer, key.flip(0).clamp(max=2), *rest)

    attention.impl.do_kv_cache_update = lossy
    with pytest.raises(UnreadableCache, match="order that cannot be read"):
        key_order(attention)
