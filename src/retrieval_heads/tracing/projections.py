"""What vLLM's model does with a head's output: its projection W_O to the hidden state, and the unembedding of a token.

Checked on vLLM 0.26.0 and 0.32.0.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module

AT_ONCE = 1024
"""Columns of a quantised projection that are made floats at a time."""

UNQUANTISED = "UnquantizedLinearMethod"

QUANTISED = frozenset(
    (
        "AWQLinearMethod",
        "AWQMarlinLinearMethod",
        "AutoAWQLinearMethod",
        "AutoAWQMarlinLinearMethod",
        "AutoGPTQLinearMethod",
        "BitsAndBytesLinearMethod",
        "FBGEMMFp8LinearMethod",
        "Fp8LinearMethod",
        "GPTQLinearMethod",
        "GPTQMarlinLinearMethod",
    )
)
"""Ways of quantising that give back a column of W_O for a one among zeros: they quantise weights alone, or inputs as
well by one scale a token or layer.
"""

SCHEMES = frozenset(
    ("CompressedTensorsWNA16", "CompressedTensorsW8A16Fp8", "CompressedTensorsW8A8Fp8", "CompressedTensorsW8A8Int8")
)
"""The same among the schemes of `CompressedTensorsLinearMethod`."""

_unpacked: WeakKeyDictionary[Module, Tensor] = WeakKeyDictionary()
_found: WeakKeyDictionary[Module, list[Module]] = WeakKeyDictionary()


def why_no_projection(projection: Module | None) -> str | None:
    """Why W_O of a layer cannot be read; `None` where it can."""
    if projection is None:
        return "its output projection is not one module alone"
    method = type(projection.quant_method).__name__
    if method == "CompressedTensorsLinearMethod":
        method = type(projection.scheme).__name__
    if method != UNQUANTISED and method not in QUANTISED | SCHEMES:
        return f"its output projection is quantised by {method}"
    if getattr(projection, "input_zero_point", None) is not None:
        return f"its output projection is quantised by {method} with a zero point of its inputs"
    return None


def why_no_unembedding(model: Module) -> str | None:
    """Why a token's row of the unembedding cannot be read; `None` where it can."""
    found = _unembeddings(model)
    if len(found) != 1:
        return f"the unembedding is not one module that is known ({len(found)} are)"
    method = type(found[0].quant_method).__name__
    return None if method == "UnquantizedEmbeddingMethod" else f"the unembedding is quantised by {method}"


def unembedding_rows(model: Module, tokens: Tensor) -> Tensor:
    """Rows u_y of tokens, `[tokens, hidden]`, as the checkpoint has them: no norm, scale or cap is in them.

    Args:
        model: vLLM's.
        tokens: Their ids; the same on every rank, each of which has some of the rows.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    (unembedding,) = _unembeddings(model)
    rows: Tensor = VocabParallelEmbedding.forward(unembedding, tokens)
    return rows


def unembedding_size(model: Module) -> int:
    """Features of a row."""
    return int(_unembeddings(model)[0].embedding_dim)


def _unembeddings(model: Module) -> list[Module]:
    """The modules that logits may be made with: heads of their own; else what is called so; else the embedding."""
    if model not in _found:
        _found[model] = _find_unembeddings(model)
    return _found[model]


def _find_unembeddings(model: Module) -> list[Module]:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    modules = list(model.modules())
    heads = [module for module in modules if isinstance(module, ParallelLMHead)]
    named = [getattr(module, "lm_head", None) for module in modules]
    tied = [module for module in named if isinstance(module, VocabParallelEmbedding)]
    inputs = [getattr(module, "embed_tokens", None) for module in modules]
    embeddings = [module for module in inputs if isinstance(module, VocabParallelEmbedding)]
    others = [module for module in modules if type(module) is VocabParallelEmbedding]
    return list(dict.fromkeys(heads or tied or embeddings or others))


def projection_weight(projection: Module) -> Tensor | None:
    """W_O of this rank's heads, `[hidden, heads × value size]`; `None` where it is quantised.

    On CPU vLLM packs the weight and throws the plain one away; it is unpacked once and kept, in the model's dtype.
    """
    if type(projection.quant_method).__name__ != UNQUANTISED:
        return None
    weight: Tensor = projection.weight
    if weight.numel():
        return weight
    if projection not in _unpacked:
        _unpacked[projection] = _columns(projection, 0, projection.input_size_per_partition).T.contiguous()
    return _unpacked[projection]


def pulls(projection: Module, unembedding: Tensor) -> Tensor:
    """W_Oᵀ u_y through a quantised projection, float32 `[rows, heads × value size]`.

    Its own kernel gives back some columns of W_O at a time, so that no copy of all of it stands in memory.

    Args:
        projection: The module.
        unembedding: u_y of each row, `[rows, hidden]`.
    """
    size, rows = projection.input_size_per_partition, unembedding.float()
    steps = range(0, size, AT_ONCE)
    return torch.cat([rows @ _columns(projection, at, min(size, at + AT_ONCE)).float().T for at in steps], dim=1)


def _columns(projection: Module, start: int, end: int) -> Tensor:
    """Columns of W_O, `[end - start, hidden]`: what the module makes of a one among zeros each.

    Where inputs are quantised by a scale that was fixed beforehand, the one is 64 times that: float8 and int8 hold 64.
    """
    scale = getattr(projection, "input_scale", None)
    one = 64 * scale.float().reshape(-1)[:1] if isinstance(scale, Tensor) and scale.numel() == 1 else 1.0
    device = next((each.device for each in (*projection.parameters(), *projection.buffers())), None)
    inputs = torch.zeros(end - start, projection.input_size_per_partition, dtype=projection.params_dtype, device=device)
    inputs.diagonal(start).fill_(1.0)
    inputs *= one
    found: Tensor = projection.quant_method.apply(projection, inputs, bias=None)
    return found / one
