"""What the implementation behind vLLM's `Attention` declares, and which of that decides a head's weights.

Every attribute that an implementation sets is listed here: taken up by the scores, refused where it is in use, or
without effect on weights. One that is on no list is refused by its name: a softmax that it changes would be scored as
if it were not there, and nothing would look wrong. The lists are those of FlashAttention, FlashInfer, Triton,
FlexAttention and the CPU's in vLLM 0.26, 0.28, 0.30 and 0.32; `tests/engine/test_declared.py` compares them with the
installed one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.nn import Module

SCORED = frozenset(
    (
        "alibi_slopes",
        "attn_type",
        "head_size",
        "kv_cache_dtype",
        "kv_sharing_target_layer_name",
        "logits_soft_cap",
        "num_heads",
        "num_kv_heads",
        "num_queries_per_kv",
        "scale",
        "sinks",
        "sliding_window",
        "window_left",
    )
)
"""What the scores take up: from here, or from the layer, which holds the same."""


@dataclass(frozen=True)
class Unscored:
    """A feature that changes weights in a way that is not scored.

    Args:
        is_off: Whether a value of the attribute leaves the feature out.
        what: Says what the layer is, given the attribute's value.
    """

    is_off: Callable[[Any], bool]
    what: Callable[[Any], str]


def _one_rank(ranks: int) -> bool:
    return ranks <= 1


UNSCORED: Mapping[str, Unscored] = {
    "chunk_lookback": Unscored(
        lambda chunks: chunks < 0,
        lambda chunks: f"in chunks that see {chunks} before them (chunk_lookback)",
    ),
    "use_alibi_sqrt": Unscored(
        lambda is_used: not is_used,
        lambda _: "with ALiBi of the distance's square root (use_alibi_sqrt)",
    ),
    "out_transform": Unscored(
        lambda transform: transform is None,
        lambda _: "whose output is weighed again by its log sum (out_transform)",
    ),
    "dcp_world_size": Unscored(
        _one_rank,
        lambda ranks: f"with its keys on {ranks} ranks (decode context parallelism)",
    ),
    "pcp_world_size": Unscored(
        _one_rank,
        lambda ranks: f"with its prompt on {ranks} ranks (prefill context parallelism)",
    ),
    "total_cp_world_size": Unscored(
        _one_rank,
        lambda ranks: f"with its keys on {ranks} ranks (context parallelism)",
    ),
}
"""What is refused, by the attribute that declares it."""

READABLE_CACHES = ("auto", "float32", "float", "float16", "half", "bfloat16", "fp8", "fp8_e4m3")
"""Kinds of cache whose keys can be read: floats, and float8_e4m3fn times one scale a layer or KV head."""

WITHOUT_EFFECT = frozenset(
    (
        # Which kernel computes, and how it is cut.
        "batch_invariant_enabled",
        "block_m",
        "block_n",
        "fa4_hd256",
        "isa",
        "nvfp4_fa2",
        "nvfp4_trtllm",
        "supports_quant_query_input",
        "supports_xqa_or_trtllm_gen_decode",
        "use_td",
        "use_zentorch_sdpa",
        "vllm_flash_attn_version",
        # Kinds of cache, which `READABLE_CACHES` decides by their name, and their scales.
        "_is_per_token_head_quant",
        "_k_scale_cache",
        "_kv_quant_mode",
        "_v_scale_cache",
        "cache_config",
        "cache_dtype",
        "fp4_data_dim",
        "fp8_dtype",
        "is_fp8_kv_cache",
        "is_kvcache_nvfp4",
        "bmm1_scale",
        "bmm2_scale",
        "o_sf_scale",
        "_nvfp4_fp8_out",
        # Ranks among which keys are shared out, of which there is one.
        "_dcp_dtype",
        "_dcp_max_num_tokens",
        "dcp_combine",
        "dcp_rank",
        "need_to_return_lse_for_decode",
        "pcp_rank",
        "total_cp_rank",
        # Where sinks come from; and which of a picture's tokens see each other: no prompt here has a picture.
        "_sinks_source",
        "mm_prefix_range",
    )
)

KNOWN = SCORED | UNSCORED.keys() | WITHOUT_EFFECT


def unscored_feature(module: Module) -> str | None:
    """What a layer, or the implementation behind it, declares that changes weights and is not scored."""
    for name, feature in UNSCORED.items():
        for value in (getattr(module.impl, name, None), getattr(module, name, None)):
            if value is not None and not feature.is_off(value):
                return feature.what(value)
    return None


def why_refused(module: Module) -> str | None:
    """Why a decoder layer of class `Attention` cannot be scored, behind that name; `None` where it can."""
    if feature := unscored_feature(module):
        return feature
    cache = str(getattr(module, "kv_cache_dtype", "auto"))
    if cache not in READABLE_CACHES:
        return f"with a cache of {cache}"
    unknown = sorted(vars(module.impl).keys() - KNOWN)
    if unknown:
        return f"whose {type(module.impl).__name__} declares what is not known here: {', '.join(unknown)}"
    return None
