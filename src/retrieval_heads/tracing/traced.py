"""A vLLM engine that nnsight instruments, with the probe and the mask installed on it as named edits.

Checked on nnsight 0.8.1 with vLLM 0.26.0 and 0.32.0.
"""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from nnsight.intervention.envoy import Envoy
from nnsight.modeling.vllm import VLLM
from torch import Tensor
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.v1.engine.llm_engine import LLMEngine

from retrieval_heads.errors import EngineError
from retrieval_heads.heads.looks import Rows
from retrieval_heads.plain import Fields
from retrieval_heads.tracing import ablate
from retrieval_heads.tracing.figures import scores_of
from retrieval_heads.tracing.kept_rows import keep_rows, score_kept
from retrieval_heads.tracing.layer_kinds import LayerKind
from retrieval_heads.tracing.model_layers import ModelLayers, model_layers, why_none
from retrieval_heads.tracing.weightless import weightless
from retrieval_heads.tracing.worker import PROBE, STREAM, worker_class

GRAPHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""A step of so many requests has a graph, any other is filled up to the next of them. vLLM captures 51 sizes, each in
0.08 s; what a filled-up step waits for are the weights, as one that is not.
"""
KEPT_DTYPES = (torch.bfloat16, torch.float16)
"""Of models whose rows are kept. In float32 a replay gives the same bits whatever stands beside it in its steps, and so
the same files when a run is measured again; an answer's own steps do not, nor does either in these.
"""
_SIZES = {"cudagraph_capture_sizes", "max_cudagraph_capture_size"}


class _TracedVLLM(VLLM):
    _WORKER_CLS = worker_class()

    def _load_meta(self, repo_id: str, **arguments: Any) -> Any:
        with _no_weight_processing(), weightless():
            return super()._load_meta(repo_id, **arguments)


class _GraphedVLLM(_TracedVLLM):
    """Not eager, as nnsight's is: with the arguments that `with_graphs` gives."""

    def _load_sync(self, repo_id: str, **arguments: Any) -> Any:
        from nnsight.modeling.vllm.engines.engine import NNsightLLMEngine
        from vllm import LLM

        llm = LLM(repo_id, worker_cls=self._WORKER_CLS, **arguments)
        llm.llm_engine.__class__ = NNsightLLMEngine
        return llm


class _UnloadedVLLM(_TracedVLLM):
    """The model's modules alone; a checkpoint's config is enough for them."""

    def _load_meta(self, repo_id: str, **arguments: Any) -> Any:
        tokenizer = SimpleNamespace(pad_token="")
        with mock.patch("vllm.tokenizers.cached_tokenizer_from_config", return_value=tokenizer):
            return super()._load_meta(repo_id, **arguments)


