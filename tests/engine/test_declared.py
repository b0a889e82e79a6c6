"""What a layer of vLLM declares: what is scored, what is refused by its name, and what nobody has looked at yet."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retrieval_heads.errors import EngineError
from retrieval_heads.tracing.declared import KNOWN, SCORED, UNSCORED, WITHOUT_EFFECT
from retrieval_heads.tracing.layer_kinds import LatentAttention, SoftmaxAttention, kind_of, why_unscored
from retrieval_heads.tracing.traced import TracedModel

IMPLEMENTATIONS = {
    "flash_attn": "FlashAttentionImpl",
    "flashinfer": "FlashInferImpl",
    "triton_attn": "TritonAttentionImpl",
    "flex_attention": "FlexAttentionImpl",
    "cpu_attn": "CPUAttentionBackendImpl",
}

LAYER_CHANGES_WEIGHTS = {
    "attn_type",  # any but a decoder's is refused
    "impl",  # see KNOWN
    "kv_cache_dtype",  # READABLE_CACHES
    "kv_sharing_target_layer_name",  # the keys are read where they lie
    "sliding_window",
    "use_alibi_sqrt",  # UNSCORED
}
LAYER_SAYS_WHAT_ITS_IMPLEMENTATION_HOLDS = {"has_sink", "head_size", "num_heads", "num_kv_heads"}
LAYER_CHANGES_NO_WEIGHT = {
    "attn_backend",
    "backend",
    "calculate_kv_scales",  # to vLLM 0.28; the scale that it comes to is read
    "dtype",
    "head_size_v",
    "kv_cache",
    "kv_cache_torch_dtype",
    "layer_name",
    "mm_prefix_clamp_sliding_window",  # no prompt here has a picture
    "quant_config",
    "query_quant",  # queries are scored as they are before it
    "use_direct_call",
    "use_mm_prefix",
    "_k_scale_float",
    "_q_scale_float",
    "_v_scale_float",
}


def set_in(source: str) -> set[str]:
    """The attributes that a class sets on itself."""
    return {
        node.attr
        for node in ast.walk(ast.parse(textwrap.dedent(source)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
def test_every_attribute_of_an_implementation_is_known(backend: str) -> None:
    try:
        module = importlib.import_module(f"vllm.v1.attention.backends.{backend}")
        source = inspect.getsource(getattr(module, IMPLEMENTATIONS[backend]))
    except ImportError:  # FlashInfer's needs FlashInfer; its source is there all the same
        spec = importlib.util.find_spec("vllm.v1.attention.backends")
        assert spec is not None
        folder = Path((spec.submodule_search_locations or [""])[0])
        source = class_source(folder / f"{backend}.py", IMPLEMENTATIONS[backend])
    assert set_in(source) - KNOWN == set(), "look whether these change weights, and put them on a list of declared.py"


def class_source(path: Path, name: str) -> str:
    """A class's source, of a module that cannot be imported here."""
    text = path.read_text(encoding="utf-8")
    found = next(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef) and node.name == name)
    return ast.get_source_segment(text, found) or ""


def test_every_attribute_of_all_implementations_is_known() -> None:
    from vllm.v1.attention.backend import AttentionImplBase

    assert set_in(inspect.getsource(AttentionImplBase)) - KNOWN == set()


def test_every_attribute_of_a_layer_is_known() -> None:
    from vllm.model_executor.layers.attention import Attention

    known = LAYER_CHANGES_WEIGHTS | LAYER_SAYS_WHAT_ITS_IMPLEMENTATION_HOLDS | LAYER_CHANGES_NO_WEIGHT
    assert set_in(inspect.getsource(Attention)) - known == set(), "look whether these change weights"


def test_no_attribute_is_on_two_lists() -> None:
    assert len(KNOWN) == len(SCORED) + len(UNSCORED) + len(WITHOUT_EFFECT)


class Attention:
    """In place of vLLM's, with an implementation that declares what it is told."""

    attn_type = "decoder"
    kv_cache_dtype = "auto"

    def __init__(self, **declared: Any) -> None:
        self.impl = SimpleNamespace(scale=0.1, sinks=None, logits_soft_cap=0, **declared)


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"chunk_lookback": 1}, "in chunks that see 1 before them (chunk_lookback)"),
        ({"chunk_lookback": 0}, "in chunks that see 0 before them (chunk_lookback)"),
        ({"use_alibi_sqrt": True}, "with ALiBi of the distance's square root (use_alibi_sqrt)"),
        ({"dcp_world_size": 2}, "with its keys on 2 ranks (decode context parallelism)"),
        ({"pcp_world_size": 4}, "with its prompt on 4 ranks (prefill context parallelism)"),
        ({"out_transform": min}, "whose output is weighed again by its log sum (out_transform)"),
        ({"forgetting": 0.5}, "whose SimpleNamespace declares what is not known here: forgetting"),
        ({"chunk_lookback": -1, "use_alibi_sqrt": False, "dcp_world_size": 1, "out_transform": None}, None),
        ({}, None),
    ],
)
def test_what_changes_weights_and_is_not_scored_is_refused_by_name(
    declared: dict[str, Any], reason: str | None
) -> None:
    module = Attention(**declared)
    assert SoftmaxAttention().refusal(module) == (reason and f"Attention {reason}")


@pytest.mark.parametrize("cache", ["fp8_e5m2", "int8_per_token_head", "nvfp4", "turboquant_k8v4", "fp8_per_token_head"])
def test_a_cache_that_cannot_be_read_is_refused_by_name(cache: str) -> None:
    module = Attention()
    module.kv_cache_dtype = cache
    assert SoftmaxAttention().refusal(module) == f"Attention with a cache of {cache}"


def test_latent_attention_over_several_ranks_is_refused() -> None:
    module = SimpleNamespace(impl=SimpleNamespace(dcp_world_size=2), kv_cache_dtype="auto")
    assert LatentAttention().refusal(module) == "MLAAttention with its keys on 2 ranks (decode context parallelism)"


@pytest.mark.parametrize("name", ["decode_context_parallel_size", "prefill_context_parallel_size"])
def test_context_parallelism_is_refused_before_a_model_is_loaded(name: str) -> None:
    with pytest.raises(EngineError, match=rf"model\.{name}: 2: each rank has some of the keys alone"):
        TracedModel("no model", {name: 2})


def test_vllms_own_layer_declares_its_features(triton_layer: Any) -> None:
    assert kind_of(triton_layer()) is not None
    assert why_unscored(triton_layer(chunk_lookback=1)) == "Attention in chunks that see 1 before them (chunk_lookback)"
    assert "use_alibi_sqrt" in str(why_unscored(triton_layer(alibi_slopes=[0.5, 0.25], use_alibi_sqrt=True)))


@pytest.fixture
def triton_layer() -> Any:
    """Makes vLLM's own layer, with its own Triton implementation, which computes on CUDA alone."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.attention import Attention as Layer
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

    def made(**options: Any) -> Any:
        with set_current_vllm_config(VllmConfig()):
            return Layer(2, 16, 0.25, prefix="layers.0.attn", attn_backend=TritonAttentionBackend, **options)

    return made
