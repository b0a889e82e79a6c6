"""The memory of a KV cache on a CPU: zeros that nobody has written yet take none."""

from __future__ import annotations

import psutil
import pytest
import torch

from retrieval_heads.engine.backends.kv_cache import untouched

pytestmark = pytest.mark.engine

SIZE = 1 << 30


def taken() -> int:
    return int(psutil.Process().memory_info().rss)


def test_a_cache_takes_memory_as_it_is_filled() -> None:
    before = taken()
    with untouched():
        cache = torch.zeros(SIZE, dtype=torch.int8, device=torch.device("cpu"))
    assert cache.shape == (SIZE,)
    assert taken() - before < SIZE // 8
    assert not cache[:: 1 << 20].any()
    block = cache[1 << 28 : 1 << 29].view(torch.bfloat16)
    block.fill_(1)
    assert float(block.float().mean()) == 1
    assert taken() - before >= 1 << 28
    assert not cache[1 << 29 :: 1 << 20].any()


def test_all_else_is_made_as_ever() -> None:
    made = torch.zeros
    with untouched():
        for sizes, options in [((4, 5), {}), ((SIZE // 4,), {"dtype": torch.int32, "device": "meta"}), ((3,), {})]:
            assert torch.zeros(*sizes, **options).shape == sizes
        assert torch.zeros((2, 3), dtype=torch.int8).shape == (2, 3)
        assert torch.zeros(5, dtype=torch.int8, requires_grad=False).tolist() == [0] * 5
    assert torch.zeros is made
