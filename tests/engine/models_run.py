"""Replays on tiny models of random weights, each of another architecture; a file of what the probe found for each.

usage: python models_run.py OUT FOLDER NAME...
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from oracle import BOS, END, VOCABULARY, write_tokenizer
from safetensors.torch import load_file, save_file
from stepping import finish, finish_with_logprobs, look_at_models_here, scores_of_an_answer

from retrieval_heads.commands.models import Models, layer_lines
from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.errors import EngineError
from retrieval_heads.heads.looks import Rows
from retrieval_heads.runs.mask import STREAM, Mask, Stream
from retrieval_heads.tracing import traced
from retrieval_heads.tracing.gated_delta import causal_conv, effective_weights, recurrence
from retrieval_heads.tracing.layer_kinds import conv_weight, into_latent_space, projected

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
        others: Configs of the other parts of a model that is more than its language model.
        is_variant: Whether another entry has the same model.
        is_maskable: Whether its heads can be masked.
        is_int8: Whether its projections are rounded to 8 bits, and their inputs as it runs.
    """

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    windows: tuple[int | None, ...] = (None,) * 4
    others: dict[str, Any] = field(default_factory=dict)
    is_variant: bool = False
    is_maskable: bool = True
    is_int8: bool = False

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return f"{self.architecture}-int8" if self.is_int8 else self.architecture


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
    "Gemma 3n (shared keys, sparse activations)": Tiny(
        "Gemma3nForCausalLM",
        {
            "sliding_window": WINDOW,
            "head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.0],
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 32,
            "laurel_rank": 16,
            "tie_word_embeddings": True,
        },
        windows=(WINDOW, None) * 2,
    ),
    "Phi-3 (fused qkv)": Tiny("Phi3ForCausalLM"),
    "Apertus (xIELU)": Tiny("ApertusForCausalLM"),
    "gpt-oss (sinks, experts, mixed windows)": Tiny(
        "GptOssForCausalLM",
        {
            # At 0.15 its attention is sharper than others' (YaRN multiplies its logits by 1.8; the largest weight of a
            # row is 0.82 in the mean, 0.68 of Llama's), and each layer makes an error two to six times as large. Then
            # float32 itself is too coarse: log probabilities of plain prompts are 1.25e-4 from float64's in
            # transformers, 1.03e-4 in vLLM, whose hidden states are equally far from float64's behind each layer.
            # At 0.1 they are 1.2e-5 from float64's in transformers.
            "initializer_range": 0.1,
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
            # Where pairs are interleaved, vLLM 0.32's rotary kernel on CPU rotates by other positions than the tokens';
            # its plain torch form does not. See docs/models.md.
            "compilation_config": {"custom_ops": ["-rotary_embedding"]},
        },
    ),
    "MiniCPM3 (padded values)": Tiny(
        "MiniCPM3ForCausalLM",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 64,
            "kv_lora_rank": 64,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
        },
        is_maskable=False,
    ),
    "Qwen2-Audio, as a text model": Tiny(
        "Qwen2AudioForConditionalGeneration",
        {"model_type": "qwen2"},
        {"language_model_only": True},
        others={
            "audio_config": {
                "model_type": "qwen2_audio_encoder",
                "d_model": 32,
                "encoder_layers": 1,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 32,
            }
        },
    ),
}
GATED_DELTA = "Qwen3-Next (gated delta layers, experts)"
"""vLLM has this one in bfloat16 alone on CPU."""
MODELS_IN_BFLOAT16: dict[str, Tiny] = {
    GATED_DELTA: Tiny(
        "Qwen3NextForCausalLM",
        {
            "head_dim": 64,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
            "linear_conv_kernel_dim": 4,
            "num_experts": 4,
            "shared_expert_intermediate_size": 64,
            **EXPERTS,
        },
        {"dtype": "bfloat16", "block_size": None},
    ),
}
RANKS: dict[str, Any] = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # Without the reference backend, so that a CPU with AMX keeps W_UK in an order of its own.
    "latent attention in bfloat16": (
        "DeepSeek-V3 (latent attention)",
        {"dtype": "bfloat16", "attention_config": None, "block_size": None},
    ),
    "gated delta on two ranks": (GATED_DELTA, RANKS),
    "Llama on two ranks": ("Llama", RANKS),
}
"""Models of above run otherwise: which one, and what is laid over its engine arguments (`None` takes one away)."""
INT8 = "Llama in 8 bits"
"""The first model with its projections quantised, as compressed-tensors has it."""
TWO_RANKS = ("gated delta on two ranks", "Llama on two ranks")
CONFIGS = "configs"
"""Asks for what `models --check` says of configs alone, in the place of a model's name."""
MORE = (
    "Qwen2 (biases)",
    "Qwen3 (q/k norm)",
    "Mistral (windows)",
    "Gemma 3 (q/k norm, mixed windows)",
    "Phi-3 (fused qkv)",
    "Apertus (xIELU)",
    "Mixtral (experts)",
)
"""Models that `make test-long` has: what is new in them stands before attention or behind it, or in another of them."""
SHARED = "Attention that shares its output projection with 1 more (a shared or looped layer)"
UNSCORED: dict[str, tuple[Tiny, tuple[str, ...]]] = {
    "Jamba (Mamba, attention in some layers)": (
        Tiny("JambaForCausalLM", {"num_hidden_layers": 8}),
        ("MambaMixer",) * 4 + ("attention",) + ("MambaMixer",) * 3,
    ),
    "Falcon-H1 (Mamba beside attention)": (
        Tiny("FalconH1ForCausalLM", {"num_hidden_layers": 2}),
        ("MambaMixer2", "attention") * 2,
    ),
    "Llama 4 (chunked local attention)": (
        Tiny("Llama4ForCausalLM", {"num_hidden_layers": 4}),
        ("ChunkedLocalAttention",) * 3 + ("attention",),
    ),
    "Zamba2 (Mamba, shared attention)": (
        Tiny(
            "Zamba2ForCausalLM",
            {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1},
        ),
        ("MambaMixer2", "MambaMixer2", SHARED, SHARED, "MambaMixer2", "MambaMixer2"),
    ),
    "IQuest-Coder-Loop (looped attention)": (
        Tiny("IQuestLoopCoderForCausalLM", {"num_hidden_layers": 2}),
        (SHARED,) * 4,
    ),
    "Whisper (cross attention)": (
        Tiny("WhisperForConditionalGeneration", {"decoder_layers": 2}),
        ("CrossAttention", "attention") * 2,
    ),
    "BERT (an encoder)": (Tiny("BertModel", {"num_hidden_layers": 2}), ("EncoderOnlyAttention",) * 2),
}
"""Models with layers that cannot be scored, by their configs alone, and what `models --check` finds in each layer."""
NO_STEP = ("Zamba2ForCausalLM", "BertModel", "WhisperForConditionalGeneration")
"""Of them those that `models --check` runs no step of: no head can be scored, or text is not all that is asked."""
STEPPED = ("Gemma 3n (shared keys, sparse activations)", "MiniCPM3 (padded values)")
"""Models that `models --check` runs a step of, in a process of its own: 13 s of a processor each."""
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "unknown architecture": ("LlamaForCausalLN", {}),
    "heads that do not divide": (
        "LlamaForCausalLM",
        {"hidden_size": 384, "num_attention_heads": 6, "num_key_value_heads": 4},
    ),
}
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "block_size": 32,
    "max_model_len": 512,
    "kv_cache_memory_bytes": 64 << 20,
}
"""vLLM's arguments."""
MASKED = tuple((layer, head) for layer in range(3) for head in range(3))
"""Heads, as layer and head."""
EVERY = tuple((layer, head) for layer in range(4) for head in range(4))
STREAMED = (
    None,
    Mask(STREAM, EVERY, stream=Stream(4, 33, context=280)),
    Mask(STREAM, EVERY[4:12], stream=Stream(33, 160, context=256)),  # a window wider than the layers' own
    Mask(STREAM, EVERY, stream=Stream(16, 32, "context", context=271)),
    Mask(STREAM, EVERY, stream=Stream(0, 31, prefill=True, context=280)),
)
"""Heads that stream: none, all, and those of two layers; blocks are of 32 tokens, or of 16."""
PROMPT_TOKENS = 300
NEEDLE_SPAN = (200, 212)
QUESTION_SPAN = (290, 298)
TEXT_COPIES = 4
"""Of a repeated text of `TEXT_IDS`."""


