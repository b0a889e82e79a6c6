"""`head_score.json`, as the code of arXiv 2404.15574 writes it: `{"layer-head": [scores]}`.

A figure a sample; in a run's own file the score is `copy_reference`. Its readers take the mean of each head and sort
by it without moving what ties, so that an export's order of heads decides between them.
"""

from __future__ import annotations

import json
from typing import Any

from retrieval_heads.heads import copy_reference
from retrieval_heads.heads.detection import Detection
from retrieval_heads.heads.formats.figures import figures_by_head, named_heads, samples_of, table_of
from retrieval_heads.heads.formats.format import HeadFile, HeadFormat, Output, Samples, Source, Wanted
from retrieval_heads.heads.order import order_of
from retrieval_heads.heads.table import HeadTable

SCORE = copy_reference.SCORE.name


class HeadScoreJson(HeadFormat):
    """What the code of arXiv 2404.15574 writes, and reads to mask heads."""

    name = "retrieval-head"
    file = "head_score.json"
    score: str | None = SCORE

    def recognises(self, source: Source) -> bool:
        """Any object: what is none of this form is told when it is read."""
        return source.is_object

    def table(self, source: Source) -> HeadTable:
        """Every head's mean."""
        return table_of(named_heads(source.json), str(self.score))

    def samples(self, source: Source, table: HeadTable) -> Samples:
        """Each head's list."""
        return samples_of(named_heads(source.json), str(self.score), table)

    def output(self, heads: HeadFile, wanted: Wanted) -> Output:
        """One line, best head first; heads without a score are left out."""
        figures, order = figures_by_head(heads, wanted.score), order_of(heads.table, wanted.score)
        content = {f"{layer}-{head}": figures[layer, head] for layer, head in order.heads}
        return Output({self.file: (json.dumps(content) + "\n").encode()}, (order.note,))


FORMAT = HeadScoreJson()


def contents(detection: Detection) -> dict[str, Any]:
    """What the file holds of a detection, by its name; nothing where its score was not measured."""
    if SCORE not in detection.estimates:
        return {}
    return {
        "head_score": {
            f"{layer.number}-{head}": [record.heads[SCORE][row][head] for record in detection.counted if record.heads]
            for row, layer in enumerate(detection.layers)
            for head in range(layer.heads)
        }
    }
