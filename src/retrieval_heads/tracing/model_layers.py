"""Which layers a model has, once its modules are there, and what each is numbered, scored and masked by.

Checked on nnsight 0.8.1 with vLLM 0.26.0 and 0.32.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nnsight.intervention.envoy import Envoy
from nnsight.modeling.vllm import VLLM

from retrieval_heads.runs.layers import Layer, layer_number
from retrieval_heads.tracing.layer_kinds import REGISTRY, LayerKind, kind_of, why_unscored
from retrieval_heads.tracing.projections import why_no_projection, why_no_unembedding


@dataclass(frozen=True)
class ScoredLayer:
    """A layer whose heads can be scored.

    Args:
        envoy: Its attention.
        kind: How it is scored.
        number: Its number in the model.
        projection: The module that takes its heads to the hidden state and has every rank's heads at its input; `None`
            where its heads cannot be masked.
        lacks: What of `looks.NEEDS` it does not give, and why.
    """

    envoy: Envoy
    kind: LayerKind
    number: int
    projection: Envoy | None
    lacks: Mapping[str, str]


@dataclass(frozen=True)
class ModelLayers:
    """The layers of a model, in its order.

    Args:
        scored: Those whose heads can be scored.
        layers: All that mix tokens.
        weight_bytes: What the weights of the whole model take, unquantized ones of one rank.
    """

    scored: Sequence[ScoredLayer]
    layers: Sequence[Layer]
    weight_bytes: int = 0

    @property
    def maskable(self) -> list[ScoredLayer]:
        """Those whose heads can be masked."""
        return [layer for layer in self.scored if layer.projection is not None]


def model_layers(model: VLLM, *, has_adapters: bool = False) -> ModelLayers:
    """Find them. A layer's number is the first in its path; where several layers have that, its place in the model.

    Args:
        model: nnsight's.
        has_adapters: Whether requests may have LoRA adapters, which change what projections write.
    """
    scored, layers = [], []
    unwritten = "its output projection has LoRA adapters" if has_adapters else why_no_unembedding(model._module)
    for envoy in model.modules():
        if kind := kind_of(envoy._module):
            projection = _projection(model, envoy, kind)
            lacks = _lacks(kind, projection, unwritten)
            scored.append(ScoredLayer(envoy, kind, layer_number(envoy.path), projection, lacks))
        elif reason := why_unscored(envoy._module):
            layers.append(Layer(envoy.path, layer_number(envoy.path), 0, None, reason))
    users = Counter(_shared(layer) for layer in scored if layer.projection is not None)
    for layer in scored:
        module, count = layer.envoy._module, users[_shared(layer)]
        if count > 1:
            layers.append(Layer(layer.envoy.path, layer.number, 0, None, _why_shared(count)))
        else:  # modules are built for one rank whatever the engine's parallelism, so the head counts are the model's
            kind, number = layer.kind, layer.number
            heads, window = kind.heads(module), kind.window(module)
            kv_heads = kind.kv_heads(module)
            layers.append(Layer(layer.envoy.path, number, heads, window, kind.name, layer.lacks, kv_heads))
    layers.sort(key=lambda layer: layer.number)
    has_heads = {layer.path: layer.number for layer in layers if layer.heads}
    if len(set(has_heads.values())) < len(has_heads):
        layers = [replace(layer, number=place) for place, layer in enumerate(layers)]
        has_heads = {layer.path: layer.number for layer in layers if layer.heads}
    kept = [replace(one, number=has_heads[one.envoy.path]) for one in scored if one.envoy.path in has_heads]
    weight_bytes = sum(each.numel() * each.element_size() for each in model._module.parameters())
    return ModelLayers(sorted(kept, key=lambda layer: layer.number), layers, weight_bytes)


def why_none(found: ModelLayers) -> str | None:
    """Why no head of a model can be scored, in one sentence; `None` where some can."""
    if found.scored:
        return None
    kinds = "; ".join(sorted({layer.kind for layer in found.layers})) or "of no class that is known"
    scored = ", ".join(REGISTRY)
    return f"no head of this model can be scored: its layers are {kinds}; scored are decoder layers of vLLM's {scored}"


def _lacks(kind: LayerKind, projection: Envoy | None, unwritten: str | None) -> dict[str, str]:
    """What a layer does not give, by its kind or by what stands behind it."""
    found = dict(kind.lacks)
    reason = unwritten or why_no_projection(projection and projection._module)
    if reason and "written" not in found:
        found["written"] = reason
    return found


def _shared(layer: ScoredLayer) -> int:
    return id(layer.projection and layer.projection._module)


def _why_shared(count: int) -> str:
    """Weights that run at several places of the model (Zamba2, IQuestLoopCoder): in which order, and whether one
    attention runs twice, no module tells, and a head there would be masked at all of them.
    """
    return f"Attention that shares its output projection with {count - 1} more (a shared or looped layer)"


def _projection(model: VLLM, envoy: Envoy, kind: LayerKind) -> Envoy | None:
    """The module that maps a layer's heads to the hidden state: a row-parallel projection of as many features as the
    heads have together, in the smallest module round the attention that holds one; `None` where it is not one alone.
    """
    from vllm.model_executor.layers.linear import RowParallelLinear

    features = kind.heads(envoy._module) * kind.value_size(envoy._module)
    path = f"{envoy.path}."
    while path := path.rpartition(".")[0]:
        found = [
            other
            for other in model.modules()
            if other.path.startswith(f"{path}.")
            and isinstance(other._module, RowParallelLinear)
            and other._module.input_size == features
        ]
        if found:
            return found[0] if len(found) == 1 else None
    return None