def with_graphs(arguments: Fields) -> Fields | None:
    """vLLM's arguments of a traced engine on CUDA whose decode steps are CUDA graphs; `None` where none are wanted.

    Nearly all steps of a sweep's end decode and nothing else. Launched kernel by kernel, one of Qwen3-8B's shape takes
    the host 20 to 34 ms, by machine, where the GPU needs 10 to 30; as a graph 6. No model is compiled: hooks are the
    modules' Python. `enforce_eager`, or graphs switched off in the `compilation_config`, refuse them. There is a
    graph for each of `GRAPHS`, unless sizes are said, or tokens guessed ahead: then a request has several in a step.
    """
    compilation = arguments.get("compilation_config")
    compilation = dict(compilation) if isinstance(compilation, Mapping) else {}
    if arguments.get("enforce_eager") or compilation.get("cudagraph_mode") in ("NONE", 0):
        return None
    if not (_SIZES & compilation.keys() or arguments.get("speculative_config")):
        compilation["cudagraph_capture_sizes"] = list(GRAPHS)
    asked = {key: value for key, value in arguments.items() if key != "enforce_eager"}
    return {**asked, "compilation_config": {**compilation, "mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}


def layers_of(model: str, arguments: Fields) -> ModelLayers:
    """A checkpoint's layers, by its config alone: no weights are read.

    Args:
        model: A folder with a `config.json`, or a hub name.
        arguments: vLLM's engine arguments.
    """
    return model_layers(_UnloadedVLLM(model, **arguments), has_adapters=bool(arguments.get("enable_lora")))


class TracedModel:
    """An engine whose requests may ask to be probed, or to have heads masked.

    Args:
        model: A folder or a hub name.
        arguments: vLLM's engine arguments; steps that an edit runs in are eager whatever they say (`with_graphs`).

    Raises:
        EngineError: The keys of a request are on several ranks.
    """

    def __init__(self, model: str, arguments: Fields) -> None:
        for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
            if int(arguments.get(name) or 1) > 1:
                raise EngineError(
                    f"model.{name}: {arguments[name]}: each rank has some of the keys alone, so that heads cannot be "
                    "scored; 1 is accepted, and tensor_parallel_size shares out heads"
                )
        graphed = with_graphs(arguments) if current_platform.is_cuda() else None
        eager = {key: value for key, value in arguments.items() if key != "enforce_eager"}
        self.model: VLLM = (
            _TracedVLLM(model, dispatch=True, **eager)
            if graphed is None
            else _GraphedVLLM(model, dispatch=True, **graphed)
        )
        self.engine: LLMEngine = self.model.vllm_entrypoint.llm_engine
        began = time.perf_counter()
        found = model_layers(self.model, has_adapters=bool(arguments.get("enable_lora")))
        self.layers = found.layers
        self.refusal = why_none(found)
        """Why no head can be scored; such an engine answers, and scores and masks nothing."""
        scored, maskable = found.scored, found.maskable
        self.needs_whole_context = any(layer.kind.needs_whole_context for layer in scored)
        """Whether a replay may read nothing from the prefix cache."""
        self.queryless = [layer.number for layer in scored if not layer.kind.has_queries]
        """Numbers of the layers whose heads the mode `uniform` cannot mask."""
        lacking = frozenset.intersection(*(frozenset(layer.lacks) for layer in scored)) if scored else frozenset()
        self.scores = tuple(score.name for score in scores_of([layer.kind for layer in scored], lacking))
        self.maskable = [layer.number for layer in maskable]
        """Numbers of the layers whose heads can be masked; a mask names a layer by its place among them."""
        self.keeps_rows = False
        """Whether a request's rows can be kept, so that heads are scored without a replay (`kept_rows`)."""
        streamable = [layer for layer in scored if layer.kind.group(layer.envoy._module)]
        self.groups = {layer.number: layer.kind.group(layer.envoy._module) for layer in streamable}
        """By number of a layer whose heads can stream, how many of them do so together, in order."""
        with warnings.catch_warnings():
            # nnsight warns that cached tokens never pass the block: the probe checks that none it needs is cached.
            warnings.filterwarnings("ignore", message="This engine was built with prefix caching on")
            if scored:
                writing = [None if "written" in layer.lacks else layer.projection for layer in scored]
                traced = [(layer.envoy, layer.kind, each) for layer, each in zip(scored, writing, strict=True)]
                _install(self.model, traced, lacking)
                self.keeps_rows = self._keep_rows(traced, lacking)
            if maskable:
                _install_mask(self.model, [(layer.envoy, layer.kind, layer.projection) for layer in maskable])
            if streamable:
                _install_stream(self.model, [(layer.envoy, layer.kind) for layer in streamable])
        read = {one.path for layer in scored for one in (layer.envoy, *layer.envoy._children, layer.projection) if one}
        self.engine.collective_rpc("instrument_only", args=(sorted(read),))
        self.install_seconds = time.perf_counter() - began

    def step(self) -> list[RequestOutput]:
        """vLLM's step, without nnsight's collecting of every finished request, edited or not."""
        outputs: list[RequestOutput] = LLMEngine.step(self.engine)
        return outputs

    def _keep_rows(self, layers: list[tuple[Envoy, LayerKind, Envoy | None]], lacking: frozenset[str]) -> bool:
        """Have workers keep rows, where every step runs hooks and ends before the next is scheduled: until then the
        keys of a request that has finished stand.
        """
        config = self.engine.vllm_config
        is_in_order = (
            hasattr(self.engine.engine_core, "engine_core")  # else vLLM's core is a process of its own
            and not config.scheduler_config.async_scheduling
            and config.parallel_config.pipeline_parallel_size == 1
            and config.speculative_config is None
        )
        is_noisy = config.model_config.dtype in KEPT_DTYPES
        if not (current_platform.is_cpu() and is_noisy and is_in_order and all(kind.is_paged for _, kind, _ in layers)):
            return False
        places = [(envoy.path, kind, None if by is None else by.path) for envoy, kind, by in layers]
        return all(self.engine.collective_rpc(keep_rows, args=(places, lacking)))

    def score_kept(self, asked: Mapping[str, tuple[str, Rows]]) -> dict[str, tuple[dict[str, Any], Any]]:
        """Score heads on requests that the last step finished, by the rows that were kept of them.

        Args:
            asked: Of each replay, the name under which its request's rows are kept, and what is read of them.

        Returns:
            As `collect`, by the replays' names; without those whose rows were not kept.
        """
        fields = {replay: (name, rows.to_json()) for replay, (name, rows) in asked.items()}
        return _first(self.engine.collective_rpc(score_kept, args=(fields,)))

    def collect(self, finished: Sequence[str]) -> dict[str, tuple[dict[str, Any], Any]]:
        """What edits saved of requests that have just finished, by request and name, and nnsight's error or `None`.

        Every rank saves the same, so the first one's is taken; an error may be one rank's alone.
        """
        return _first(self.engine.collective_rpc("collect_edits", args=(list(finished),)))


def _first(ranks: Sequence[bytes]) -> dict[str, tuple[dict[str, Any], Any]]:
    """The first rank's of what all saved, with an error that any has."""
    found: dict[str, tuple[dict[str, Any], Any]] = {}
    for rank in ranks:
        for request, (saves, error) in pickle.loads(rank).items():
            first, told = found.get(request, (saves, None))
            found[request] = first, error if told is None else told
    return found


def _install(model: VLLM, layers: list[tuple[Envoy, LayerKind, Envoy | None]], lacking: frozenset[str]) -> None:
    """Install the probe: the block runs once in each step that holds replays (`worker.Conducted`).

    Args:
        model: nnsight's.
        layers: Each layer's attention, its kind, and its output projection where what it writes can be told.
        lacking: What no layer gives of `looks.NEEDS`.
    """
    kinds = [kind for _, kind, _ in layers]
    with model.edit(name=PROBE) as (_, _):
        from retrieval_heads.tracing.probe import Probe

        probe = Probe.of_step(kinds, lacking)
        for layer, (envoy, kind, projection) in enumerate(layers):
            probe.take(layer, envoy._module, kind.read(envoy))
            if probe.wants_outputs and projection is not None:
                probe.take_output(layer, envoy.output, projection._module, partial(_given, projection))
        if layers[-1][2] is None or not probe.wants_outputs:  # a value that was read does not come again
            layers[-1][0].output  # noqa: B018 - waits until the last layer's keys are in the cache as well
        probe.finish()


def _given(projection: Envoy) -> Tensor:
    """Wait inside a traced block for what a projection is given."""
    given: Tensor = projection.input
    return given


def _install_mask(model: VLLM, layers: list[tuple[Envoy, LayerKind, Envoy]]) -> None:
    """Install the mask and the reference.

    Args:
        model: nnsight's.
        layers: Each layer's attention, its kind, and its output projection: that has every rank's heads at its input.
    """
    size = [kind.value_size(envoy._module) for envoy, kind, _ in layers]
    with model.edit(name=ablate.EDIT) as (tracer, _):
        from retrieval_heads.tracing.ablate import Mask

        mask = Mask.of_request()
        for _step in tracer.iter[:]:
            for layer in mask.heads:
                envoy, kind, projection = layers[layer]
                if mask.is_uniform:
                    mask.flatten(layer, kind.queries(envoy))
                else:
                    mask.silence(layer, projection.input, size[layer])
    with model.edit(name=ablate.REFERENCE_EDIT) as (tracer, _):
        from retrieval_heads.tracing.ablate import add_reference

        for _step in tracer.iter[:]:
            for layer, (_, _, projection) in enumerate(layers):
                add_reference(len(layers), layer, projection.input)


def _install_stream(model: VLLM, layers: list[tuple[Envoy, LayerKind]]) -> None:
    """Install the edit of heads that stream: its block runs once in each step that has rows of theirs.

    Args:
        model: nnsight's.
        layers: Each layer's attention and its kind.
    """
    kinds = [kind for _, kind in layers]
    with model.edit(name=STREAM) as (_, _):
        from retrieval_heads.tracing.stream import Streams

        streams = Streams.of_step(kinds)
        for layer in streams.layers:
            envoy, kind = layers[layer]
            streams.take(layer, kind.queries(envoy))
            streams.write(layer, envoy._module, envoy.output)


def _no_weight_processing() -> AbstractContextManager[object]:
    """On CPU an MoE's weights are packed as they are loaded, which nnsight's weightless copy cannot be."""
    if not current_platform.is_cpu():
        return nullcontext()
    return mock.patch("vllm.model_executor.model_loader.base_loader.process_weights_after_loading")
