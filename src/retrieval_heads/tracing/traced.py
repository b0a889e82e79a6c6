"""A vLLM engine that nnsight instruments, with the probe and the mask installed on it as named edits.

Checked on nnsight 0.8.1 with vLLM 0.26.0 and 0.32.0.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

from nnsight.modeling.vllm import VLLM

from retrieval_heads.errors import EngineError
from retrieval_heads.tracing import ablate
from retrieval_heads.tracing.probe import EDIT
from retrieval_heads.tracing.worker import worker_class


class _TracedVLLM(VLLM):
    _WORKER_CLS = worker_class()

    def _load_meta(self, repo_id: str, **arguments: Any) -> Any:
        with _no_weight_processing():
            return super()._load_meta(repo_id, **arguments)


@dataclass(frozen=True)
class Layer:
    """A layer whose heads are scored.

    Args:
        path: Its module's path, which names it in head files.
        number: Its number in the model.
        heads: Query heads, of all ranks together.
        sliding_window: Keys that it sees; `None` is all.
    """

    path: str
    number: int
    heads: int
    sliding_window: int | None


class TracedModel:
    """An engine whose requests may ask to be probed, or to have heads masked.

    Args:
        model: A folder or a hub name.
        arguments: vLLM's engine arguments; the engine runs eagerly whatever they say, since hooks need it.

    Raises:
        EngineError: No layer of the model can be scored.
    """

    def __init__(self, model: str, arguments: Mapping[str, Any]) -> None:
        arguments = {key: value for key, value in arguments.items() if key != "enforce_eager"}
        self._model: Any = _TracedVLLM(model, dispatch=True, **arguments)
        self.engine: Any = self._model.vllm_entrypoint.llm_engine
        began = time.perf_counter()
        attentions, others = _attentions(self._model)
        if not attentions:
            raise EngineError(
                f"no layer of {model} can be scored: its attention is {', '.join(sorted(set(others.values())))}; "
                "scored are decoder layers of vLLM's class Attention"
            )
        self.layers = [_layer(envoy) for envoy in attentions]
        self.unscored = others
        with warnings.catch_warnings():
            # nnsight warns that cached tokens never pass the block: the probe checks that none it needs is cached.
            warnings.filterwarnings("ignore", message="This engine was built with prefix caching on")
            _install(self._model, attentions)
            maskable = {envoy: _projection(self._model, envoy) for envoy in attentions}
            found = [(attention, projection) for attention, projection in maskable.items() if projection is not None]
            self.maskable = [_number(attention.path) for attention, _ in found]
            """Numbers of the layers whose heads can be masked; a mask names a layer by its place among them."""
            if found:
                _install_mask(self._model, found)
        self.install_seconds = time.perf_counter() - began


def _install(model: Any, attentions: list[Any]) -> None:
    with model.edit(name=EDIT) as (tracer, _):
        from retrieval_heads.tracing.probe import Probe

        probe = Probe.of_request(len(attentions))
        for _step in tracer.iter[:]:
            for layer, attention in enumerate(attentions):
                query = attention.inputs[0][0]
                if layer == 0:
                    probe.begin_step()
                probe.take(attention._module, query)
            attentions[-1].output  # noqa: B018 - waits until the last layer's keys are in the cache as well
            if probe.end_step():
                head_scores = probe.result().save()  # noqa: F841 - what is saved here comes back on the output


def _install_mask(model: Any, layers: list[tuple[Any, Any]]) -> None:
    """Install the mask and the reference.

    Args:
        model: nnsight's.
        layers: Each layer's attention, and its output projection: that has every rank's heads at its input.
    """
    size = [attention._module.head_size_v for attention, _ in layers]
    with model.edit(name=ablate.EDIT) as (tracer, _):
        from retrieval_heads.tracing.ablate import Mask

        mask = Mask.of_request()
        for _step in tracer.iter[:]:
            for layer in mask.heads:
                attention, projection = layers[layer]
                if mask.is_uniform:
                    mask.flatten(layer, attention._module, attention.inputs[0][0])
                else:
                    mask.silence(layer, projection.input, size[layer])
    with model.edit(name=ablate.REFERENCE_EDIT) as (tracer, _):
        from retrieval_heads.tracing.ablate import add_reference

        for _step in tracer.iter[:]:
            for layer, (_, projection) in enumerate(layers):
                add_reference(len(layers), layer, projection.input)


def _projection(model: Any, attention: Any) -> Any:
    """The module that maps a layer's heads to the hidden state: a row-parallel projection of as many features as the
    heads have together, in the smallest module round the attention that holds one; `None` where it is not one alone.
    """
    from vllm.model_executor.layers.linear import RowParallelLinear

    features = attention._module.num_heads * attention._module.head_size_v
    path = attention.path
    while "." in path:
        path = path.rpartition(".")[0]
        found = [
            envoy
            for envoy in model.modules()
            if envoy.path.startswith(f"{path}.")
            and isinstance(envoy._module, RowParallelLinear)
            and envoy._module.input_size == features
        ]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _attentions(model: Any) -> tuple[list[Any], dict[str, str]]:
    """The layers that can be scored, in the model's order, and the paths and classes of attention that cannot."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.v1.attention.backend import AttentionType

    scored, others = [], {}
    for envoy in model.modules():
        module = envoy._module
        # A class derived from Attention sees other keys than the mask of a decoder lets through.
        if type(module) is Attention and module.attn_type == AttentionType.DECODER:
            scored.append(envoy)
        elif isinstance(module, AttentionLayerBase):
            others[envoy.path] = type(module).__name__
    return sorted(scored, key=lambda envoy: _number(envoy.path)), others


def _layer(envoy: Any) -> Layer:
    attention = envoy._module
    # Built for one rank, whatever the engine's parallelism: the head count is the model's.
    return Layer(envoy.path, _number(envoy.path), attention.num_heads, attention.sliding_window)


def _number(path: str) -> int:
    from vllm.model_executor.models.utils import extract_layer_index

    return int(extract_layer_index(path))


def _no_weight_processing() -> AbstractContextManager[Any]:
    """On CPU an MoE's weights are packed as they are loaded, which nnsight's weightless copy cannot be."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return nullcontext()
    return mock.patch("vllm.model_executor.model_loader.base_loader.process_weights_after_loading")
