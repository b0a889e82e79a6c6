"""What a token takes in vLLM's KV cache, and how that is allocated on a CPU. Checked on vLLM 0.32.0."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

_LARGE = 64 << 20
"""Bytes of an allocation that is a cache's; all other tensors of zeros that an engine makes are smaller."""


def kv_bytes_per_token(engine: Any) -> int:
    """Bytes of a token in the caches of all layers and ranks; what a sequence holds beside them is not counted.

    Args:
        engine: vLLM's `LLMEngine`, its core in this process.
    """
    config = engine.engine_core.engine_core.scheduler.kv_cache_config
    total = 0.0
    for group in config.kv_cache_groups:
        spec = group.kv_cache_spec
        # Layers that differ stand in one specification of several.
        each = getattr(spec, "kv_cache_specs", None) or dict.fromkeys(group.layer_names, spec)
        total += sum(one.page_size_bytes / one.block_size for one in each.values() if hasattr(one, "head_size"))
    ranks: int = engine.vllm_config.parallel_config.tensor_parallel_size
    return round(total * ranks)


@contextmanager
def untouched() -> Iterator[None]:
    """Have a KV cache that is made meanwhile take memory as it is filled; on a CPU, in this process.

    vLLM writes a zero to each of its bytes, 4 GiB in 1.5 to 8 s. The system gives pages of zeros by itself, each at its
    first touch, and large ones where it has them.
    """
    import torch

    zeros = torch.zeros

    def mapped(*size: Any, dtype: Any = None, device: Any = None, **options: Any) -> Any:
        is_cache = len(size) == 1 and isinstance(size[0], int) and size[0] >= _LARGE and dtype is torch.int8
        if not is_cache or options or torch.device(device or "cpu").type != "cpu":
            return zeros(*size, dtype=dtype, device=device, **options)
        pages = mmap.mmap(-1, size[0], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(pages, dtype=torch.int8)

    with mock.patch.object(torch, "zeros", mapped):
        yield
