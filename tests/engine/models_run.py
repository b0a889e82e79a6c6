"""Replays on tiny models of random weights, each of another architecture; a file of what the probe found for each.

usage: python models_run.py OUT FOLDER
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nnsight.modeling.vllm import VLLM
from oracle import BOS, END, VOCABULARY, write_tokenizer
from stepping import finish

from retrieval_heads.engine.vllm import Engine

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    # Above the usual 0.02, with which attention is so flat that many positions nearly tie.
    "initializer_range": 0.15,
    "bos_token_id": BOS,
    "eos_token_id": END,
    "pad_token_id": END,
    "tie_word_embeddings": False,
}
WINDOW = 128
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}


@dataclass(frozen=True)
class Tiny:
    """A tiny model of random weights.

    Args:
        architecture: Its class in transformers and in vLLM.
        options: Of its config, beside `SIZES`.
        engine: vLLM's arguments, beside those of all.
        windows: Of its layers; none where nothing is said.
    """

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    windows: tuple[int | None, ...] = (None,) * 4


MODELS: dict[str, Tiny] = {
    "Llama": Tiny("LlamaForCausalLM", {"head_dim": 32}),
    "Qwen2 (biases)": Tiny("Qwen2ForCausalLM"),
    "Qwen3 (q/k norm)": Tiny("Qwen3ForCausalLM", {"head_dim": 32}),
    "Mistral (windows)": Tiny("MistralForCausalLM", {"sliding_window": WINDOW, "head_dim": 64}, windows=(WINDOW,) * 4),
    "Gemma 2 (soft cap, mixed windows)": Tiny(
        "Gemma2ForCausalLM",
        {
            "sliding_window": WINDOW,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "attn_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
        },
        windows=(WINDOW, None) * 2,
    ),
    "Gemma 3 (q/k norm, mixed windows)": Tiny(
        "Gemma3ForCausalLM",
        {
            "sliding_window": WINDOW,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        windows=(WINDOW, None) * 2,
    ),
    "Phi-3 (fused qkv)": Tiny("Phi3ForCausalLM"),
    "gpt-oss (sinks, experts, mixed windows)": Tiny(
        "GptOssForCausalLM",
        {
            "head_dim": 32,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 64,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
            },
        },
        windows=(WINDOW, None) * 2,
    ),
    "Mixtral (experts)": Tiny("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "DeepSeek-V3 (latent attention)": Tiny(
        "DeepseekV3ForCausalLM",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 64,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "first_k_dense_replace": 4,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            **EXPERTS,
        },
        {
            "attention_config": {"backend": "CPU_MLA"},
            "block_size": 16,
            # vLLM 0.32's rotary kernel on CPU takes token t's head h, where pairs are interleaved, to stand at position
            # t × heads + h. Its plain torch form does not.
            "compilation_config": {"custom_ops": ["-rotary_embedding"]},
        },
    ),
}
PROMPT_TOKENS = 300
NEEDLE_SPAN = (200, 212)
QUESTION_SPAN = (290, 298)


def tokens() -> list[int]:
    """The prompt's ids; the answer that is replayed on it repeats the needle."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(END + 1, VOCABULARY, (PROMPT_TOKENS,), generator=random).tolist()


def build(architecture: str, options: dict[str, Any], folder: Path) -> None:
    """Write a model of random weights."""
    import transformers

    kind = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = kind(kind.config_class(**SIZES | options)).float()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "sinks")):  # they start as zeros
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    write_tokenizer(folder)


def main(out: str, folder: str, *names: str) -> None:
    found: dict[str, Any] = {}
    for name in names or MODELS:
        try:
            found[name] = run(MODELS[name], Path(folder) / MODELS[name].architecture)
        except Exception as error:
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()  # the engine before the next one
        VLLM._cleanup_distributed()  # a group made for a dense model has no part for experts
    torch.save(found, out)
    sys.stdout.flush()
    os._exit(0)  # nothing of the engine is worth an orderly end


def run(model: Tiny, folder: Path) -> dict[str, Any]:
    build(model.architecture, model.options, folder)
    arguments = {"dtype": "float32", "block_size": 32, "max_model_len": 512, "kv_cache_memory_bytes": 64 << 20}
    engine = Engine(str(folder), {**arguments, **model.engine}, traced=True)
    ids = tokens()
    needle = ids[slice(*NEEDLE_SPAN)]
    rows = {
        "prompt_tokens": len(ids),
        "answer": needle,
        "needle_span": list(NEEDLE_SPAN),
        "needle": needle,
        "question_span": list(QUESTION_SPAN),
        "positions": True,
    }
    engine.add("prompt", ids, {"max_tokens": 1, "temperature": 0.0})
    finish(engine)
    engine.replay("replay", [*ids, *needle[:-1]], rows, QUESTION_SPAN[0])
    finished = finish(engine)["replay"]
    return {
        "error": finished.error,
        "scores": finished.head_scores,
        "names": engine.scores,
        "cached_tokens": finished.cached_tokens,
        "has_prefix_cache": engine.info["enable_prefix_caching"],
        "layers": engine.layers,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
