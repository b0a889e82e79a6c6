"""What a token takes in vLLM's KV cache. Checked on vLLM 0.32.0."""

from __future__ import annotations

from typing import Any


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
