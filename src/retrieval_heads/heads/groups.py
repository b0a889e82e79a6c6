"""Scores of KV heads: the greatest score of the query heads that share one (GQA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.table import Estimate, HeadTable
from retrieval_heads.runs.layers import MOST

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

WITH_KV_HEADS = "attention"
"""The kind of layer whose query heads share keys in groups: latent attention has one key for all, a recurrence none."""


def group_maximum(values: NDArray[float64], group: int) -> NDArray[float64]:
    """The greatest of each group of neighbouring heads, `[..., heads / group]` of `[..., heads]`.

    A head without a score (NaN) counts for nothing; a group of such heads has none.
    """
    import numpy as np

    *before, heads = values.shape
    grouped = values.reshape(*before, heads // group, group)
    greatest: NDArray[float64] = np.fmax.reduce(grouped, axis=-1)
    return greatest


def group_size(table: HeadTable, kv_heads: int) -> int:
    """How many query heads share a KV head.

    Args:
        table: Scores of query heads.
        kv_heads: KV heads of a layer.

    Raises:
        ConfigError: The query heads cannot be shared evenly, or differ from layer to layer.
    """
    sizes = {layer.heads for layer in table.layers if layer.heads and layer.kind == WITH_KV_HEADS}
    if not sizes:
        kinds = ", ".join(sorted({layer.kind for layer in table.layers}))
        raise ConfigError(f"KV heads: no scored layer has any; the layers are {kinds}")
    if len(sizes) > 1:
        listed = " and ".join(map(str, sorted(sizes)))
        raise ConfigError(f"KV heads: layers of {listed} query heads; layers of one number of heads are expected")
    heads = sizes.pop()
    if not 1 <= kv_heads <= heads or heads % kv_heads:
        raise ConfigError(
            f"--kv-heads {kv_heads}: a number that divides the {heads} query heads of a layer is expected"
        )
    return heads // kv_heads


def by_kv_head(table: HeadTable, kv_heads: int) -> HeadTable:
    """The same scores by KV head.

    Layers whose heads have no keys of their own become layers without heads. Intervals are left out: those of heads
    are none of a greatest head's.

    Raises:
        ConfigError: See `group_size`.
    """
    import numpy as np

    group = group_size(table, kv_heads)
    rows = np.array([bool(layer.heads) and layer.kind == WITH_KV_HEADS for layer in table.layers])
    estimates = {}
    for name, estimate in table.estimates.items():
        mean = np.full((len(rows), kv_heads), np.nan)
        mean[rows] = group_maximum(estimate.mean[rows, : kv_heads * group], group)
        unknown = np.full_like(mean, np.nan)
        estimates[name] = Estimate(mean, unknown, unknown)
    layers = tuple(
        replace(layer, heads=kv_heads if is_grouped else 0, kv_heads=kv_heads if is_grouped else None)
        for layer, is_grouped in zip(table.layers, rows, strict=True)
    )
    return replace(table, layers=layers, estimates=estimates)


def by_query_head(table: HeadTable, query_heads: int) -> HeadTable:
    """Scores of KV heads, each given to all query heads that share it.

    Raises:
        ConfigError: They cannot be shared evenly.
    """
    import numpy as np

    kv_heads = max(layer.heads for layer in table.layers)
    if not kv_heads <= query_heads <= MOST or query_heads % kv_heads:
        raise ConfigError(f"--query-heads {query_heads}: a multiple of the {kv_heads} KV heads of a layer is expected")

    def spread(values: NDArray[float64]) -> NDArray[float64]:
        return np.repeat(values, query_heads // kv_heads, axis=1)

    estimates: Mapping[str, Estimate] = {
        name: Estimate(spread(each.mean), spread(each.low), spread(each.high)) for name, each in table.estimates.items()
    }
    layers = tuple(
        replace(layer, heads=query_heads if layer.heads else 0, lacks={}, kv_heads=kv_heads if layer.heads else None)
        for layer in table.layers
    )
    return replace(table, layers=layers, estimates=estimates)
