"""`detected.json` and `detected-agg.json`, as PyPI's `retrieval-heads` writes them: `{module path: {head: ...}}`.

The first holds the list of every head's scores, the second their mean; the score is `copy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from retrieval_heads.heads import copy
from retrieval_heads.heads.detection import Detection
from retrieval_heads.heads.formats.figures import checked_means, table_of
from retrieval_heads.heads.table import Head, HeadTable, Ranked
from retrieval_heads.runs.layers import layer_number, written_number

SCORE = copy.SCORE.name


def is_form_of(data: Mapping[str, Any]) -> bool:
    """Whether a file's object is of this form."""
    return all(isinstance(value, Mapping) for value in data.values())


def means_in(data: Mapping[str, Any]) -> Iterator[Ranked]:
    """Every head's mean.

    Raises:
        ValueError: A figure cannot be a head's.
    """
    return checked_means(_heads_in(data), SCORE)


def table_in(data: Mapping[str, Any]) -> HeadTable:
    """The same as a table.

    Raises:
        ValueError: A figure cannot be a head's.
    """
    return table_of(means_in(data), SCORE)


def contents(detection: Detection) -> dict[str, Any]:
    """What the two files hold of a detection, by their names."""
    detected = {
        layer.path: {
            str(head): [record.heads[SCORE][row][head] for record in detection.counted if record.heads]
            for head in range(layer.heads)
        }
        for row, layer in enumerate(detection.layers)
        if layer.heads
    }
    means = {
        path: {head: math.fsum(all_) / len(all_) for head, all_ in heads.items()} for path, heads in detected.items()
    }
    return {"detected": detected, "detected-agg": means}


def _heads_in(data: Mapping[str, Any]) -> Iterator[tuple[Head, Any]]:
    for path, heads in data.items():
        number = layer_number(path)
        yield from (((number, written_number(head)), figures) for head, figures in heads.items())
