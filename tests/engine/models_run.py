"""Replays on tiny models of random weights, each of another architecture; a file of what the probe found for each.

usage: python models_run.py OUT FOLDER
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import torch
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
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"head_dim": 32}),
    "qwen2 (biases)": ("Qwen2ForCausalLM", {}),
    "qwen3 (q/k norm)": ("Qwen3ForCausalLM", {"head_dim": 32}),
    "mistral (windows)": ("MistralForCausalLM", {"sliding_window": WINDOW, "head_dim": 64}),
    "gemma3 (q/k norm, mixed windows)": (
        "Gemma3ForCausalLM",
        {
            "sliding_window": WINDOW,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "phi3 (fused qkv)": ("Phi3ForCausalLM", {}),
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


def main(out: str, folder: str) -> None:
    found: dict[str, Any] = {}
    for name, (architecture, options) in MODELS.items():
        try:
            found[name] = run(architecture, options, Path(folder) / architecture)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()  # the engine before the next one
    torch.save(found, out)
    sys.stdout.flush()
    os._exit(0)  # nothing of the engine is worth an orderly end


def run(architecture: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    build(architecture, options, folder)
    engine = Engine(
        str(folder),
        {"dtype": "float32", "block_size": 32, "max_model_len": 512, "kv_cache_memory_bytes": 64 << 20},
        traced=True,
    )
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
        "cached_tokens": finished.cached_tokens,
        "windows": [layer["sliding_window"] for layer in engine.layers],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