TEXT_IDS = (torch.randperm(VOCABULARY - END - 1, generator=torch.Generator().manual_seed(1))[:40] + END + 1).tolist()


def tokens() -> list[int]:
    """The prompt's ids; the answer that is replayed on it repeats the needle."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(END + 1, VOCABULARY, (PROMPT_TOKENS,), generator=random).tolist()


def variant(name: str, engine: dict[str, Any]) -> Tiny:
    """A model with other engine arguments; the values that it is compared by are not rebuilt."""
    model = (MODELS | MODELS_IN_BFLOAT16)[name]
    given = {key: value for key, value in (model.engine | engine).items() if value is not None}
    return replace(model, engine=given, is_variant=True)


def build(model: Tiny, folder: Path) -> None:
    """Write a model of random weights."""
    import transformers

    kind = getattr(transformers, model.architecture)
    options = SIZES | model.options
    config = kind.config_class(**({"text_config": options, **model.others} if model.others else options))
    torch.manual_seed(0)
    made = kind(config).float()
    for name, parameter in made.named_parameters():
        if name.endswith(("bias", "sinks")):  # they start as zeros
            torch.nn.init.normal_(parameter, std=0.5)
        if name.endswith(("alpha_p", "alpha_n")):  # vLLM's softplus of them is rounded to bfloat16; of this by 2e-6
            torch.nn.init.constant_(parameter, 0.388671875)
        if name.endswith("A_log"):  # so that a head remembers some hundreds of tokens
            torch.nn.init.uniform_(parameter, -8.0, -4.0)
    made.save_pretrained(folder)
    if model.others:  # transformers doubles a part of the names that published checkpoints have, and vLLM reads
        file = folder / "model.safetensors"
        weights = {name.replace(".model.model.", ".model."): weight for name, weight in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
    if model.is_int8:
        quantise(folder)
    write_tokenizer(folder)


def quantise(folder: Path) -> None:
    """Round a model's projections to 8 bits with a scale an output, and have its inputs rounded with one a token."""
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith("proj.weight")]:
        scale = weights[name].abs().amax(1, keepdim=True) / 127
        weights[name] = (weights[name] / scale).round().to(torch.int8)
        weights[name.replace("weight", "weight_scale")] = scale
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**eight, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight, "strategy": "token", "dynamic": True},
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))


