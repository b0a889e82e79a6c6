"""A detection's heads as the page shows them: query heads, KV heads, and how far scores agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Final

from retrieval_heads.heads.agreement import overlaps, spearmans
from retrieval_heads.heads.groups import WITH_KV_HEADS, by_kv_head
from retrieval_heads.heads.table import HeadTable
from retrieval_heads.heads.top_heads import SAME

TOP: Final = 10
"""The best heads whose overlap is told."""


def views(table: HeadTable) -> Iterator[tuple[str, int, HeadTable]]:
    """Every way to look at a table: its label, query heads in a group, and the table of groups.

    Query heads first; then KV heads, each with the greatest of its query heads. A table that does not say how many
    query heads share a KV head is shown for each number that divides them.
    """
    yield "query heads", 1, table
    for heads, kv_heads in _groupings(table):
        group = heads // kv_heads
        yield f"KV heads, greatest of {group} query heads", group, by_kv_head(table, kv_heads)


def _groupings(table: HeadTable) -> Iterator[tuple[int, int]]:
    """Query heads and KV heads of a layer, in each way that may be; none where layers differ."""
    shapes = {(layer.heads, layer.kv_heads) for layer in table.layers if layer.heads and layer.kind == WITH_KV_HEADS}
    if len(shapes) != 1:
        return
    ((heads, known),) = shapes
    for kv_heads in range(heads - 1, 0, -1):
        if kv_heads == known or (known is None and heads % kv_heads == 0):
            yield heads, kv_heads


def agreements(table: HeadTable) -> list[tuple[str, str, float | None, float | None, int]]:
    """How far each two scores agree: both names, the overlap of their best heads, the rank correlation over heads above
    0 by both, and how many those are (`retrieval_heads.heads.agreement`).
    """
    import numpy as np

    found = []
    for one, other in combinations(table.estimates, 2):
        first, second = (table.estimates[name].mean.ravel() for name in (one, other))
        both = ~np.isnan(first) & ~np.isnan(second)
        if not both.any():
            continue
        first, second = first[both][None], second[both][None]
        ranked = (first[0] > SAME) & (second[0] > SAME)
        shared, rank = overlaps(first, second, TOP)[0], spearmans(first[:, ranked], second[:, ranked])[0]
        found.append((one, other, _known(shared), _known(rank), int(ranked.sum())))
    return found


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 3)
