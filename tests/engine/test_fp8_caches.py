"""Keys of fp8 caches with calibrated scales: read in their order, and scored as float32 keys are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from retrieval_heads.tracing import layer_kinds
from retrieval_heads.tracing.attention_torch import score_rows_dense
from retrieval_heads.tracing.keys import UnreadableCache, key_order, key_scales, value_order, value_scales
from retrieval_heads.tracing.layer_kinds import Batch, Part, SoftmaxAttention, Taken
from retrieval_heads.tracing.rows import FP8, Stretch

HEADS, KV_HEADS, SIZE, BLOCK = 6, 3, 64, 16
SCALES = [
    pytest.param([1.0], id="none"),
    pytest.param([0.037], id="one"),
    pytest.param([0.02, 0.5, 3.7], id="by head"),
]


class Writer:
    """Writes as vLLM's kernels for CUDA do: each key divided by its scale, in float8_e4m3fn, in plain order."""

    scale, logits_soft_cap, alibi_slopes, sinks = 0.125, 0, None, None

    def do_kv_cache_update(self, layer: Any, keys: Any, values: Any, cache: Any, slots: Any) -> None:
        for start, given, scale in ((0, keys, layer._k_scale), (SIZE, values, layer._v_scale)):
            scaled = given.float() / scale.view(1, -1, 1)
            cache[slots // BLOCK, :, slots % BLOCK, start : start + SIZE] = scaled.to(FP8).view(torch.uint8)


def layer(scales: list[float], impl: Any, device: str = "cpu") -> Any:
    """An attention layer with an empty fp8 cache."""
    return SimpleNamespace(
        impl=impl,
        attn_type="decoder",
        head_size=SIZE,
        sliding_window=None,
        dtype=torch.bfloat16,
        layer_name="layers.0.attn",
        kv_cache_dtype="fp8",
        _k_scale=torch.tensor(scales, device=device),
        _v_scale=torch.tensor(1.0, device=device),
        kv_cache=torch.zeros(9, KV_HEADS, BLOCK, 2 * SIZE, dtype=torch.uint8, device=device),
    )


def plant(attention: Any, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Write random keys as large as their scales want them; the keys, and the blocks that they are in."""
    random = torch.Generator().manual_seed(0)
    device = attention.kv_cache.device
    table = torch.randperm(len(attention.kv_cache), generator=random).to(device)
    keys = torch.randn(tokens, KV_HEADS, SIZE, generator=random).to(device)
    keys = (keys * 40 * attention._k_scale.view(1, -1, 1)).to(attention.dtype)
    place = torch.arange(tokens, device=device)
    slots = table[place // BLOCK] * BLOCK + place % BLOCK
    attention.impl.do_kv_cache_update(attention, keys, torch.zeros_like(keys), attention.kv_cache, slots)
    return keys, table


@pytest.mark.parametrize("scales", SCALES)
def test_keys_come_back_as_they_were_up_to_their_rounding(scales: list[float]) -> None:
    attention = layer(scales, Writer())
    keys, table = plant(attention, 100)
    found = key_scales(attention)
    assert found is not None
    read = key_order(attention).read(attention.kv_cache, table)[:100].float() * found.view(1, -1, 1)
    assert ((read - keys.float()).abs() <= keys.float().abs() / 16 + 1e-2 * found.view(1, -1, 1)).all()


@pytest.mark.parametrize("scales", SCALES)
def test_values_come_back_by_their_own_scale(scales: list[float]) -> None:
    check_values(layer([1.0], Writer()), scales)


def check_values(attention: Any, scales: list[float]) -> None:
    """See that values as large as their scales want them are read as they were, up to their rounding."""
    attention._v_scale = torch.tensor(scales, device=attention.kv_cache.device)
    random = torch.Generator().manual_seed(0)
    values = torch.randn(BLOCK, KV_HEADS, SIZE, generator=random).to(attention.kv_cache.device)
    values = (values * 40 * attention._v_scale.view(1, -1, 1)).to(attention.dtype)
    slots = torch.arange(BLOCK, device=values.device)
    attention.impl.do_kv_cache_update(attention, torch.zeros_like(values), values, attention.kv_cache, slots)
    found = value_scales(attention)
    assert found is not None
    read = value_order(attention).read(attention.kv_cache, slots[:1])[:BLOCK].float() * found.view(1, -1, 1)
    assert ((read - values.float()).abs() <= values.float().abs() / 16 + 1e-2 * found.view(1, -1, 1)).all()


@pytest.mark.parametrize("scales", SCALES)
def test_scores_are_those_of_the_keys_in_float32(scales: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_kinds, "why_refused", lambda module: None)
    random = torch.Generator().manual_seed(1)
    layers, planted = [layer(scales, Writer()), layer([2 * scale for scale in scales], Writer())], []
    for one in layers:
        keys, table = plant(one, 100)
        planted.append((keys.float() / one._k_scale.view(1, -1, 1)).to(FP8).float() * one._k_scale.view(1, -1, 1))
    metadata = SimpleNamespace(block_table=table[None], causal=True)
    monkeypatch.setattr(layer_kinds, "_metadata", lambda module: metadata)
    queries = torch.randn(8, HEADS, SIZE, generator=random) / 40 / max(scales)
    taken = [Taken(one, queries) for one in layers]
    part = Part(row=0, start=0, position=92, tokens=8, stretches=(Stretch(92, 8, (20, 40)),))
    batch = Batch([part], queries.device)
    for found, keys in zip(SoftmaxAttention().score(taken, batch), planted, strict=True):
        wanted = score_rows_dense(queries, keys, 92, scale=0.125, span=(20, 40))
        assert torch.equal(found.argmax, wanted.argmax)
        assert torch.allclose(found.logsumexp, wanted.logsumexp, atol=1e-4)
        assert torch.allclose(found.span_logsumexp, wanted.span_logsumexp, atol=1e-4)


def test_a_cache_that_is_written_with_another_scale_is_refused() -> None:
    class Wrong(Writer):
        def do_kv_cache_update(self, layer: Any, keys: Any, values: Any, cache: Any, slots: Any) -> None:
            cache[slots // BLOCK, :, slots % BLOCK, :SIZE] = keys.to(FP8).view(torch.uint8)

    with pytest.raises(UnreadableCache, match="in an order that cannot be read"):
        key_order(layer([0.037], Wrong()))


@pytest.mark.gpu
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("backend", ["flash_attn.FlashAttentionImpl", "triton_attn.TritonAttentionImpl"])
def test_vllms_own_writers_on_cuda_are_read(backend: str, scales: list[float]) -> None:
    import importlib

    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    if "triton" in backend and len(scales) > 1:
        pytest.skip("vLLM's Triton backend has no scales by head")
    module, _, name = backend.partition(".")
    impl = object.__new__(getattr(importlib.import_module(f"vllm.v1.attention.backends.{module}"), name))
    impl.attn_type, impl.kv_cache_dtype, impl.head_size = "decoder", "fp8", SIZE
    impl.fp8_dtype, impl._is_per_token_head_quant = FP8, False
    attention = layer(scales, impl, "cuda")
    keys, table = plant(attention, 100)
    found = key_scales(attention)
    assert found is not None
    read = key_order(attention).read(attention.kv_cache, table)[:100].float() * found.view(1, -1, 1)
    assert ((read - keys.float()).abs() <= keys.float().abs() / 16 + 1e-2 * found.view(1, -1, 1)).all()
    check_values(attention, scales)