def main(out: str, folder: str, *names: str) -> None:
    from nnsight.modeling.vllm import VLLM

    look_at_models_here()
    found: dict[str, Any] = {}
    if CONFIGS in names:
        found["checked"] = checked(Path(folder))
    models = MODELS | MODELS_IN_BFLOAT16 | {name: variant(*how) for name, how in VARIANTS.items()}
    models[INT8] = replace(variant("Llama", {"dtype": "bfloat16"}), is_int8=True)
    for name in [name for name in models if name in names]:
        try:
            found[name] = run(models[name], Path(folder) / models[name].folder)
            if not models[name].is_variant:
                found[name]["checked"] = checked_layers(models[name], Path(folder))
            if name in STEPPED:
                found[name]["told"] = told(Path(folder) / models[name].architecture)
        except Exception as error:
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()  # the engine before the next one
        VLLM._cleanup_distributed()  # a group made for a dense model has no part for experts
    torch.save(found, out)
    sys.stdout.flush()
    os._exit(0)  # nothing of the engine is worth an orderly end


def is_scoreless(engine: Engine) -> bool:
    """Whether no head can be scored."""
    return not any(layer.heads for layer in engine.info.layers or ())


def weighed(engine: Engine, ids: list[int]) -> dict[str, Any]:
    """What `qr` reads of the prompt, and `induction` and `echo` of a text."""
    needle = tuple(ids[slice(*NEEDLE_SPAN)])
    rows = Rows(len(ids), (), NEEDLE_SPAN, needle, (0, 0), query_span=(QUESTION_SPAN[0], len(ids)), scores=("qr",))
    text = TEXT_IDS * TEXT_COPIES
    repeated = Rows(len(text), (), (0, 0), (), (0, 0), period=len(TEXT_IDS), scores=("induction", "echo"))
    engine.replay("query", ids, rows, rows.first)
    engine.replay("text", text, repeated, repeated.first)
    finished = finish(engine)
    return {
        name: each.error if each.head_scores is None else torch.from_numpy(each.head_scores)
        for name, each in finished.items()
    }


