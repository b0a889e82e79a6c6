"""A model's config with less of what no head's scores depend on: layers, vocabulary, MLPs, experts.

Heads, KV heads, head sizes, the hidden size, windows, caps and the kinds of layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retrieval_heads.runs.layers import Layer, layer_number

VOCABULARY = 1024
"""Tokens at most."""
MLP_SIZE = 256
"""Features within an MLP or an expert at most."""

_DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers", "n_dense_layers", "moe_layer_start_index")
_MLP = ("intermediate_size_mlp", "ffn_dim", "decoder_ffn_dim", "n_inner", "ffn_hidden_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "top_k")
_QUANTIZATION = ("quantization_config", "compression_config")


def layers_kept(config: Mapping[str, Any], layers: Iterable[Layer]) -> int:
    """How many of a model's first layers hold one of each kind, head count and window; two at least.

    Args:
        config: That of its language model.
        layers: All its layers.
    """
    first: dict[object, int] = {}
    for layer in layers:
        sort, number = (layer.kind, layer.heads, layer.sliding_window), layer_number(layer.path)
        first[sort] = min(number, first.get(sort, number))
    depth = depth_of(config)
    for key, values in config.items():
        if isinstance(values, list) and len(values) == depth and all(isinstance(each, str) for each in values):
            first |= {(key, each): values.index(each) for each in values}
    kept = max(2, 1 + max(first.values(), default=0))
    # Layers that share the keys of earlier ones come last, and need one of each kind before them.
    return min(depth, 2 * kept if config.get("num_kv_shared_layers") else kept)


def depth_of(config: Mapping[str, Any]) -> int:
    """The layers that a language model's config says.

    Raises:
        KeyError: It says none by a name that is known.
    """
    for name in _DEPTH:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise KeyError("num_hidden_layers")


def shrunk(config: Mapping[str, Any], path: Sequence[str], kept: int) -> dict[str, Any]:
    """A whole config whose language model has fewer layers, and less of all else that is not a head's.

    Args:
        config: The whole.
        path: Keys that lead to its language model's; none where that is the whole.
        kept: Layers, of the first.
    """
    small = {key: value for key, value in config.items() if key not in _QUANTIZATION}
    if path:
        small[path[0]] = shrunk(small[path[0]], path[1:], kept)
        return _small_vocabulary(small)
    depth = depth_of(small)
    for key, value in small.items():
        small[key] = _shallow(key, value, depth, kept)
        if key in _MLP or (key.endswith("intermediate_size") and not key.startswith("mamba")):
            small[key] = _at_most(small[key], MLP_SIZE)
    if small.get("num_kv_shared_layers"):
        small["num_kv_shared_layers"] = kept // 2
    chosen = max((small[key] for key in _CHOSEN if isinstance(small.get(key), int)), default=1)
    for key in _EXPERTS:
        if isinstance(small.get(key), int):
            small[key] = min(small[key], _experts(chosen, small.get("n_group") or 1))
    return _small_vocabulary(small)


def _shallow(key: str, value: Any, depth: int, kept: int) -> Any:
    """A value that counts or lists layers, for those that are kept."""
    if key in _DEPTH and value == depth:
        return kept
    if key in _DENSE_FIRST and isinstance(value, int):
        return min(value, kept - 1)
    if isinstance(value, str) and "pattern" in key and len(value) == depth:
        return value[:kept]
    if isinstance(value, list) and len(value) == depth:
        return value[:kept]
    if isinstance(value, list) and key.endswith(("_indices", "_idxs", "_layer_ids")):
        return [each for each in value if each < kept]
    return value


def _at_most(value: Any, most: int) -> Any:
    if isinstance(value, list):
        return [_at_most(each, most) for each in value]
    return min(value, most) if isinstance(value, int) else value


def _experts(chosen: int, groups: int) -> int:
    """The fewest that a router can choose from: at least two a group, and twice as many as it chooses."""
    return groups * max(2, -(-2 * chosen // groups))


def _small_vocabulary(config: dict[str, Any]) -> dict[str, Any]:
    """With fewer tokens, the special ones among them, each another."""
    places: dict[int, int] = {}

    def within(value: Any) -> Any:
        if isinstance(value, list):
            return [within(each) for each in value]
        if not isinstance(value, int) or value < VOCABULARY:
            return value
        return places.setdefault(value, VOCABULARY - 1 - len(places))

    small = dict(config)
    for key, value in config.items():
        if key.startswith("vocab_size") or key.endswith("vocab_size"):
            small[key] = _at_most(value, VOCABULARY)
        elif key.endswith(("token_id", "token_ids", "token_index")):
            small[key] = within(value)
    return small
