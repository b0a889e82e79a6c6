"""`detected.json` and `detected-agg.json`, as PyPI's `retrieval-heads` writes them: `{module path: {head: ...}}`.

The first holds the list of every head's scores, the second their mean; the score is `copy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from retrieval_heads.heads import copy
from retrieval_heads.heads.detection import Detection
from retrieval_heads.heads.formats.figures import samples_of, table_of
from retrieval_heads.heads.formats.format import HeadFormat, Samples, Source
from retrieval_heads.heads.table import Head, HeadTable
from retrieval_heads.runs.layers import layer_number, written_number

SCORE = copy.SCORE.name


class Detected(HeadFormat):
    """What a run of ours and the predecessor's writes; read only, since each run writes it."""

    name = "detected"
    file = "detected.json"
    score = SCORE

    def recognises(self, source: Source) -> bool:
        """Objects in an object."""
        return source.is_object and all(isinstance(value, Mapping) for value in source.json.values())

    def table(self, source: Source) -> HeadTable:
        """Every head's mean."""
        return table_of(_heads_in(source.json), SCORE)

    def samples(self, source: Source, table: HeadTable) -> Samples:
        """Those of `detected.json`."""
        return samples_of(_heads_in(source.json), SCORE, table)


FORMAT = Detected()


def contents(detection: Detection) -> dict[str, Any]:
    """What the two files hold of a detection, by their names; nothing where their score was not measured."""
    if SCORE not in detection.estimates:
        return {}
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