def kept_and_replayed(engine: Engine, ids: list[int], rows: Rows) -> dict[str, Any]:
    """An answer of the model's own that is scored as it ends, and the same replayed."""
    engine._engine.reset_prefix_cache()
    sampling = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True}
    engine.add("answer", ids, sampling, is_replayed=True, rows=replace(rows, answer=()))
    answer = finish(engine)["answer"].token_ids
    asked, whole = replace(rows, answer=tuple(answer)), [*ids, *answer[:-1]]
    engine.replay("kept", whole, asked, asked.first, of="answer")
    found = finish(engine)
    engine.replay("replayed", whole, asked, asked.first)
    found |= finish(engine)
    return {
        "errors": [each.error for each in found.values()],
        "computed": found["kept"].prompt_tokens - found["kept"].cached_tokens,
        "scores": {name: torch.from_numpy(each.head_scores) for name, each in found.items() if not each.error},
    }


def run(model: Tiny, folder: Path) -> dict[str, Any]:
    build(model, folder)
    traced.KEPT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # of which the exact models are
    engine = Engine(str(folder), ENGINE | model.engine, traced=True)
    ids = tokens()
    needle = ids[slice(*NEEDLE_SPAN)]
    wanted = {"scores": scores_of_an_answer(engine), "positions": True}
    rows = Rows(len(ids), tuple(needle), NEEDLE_SPAN, tuple(needle), QUESTION_SPAN, **wanted)
    engine.add("prompt", ids, {"max_tokens": 1, "temperature": 0.0})
    finish(engine)
    masked, uniform = ask_masked(engine, ids, "zero"), ask_masked(engine, ids, "uniform")
    streamed = ask_streaming(engine, ids)
    engine.replay("replay", [*ids, *needle[:-1]], rows, QUESTION_SPAN[0])
    finished = finish(engine)["replay"]
    layers = engine.info.layers or ()
    kinds = {layer.kind for layer in layers}
    return {
        "rebuilt": rebuilt(engine, ids) if kinds & REBUILT.keys() and not model.is_variant else {},
        "error": finished.error,
        "masked": masked.error,
        "masked_logprob": masked.prompt_logprob,
        "maskable": list(engine.info.maskable_layers or ()),
        "uniform": uniform.error,
        "streamed": streamed,
        "scores": None if finished.head_scores is None else torch.from_numpy(finished.head_scores),
        "names": scores_of_an_answer(engine),
        "weighed": None if is_scoreless(engine) else weighed(engine, ids),
        "kept": None if is_scoreless(engine) else kept_and_replayed(engine, ids, rows),
        "cached_tokens": finished.cached_tokens,
        "has_prefix_cache": engine.info.more["enable_prefix_caching"],
        "layers": [asdict(layer) for layer in layers],
    }


def ask_masked(engine: Engine, ids: list[int], mode: str) -> Finished:
    """The prompt with `MASKED` masked, or the error that the engine refuses it with."""
    try:
        engine.add(mode, ids, {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}, Mask(mode, MASKED))
    except EngineError as error:
        return Finished(mode, "", [], "", 0, 0, 0.0, error=str(error))
    return finish(engine)[mode]


def ask_streaming(engine: Engine, ids: list[int]) -> list[Any]:
    """Of each of `STREAMED`, in one batch: the answer and its tokens' log probabilities, or why it has none."""
    refused: dict[str, str] = {}
    sampling = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True, "logprobs": 20}
    names = [f"streaming {number}" for number in range(len(STREAMED))]
    for name, mask in zip(names, STREAMED, strict=True):
        try:
            engine.add(name, ids, sampling, mask)
        except EngineError as error:
            refused[name] = str(error)
    finished, logprobs = finish_with_logprobs(engine)
    refused |= {name: each.error for name, each in finished.items() if each.error}
    return [refused.get(name) or (finished[name].token_ids, logprobs[name]) for name in names]


def checked(folder: Path) -> dict[str, Any]:
    """What `models --check` says of configs, and the layers that it knows of; no weights are there."""
    import transformers

    from retrieval_heads.tracing.traced import layers_of

    found: dict[str, Any] = {}
    for name, (model, _) in UNSCORED.items():
        # One that transformers does not have is read as Llama's.
        kind = getattr(transformers, model.architecture, transformers.LlamaForCausalLM)
        config = written(kind.config_class(**model.options), model.architecture, folder)
        found[name] = [(layer.kind, layer.heads) for layer in layers_of(str(config), {}).layers]
    for name, (architecture, options) in REFUSED.items():
        config = transformers.LlamaConfig(**SIZES | options)
        try:
            Models(check=str(written(config, architecture, folder) / "config.json")).run()
        except EngineError as error:
            found[name] = str(error)
    jamba = layers_of(str(folder / "JambaForCausalLM"), {})
    found["jamba told"] = "\n".join(layer_lines("Jamba", jamba.layers, [layer.number for layer in jamba.maskable]))
    for architecture in NO_STEP:
        found[f"{architecture} told"] = told(folder / architecture)
    return found


