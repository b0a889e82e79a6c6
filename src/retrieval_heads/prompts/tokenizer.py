"""The tested model's tokenizer and shape, without an engine."""

from __future__ import annotations

from typing import Any

from retrieval_heads.errors import EngineError
from retrieval_heads.hub import check_model
from retrieval_heads.models import locate_model
from retrieval_heads.plain import Fields
from retrieval_heads.prompts.prompt import Tokenizer

_BYTES = {"float32": 4, "float": 4, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


def load_tokenizer(model: Fields) -> Tokenizer:
    """The tokenizer that the engine would use.

    Args:
        model: The `model` section of the settings.

    Raises:
        EngineError: transformers is not installed, or has no tokenizer of that name.
    """
    tokenizer: Tokenizer = _load("AutoTokenizer", model, str(model.get("tokenizer") or model["model"]))
    return tokenizer


def load_generation(model: Fields) -> object:
    """The model's generation config, which names the tokens that end an answer; `None` where it has none."""
    try:
        return _load("GenerationConfig", model, model["model"])
    except EngineError:
        return None


def kv_bytes_per_token(model: Fields) -> int:
    """Bytes that one token takes in the KV cache when every layer keeps it: an upper bound.

    Raises:
        EngineError: The model's config cannot be read, or does not say its shape.
    """
    config = _load("AutoConfig", model, model["model"]).get_text_config()
    try:
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        layers = config.num_hidden_layers
    except AttributeError as error:
        raise EngineError(f"the model's config does not say its shape ({error})") from None
    own = str(getattr(config, "dtype", "") or "").removeprefix("torch.")
    asked = [str(model.get(key) or "auto") for key in ("kv_cache_dtype", "dtype")]
    kind = next((name for name in asked if name != "auto"), own)
    return int(2 * layers * kv_heads * size * _BYTES.get(kind, 2))


def _load(kind: str, model: Fields, name: str) -> Any:
    is_offline = check_model({**model, "model": name})
    try:
        import transformers
    except ImportError as error:
        raise EngineError(f"transformers cannot be imported ({error}); it comes with vLLM") from None
    options = {key: model[key] for key in ("revision", "trust_remote_code") if model.get(key) is not None}
    if is_offline:
        options["local_files_only"] = True
    try:
        return getattr(transformers, kind).from_pretrained(locate_model(name), **options)
    except Exception as error:  # whatever transformers and its hub client raise
        first = str(error).strip().splitlines()
        raise EngineError(
            f"model {name}: {kind} cannot be loaded ({first[0] if first else type(error).__name__})"
        ) from None
