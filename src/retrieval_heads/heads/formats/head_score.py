"""`head_score.json`, as the code of arXiv 2404.15574 writes it: `{"layer-head": [scores]}`.

The score is `copy_reference`, a figure a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from retrieval_heads.heads import copy_reference
from retrieval_heads.heads.detection import Detection
from retrieval_heads.heads.formats.figures import checked_means, table_of
from retrieval_heads.heads.table import Head, HeadTable, Ranked
from retrieval_heads.runs.layers import written_number

SCORE = copy_reference.SCORE.name


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
    """What the file holds of a detection, by its name."""
    return {
        "head_score": {
            f"{layer.number}-{head}": [record.heads[SCORE][row][head] for record in detection.counted if record.heads]
            for row, layer in enumerate(detection.layers)
            for head in range(layer.heads)
        }
    }


def _heads_in(data: Mapping[str, Any]) -> Iterator[tuple[Head, Any]]:
    for name, figures in data.items():
        layer, head = name.split("-")
        yield (written_number(layer), written_number(head)), figures
