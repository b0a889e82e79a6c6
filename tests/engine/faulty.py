"""Faults of an engine, each made on purpose in one that runs: what settings have broken in the last years.

`Faulty` is vLLM's backend with one of them, for a matrix (`engine: {kind: faulty, fault: rope}`) of a session that
loads this module as a plugin (`-p faulty`). Only prompts that are computed while a fault is there are hit by it, so
there must be no prefix cache. For eager engines on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from retrieval_heads.engine.backends import backend
from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.errors import EngineError
from retrieval_heads.plain import Fields
from retrieval_heads.registry import Registry

SWAPPED_BLOCK = 2
"""The block of each prompt whose keys change places with those of the next."""
SILENT_HEAD = 6
"""Of every layer."""
WINDOW = 128
"""Tokens that windowed layers see, or all layers of a model that has none of these."""

Written = Callable[[Any, Tensor], Tensor]
"""An attention layer and the keys that it was to write; those that it does."""


@contextmanager
def _keys(engine: Engine, change: Written) -> Iterator[None]:
    """Have every attention layer write other keys into the paged cache."""
    with ExitStack() as undone:
        for layer in _attention(engine):
            right = layer.impl.do_kv_cache_update

            def write(layer: Any, key: Tensor, *rest: Any, right: Callable[..., None] = right) -> None:
                right(layer, change(layer, key), *rest)

            undone.enter_context(mock.patch.object(layer.impl, "do_kv_cache_update", write))
        yield


def swapped_block(engine: Engine) -> Any:
    """The keys of one block of each prompt change places with those of the next, their values stay."""
    from vllm.forward_context import get_forward_context

    def change(layer: Any, key: Tensor) -> Tensor:
        metadata = get_forward_context().attn_metadata
        if not isinstance(metadata, dict):
            return key
        (metadata, size), key = (metadata[layer.layer_name], layer.kv_cache.shape[2]), key.clone()
        starts = metadata.query_start_loc.tolist()
        for first, end, length in zip(starts, starts[1:], metadata.seq_lens.tolist(), strict=False):
            here = first + SWAPPED_BLOCK * size - (length - (end - first))
            if first <= here and here + 2 * size <= end:
                key[here : here + 2 * size] = key[here : here + 2 * size].roll(size, 0)
        return key

    return _keys(engine, change)


def k_scale(engine: Engine) -> Any:
    """Keys come out of the cache twice as large as they were, as by a scale that is off by 2."""
    return _keys(engine, lambda _, key: 2 * key)


@contextmanager
def rope(engine: Engine) -> Iterator[None]:
    """Positions are taken to lie 1.1 times as close."""
    with ExitStack() as undone:
        found = {id(module): module for module in _modules(engine) if hasattr(module, "cos_sin_cache")}
        for module in found.values():
            cache = module.cos_sin_cache
            turns = torch.outer(torch.arange(len(cache)) / 1.1, module._compute_inv_freq(module.base))
            undone.enter_context(
                mock.patch.object(module, "cos_sin_cache", torch.cat([turns.cos(), turns.sin()], -1).to(cache))
            )
        yield


@contextmanager
def silent_head(engine: Engine) -> Iterator[None]:
    """The output of one head of every layer is lost."""
    with ExitStack() as undone:
        for layer in _attention(engine):
            size = layer.impl.head_size
            start = SILENT_HEAD * size

            def silence(_: Any, inputs: Any, output: Tensor, start: int = start, size: int = size) -> Tensor:
                output = output.clone()
                output.flatten(1)[:, start : start + size] = 0
                return output

            undone.callback(layer.register_forward_hook(silence).remove)
        yield


@contextmanager
def window(engine: Engine) -> Iterator[None]:
    """Layers that see a window of tokens see a shorter one; where there are none, all do."""
    layers = _attention(engine)
    with ExitStack() as undone:
        for layer in [one for one in layers if one.impl.sliding_window > 0] or layers:
            undone.enter_context(mock.patch.object(layer.impl, "sliding_window", WINDOW))
        yield


@contextmanager
def temperature(engine: Engine) -> Iterator[None]:
    """Answers are sampled at 0.7, whatever was asked for."""
    right = engine.add

    def add(request: str, prompt: Any, sampling: Fields, *rest: Any, **options: Any) -> None:
        right(request, prompt, {**sampling, "temperature": 0.7}, *rest, **options)

    with mock.patch.object(engine, "add", add):
        yield


FAULTS: Mapping[str, Callable[[Engine], Any]] = {
    one.__name__: one for one in (swapped_block, rope, k_scale, silent_head, window, temperature)
}


class Faulty(Engine):
    """vLLM with a fault, which `engine.fault` names."""

    def __init__(self, model: str, arguments: Fields, options: Fields | None = None, *, traced: bool = False) -> None:
        options = dict(options or {})
        fault = options.pop("fault", None)
        if fault not in FAULTS:
            raise EngineError(f"engine.fault: {fault!r} is none of {', '.join(FAULTS)}")
        super().__init__(model, arguments, options, traced=traced)
        self._fault = FAULTS[fault](self)
        self._fault.__enter__()


def pytest_configure() -> None:
    """Have settings name it."""
    builtin = {"vllm": "retrieval_heads.engine.backends.vllm:Engine", "faulty": "faulty:Faulty"}
    backend.BACKENDS = Registry(backend.GROUP, "backend", builtin)


def _modules(engine: Engine) -> list[Any]:
    (found,) = engine._engine.apply_model(lambda model: list(model.modules()))
    return found


def _attention(engine: Engine) -> list[Any]:
    return [module for module in _modules(engine) if hasattr(getattr(module, "impl", None), "do_kv_cache_update")]