def told(folder: Path) -> tuple[str, int]:
    """What `models --check` prints, and its exit status."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            Models(check=str(folder)).run()
        except SystemExit as end:
            return out.getvalue(), int(end.code or 0)
    return out.getvalue(), 0


def checked_layers(model: Tiny, folder: Path) -> list[dict[str, Any]]:
    """The layers of a model that is there, by its config alone."""
    from retrieval_heads.tracing.traced import layers_of

    return [asdict(layer) for layer in layers_of(str(folder / model.architecture), ENGINE | model.engine).layers]


def written(config: Any, architecture: str, folder: Path) -> Path:
    """A checkpoint's folder with nothing in it but its config."""
    config.architectures = [architecture]
    config.save_pretrained(folder / architecture)
    return folder / architecture


def rebuilt(engine: Engine, ids: list[int]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """By layer, the heads' outputs as vLLM has them and as our weights sum the values, `[tokens, heads, size]`."""
    from vllm import SamplingParams, TokensPrompt

    from retrieval_heads.tracing.worker import runner

    model, layers = engine.traced.model, [layer for layer in engine.info.layers or () if layer.kind in REBUILT]
    envoys = {envoy.path: envoy for envoy in model.modules()}
    found = {}
    for layer in layers:
        envoy, kind = envoys[layer.path], layer.kind
        with model.edit(name=layer.path) as (tracer, _):
            parts = []
            for _step in tracer.iter[:]:
                if kind == "gated delta":
                    given = (envoy.in_proj_qkvz.output[0], envoy.in_proj_ba.output[0])
                    out = envoy.norm.inputs[0][0]
                else:
                    given = envoy.inputs[0][:3]
                    out = envoy.output
                parts.append([each.clone() for each in (*given, out)])
                seen = list(parts).save()  # noqa: F841 - comes back on the output
        parameters = SamplingParams(max_tokens=1, extra_args={"nnsight_edits": [layer.path]})
        prompt = TokensPrompt(prompt_token_ids=ids, cache_salt=layer.path)
        engine.traced.engine.add_request(layer.path, prompt, parameters)
        outputs: list[Any] = []
        while engine.traced.engine.has_unfinished_requests():
            outputs += engine.traced.engine.step()
        module = dict(runner().model.named_modules())[layer.path.removeprefix("model.")]
        *given, out = (torch.cat(each) for each in zip(*outputs[0].saves["seen"], strict=True))
        found[layer.number] = REBUILT[kind](module, given, out)
    return found


def latent_output(module: Any, given: list[torch.Tensor], out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over the latents, their weighted sum, and each head's values of it."""
    q, latents, rotated = given
    keys = torch.cat([latents, rotated.flatten(1)], dim=-1)
    scores = torch.einsum("thd,sd->hts", into_latent_space(module, q), keys) * module.scale
    weights = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)
    values = torch.einsum("hts,sd,hdv->thv", weights, latents, module.W_UV)
    return out.view_as(values), values


def gated_delta_output(module: Any, given: list[torch.Tensor], out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of the values, whose part of the convolution the product code leaves out."""
    mixed, b, a = projected(module, *given)
    weight = conv_weight(module)
    found = recurrence(
        mixed, weight, b, a, module.A_log, module.dt_bias, k_heads=module.num_k_heads, head_k_dim=module.head_k_dim
    )
    skipped = 2 * module.key_dim
    values = causal_conv(mixed[:, skipped:], weight[skipped:]).unflatten(-1, (-1, module.head_v_dim))
    q = found.q.repeat_interleave(module.num_v_heads // module.num_k_heads, dim=1)
    total = torch.zeros_like(values)
    for start, weights in effective_weights(q, 0, found.keys, found.log_decay, found.strength):
        total += torch.einsum("ths,shv->thv", weights, values[start : start + weights.shape[-1]])
    return out.float().view_as(total), total


REBUILT = {"latent attention": latent_output, "gated delta": gated_delta_output}


if __name__ == "__main__":
    main(*sys.argv[1:])
