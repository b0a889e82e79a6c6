"""LOCOS' file of heads (arXiv 2607.01002): `{meta, scores {"layer-head": [...]}, trial_ids, confidence_intervals}`.

Its evaluation (aryopg/locos, `locos_eval/retrieval_heads.py`) reads `scores` alone, takes the mean of each head and
sorts by it without moving what ties. `confidence_intervals` are `{"layer-head": [low, high]}`, as its detectors write.
"""

from __future__ import annotations

import json
import math
from typing import Any

from retrieval_heads.heads.formats.figures import figures_by_head, named_heads, samples_of, table_of
from retrieval_heads.heads.formats.format import HeadFile, HeadFormat, Output, Samples, Source, Wanted
from retrieval_heads.heads.order import order_of
from retrieval_heads.heads.table import Head, HeadTable


class Locos(HeadFormat):
    """Scores of every trial, with what was measured beside them."""

    name = "locos"
    file = "locos.json"
    score: str | None = "write"

    def recognises(self, source: Source) -> bool:
        """`scores` by head's name, and no schema of ours."""
        data = source.json
        return isinstance(data, dict) and "schema" not in data and "scores" in data

    def table(self, source: Source) -> HeadTable:
        """Every head's mean."""
        return table_of(named_heads(source.json["scores"]), str(self.score))

    def samples(self, source: Source, table: HeadTable) -> Samples:
        """Those of the trials."""
        names = source.json.get("trial_ids")
        cells = tuple(map(str, names)) if isinstance(names, list) else ()
        return samples_of(named_heads(source.json["scores"]), str(self.score), table, cells)

    def output(self, heads: HeadFile, wanted: Wanted) -> Output:
        """Every head with a score, best first."""
        table, figures = heads.table, figures_by_head(heads, wanted.score)
        order = order_of(table, wanted.score)
        names = heads.samples.cells if wanted.score in heads.samples.figures else ()
        meta = {"model": table.facts.get("model"), "score": wanted.score, "trials": len(names), **order.to_json()}
        content = {
            "meta": meta,
            "scores": {f"{layer}-{head}": figures[layer, head] for layer, head in order.heads},
            "trial_ids": list(names),
            "confidence_intervals": _intervals(table, wanted.score, order.heads),
        }
        return Output({self.file: (json.dumps(content, ensure_ascii=False) + "\n").encode()}, (order.note,))


FORMAT = Locos()


def _intervals(table: HeadTable, score: str, heads: tuple[Head, ...]) -> dict[str, Any]:
    estimate = table.estimates[score]
    row_of = {layer.number: row for row, layer in enumerate(table.layers)}
    ends = {
        f"{layer}-{head}": [float(each[row_of[layer], head]) for each in (estimate.low, estimate.high)]
        for layer, head in heads
    }
    return {name: pair for name, pair in ends.items() if not any(map(math.isnan, pair))}
