"""A folder with a shrunk copy of a model's config and a toy tokenizer, which vLLM loads with random weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_heads.engine.backends.shrunk import VOCABULARY, depth_of, layers_kept, shrunk
from retrieval_heads.errors import EngineError
from retrieval_heads.plain import Fields, Json
from retrieval_heads.runs.layers import Layer

_TOKENS = 512
"""Of a prompt and its answer, where the model takes so many."""
_KEPT = (
    "attention_backend",
    "attention_config",
    "block_size",
    "compilation_config",
    "dtype",
    "enable_prefix_caching",
    "enforce_eager",
    "kv_cache_dtype",
    "language_model_only",
    "limit_mm_per_prompt",
    "mamba_block_size",
    "mamba_cache_dtype",
    "model_impl",
    "trust_remote_code",
)
"""Engine arguments that say how a model computes; others are about its size, its files or its parallelism."""
_SPARE_BYTES = 3 << 30
"""What an engine takes beside its weights."""


@dataclass(frozen=True)
class SmallCopy:
    """The copy.

    Args:
        folder: Where it is.
        arguments: vLLM's engine arguments for it.
        kept: Its layers.
        depth: The model's.
        vocabulary: Its tokens.
        is_quantized: Whether the model is, which the copy is not.
    """

    folder: str
    arguments: dict[str, Json]
    kept: int
    depth: int
    vocabulary: int
    is_quantized: bool


def small_copy(model: str, arguments: Fields, layers: Sequence[Layer], folder: Path) -> SmallCopy:
    """Write it, and see that vLLM builds of it what the model has.

    Args:
        model: A folder or a hub name.
        arguments: vLLM's engine arguments for the model.
        layers: The model's.
        folder: An empty one.

    Raises:
        EngineError: The model's config cannot be shrunk so, or this machine lacks the memory.
        Exception: vLLM refuses the copy, in its own words.
    """
    from vllm.engine.arg_utils import EngineArgs

    whole = EngineArgs(model=model, **arguments).create_model_config()
    if whole.is_encoder_decoder:
        raise EngineError("what an encoder and decoder are asked is no text alone")
    config = json.loads(whole.hf_config.to_json_string(use_diff=False))
    path = _path_to(whole.hf_config, whole.hf_config.get_text_config(decoder=True))
    text = config
    for key in path:
        text = text[key]
    try:
        kept, depth = layers_kept(text, layers), depth_of(text)
    except KeyError:
        raise EngineError("its config says by no name that is known how many layers it has") from None
    small = shrunk(config, path, kept)
    (folder / "config.json").write_text(json.dumps(small), encoding="utf-8")
    for code in Path(model).glob("*.py"):  # what `trust_remote_code` reads
        shutil.copy(code, folder)
    vocabulary = min(VOCABULARY, int(whole.get_vocab_size()))
    _write_tokenizer(folder, vocabulary)
    asked: dict[str, Any] = {key: arguments[key] for key in _KEPT if arguments.get(key) is not None}
    asked |= {
        "load_format": "dummy",
        "max_model_len": min(_TOKENS, whole.max_model_len),
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 256 << 20,
        "gpu_memory_utilization": 0.05,  # must be free as vLLM starts, though none of it is measured then
    }
    if whole.is_multimodal_model:
        asked.setdefault("language_model_only", True)
    _check_built(str(folder), asked, layers, kept)
    is_quantized = whole.quantization is not None
    return SmallCopy(str(folder), asked, kept, depth, vocabulary, is_quantized)


def _check_built(folder: str, arguments: Fields, layers: Sequence[Layer], kept: int) -> None:
    from vllm.platforms import current_platform

    from retrieval_heads.tracing.traced import layers_of

    built = layers_of(folder, arguments)
    if lost := sorted({_sort(layer) for layer in layers} - {_sort(layer) for layer in built.layers}):
        raise EngineError(f"a copy with {kept} layers has none of this one's kind: {lost[0]}")
    if current_platform.is_cpu() and 2 * built.weight_bytes + _SPARE_BYTES > (free := _free_bytes()):
        raise EngineError(
            f"a copy with {kept} layers takes {built.weight_bytes / 2**30:.1f} GiB twice over and "
            f"{_SPARE_BYTES >> 30} GiB besides, and {free / 2**30:.1f} GiB are free"
        )


def _sort(layer: Layer) -> str:
    window = f", window {layer.sliding_window}" if layer.sliding_window else ""
    return f"{layer.kind}, {layer.heads} heads{window}"


def _free_bytes() -> int:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _path_to(config: Any, wanted: Any) -> list[str]:
    """The names that lead from a config to one within it."""
    if config is wanted:
        return []
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            with suppress(EngineError):
                return [name, *_path_to(value, wanted)]
    raise EngineError("its config does not hold that of its language model")


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A token is a word between spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {"<s>": 0, "</s>": 1} | {f"w{token}": token for token in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.save_pretrained(folder)
