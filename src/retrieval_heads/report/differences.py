"""Small multiples: how every setting of a matrix changes the pass rate, place by place, on one scale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from retrieval_heads.matrix.comparison import Comparison, Pair
from retrieval_heads.runs.place import DEPTH, LENGTH, Value, in_order, shown

STEPS: Final = 5
"""Shades on either side of none."""
MOST_PLACES: Final = 300
"""Of a map; a greater one is no small one, and a page of many is slow."""

_AXES: Final = (LENGTH, DEPTH)


def small_maps(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """A map of each setting, over the lengths and depths of all; none for suites without these axes, or with many.

    Returns:
        `setting`, `columns` (lengths) and `rows`: a depth, and of each length `text`, `shade` (from −5 to 5, `None`
        where nothing was asked under both) and `cells`.
    """
    pairs = [pair for one in comparisons for pair in one.pairs]
    lengths, depths = (in_order({value for pair in pairs if (value := _at(pair, axis)) is not None}) for axis in _AXES)
    if not 0 < len(lengths) * len(depths) <= MOST_PLACES:
        return []
    return [_small_map(one, lengths, depths) for one in comparisons]


def _at(pair: Pair, axis: str) -> Value | None:
    return pair.reference.place.get(axis)


def _small_map(one: Comparison, lengths: Sequence[Value], depths: Sequence[Value]) -> dict[str, Any]:
    groups: defaultdict[tuple[Value | None, Value | None], list[int]] = defaultdict(list)
    for pair in one.pairs:
        groups[_at(pair, LENGTH), _at(pair, DEPTH)].append(bool(pair.setting.passed) - bool(pair.reference.passed))
    return {
        "setting": one.setting,
        "columns": [shown(length) for length in lengths],
        "rows": [
            {"depth": shown(depth), "cells": [_cell(groups.get((length, depth), [])) for length in lengths]}
            for depth in depths
        ],
    }


def _cell(changes: Sequence[int]) -> dict[str, Any]:
    if not changes:
        return {"text": "", "shade": None, "count": 0}
    mean = sum(changes) / len(changes)
    # What changed at all has a shade: 0 is for what did not.
    shade = max(1, round(abs(mean) * STEPS)) if mean else 0
    text = f"{mean:+.2f}".replace("-", "−") if mean else "0"
    return {"text": text, "shade": shade if mean >= 0 else -shade, "count": len(changes)}
