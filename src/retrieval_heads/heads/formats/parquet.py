"""A parquet file: a row for each head and score, with mean, interval and each counted sample's figure.

Columns `layer`, `head`, `score`, `mean`, `low`, `high`, `samples`; null where there is no figure. The rest stands in
the schema's metadata.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.formats.figures import Nonsense
from retrieval_heads.heads.formats.format import HeadFile, HeadFormat, Output, Samples, Source, Wanted
from retrieval_heads.heads.formats.heads import read_layers
from retrieval_heads.heads.formats.whole import (
    KEY,
    PARTS,
    described,
    description,
    samples_of_description,
    table_of_description,
)
from retrieval_heads.heads.table import Estimate, HeadTable
from retrieval_heads.runs.layers import Layer


class Parquet(HeadFormat):
    """Every score in one table."""

    name = "parquet"
    file = "heads.parquet"
    score = None
    binary = True

    def table(self, source: Source) -> HeadTable:
        """All but the samples."""
        import numpy as np

        content, rows = _read(source)
        layers = read_layers(content["layers"])
        row_of, most = {layer.number: row for row, layer in enumerate(layers)}, max(layer.heads for layer in layers)
        _check_rows(rows, layers, content["scores"])
        parts = {name: np.full((len(PARTS), len(layers), most), np.nan) for name in content["scores"]}
        for row in rows:
            for part, key in enumerate(PARTS):
                if row[key] is not None:
                    parts[row["score"]][part, row_of[row["layer"]], row["head"]] = row[key]
        return table_of_description(content, {name: Estimate(*values) for name, values in parts.items()})

    def samples(self, source: Source, table: HeadTable) -> Samples:
        """Where the file has them."""
        import numpy as np

        content, rows = _read(source)
        row_of = {layer.number: row for row, layer in enumerate(table.layers)}
        figures: dict[str, Any] = {}
        for row in rows:
            if row["samples"] is not None:
                shape = (len(row["samples"]), *table.estimates[row["score"]].mean.shape)
                values = figures.setdefault(row["score"], np.full(shape, np.nan))
                values[:, row_of[row["layer"]], row["head"]] = [np.nan if v is None else v for v in row["samples"]]
        return samples_of_description(content, figures, table)

    def output(self, heads: HeadFile, wanted: Wanted) -> Output:
        """The scores that are named."""
        arrow, parquet = _library()
        columns = {key: arrow.array(values, kind) for key, (values, kind) in _columns(heads, wanted, arrow).items()}
        table = arrow.table(columns).replace_schema_metadata({KEY: described(heads, wanted)})
        buffer = io.BytesIO()
        parquet.write_table(table, buffer, compression="zstd")
        return Output({self.file: buffer.getvalue()})


FORMAT = Parquet()


def _columns(heads: HeadFile, wanted: Wanted, arrow: Any) -> dict[str, tuple[list[Any], Any]]:
    table, samples = heads.table, heads.samples.figures
    places = [
        (name, row, layer.number, head)
        for name in wanted.scores
        for row, layer in enumerate(table.layers)
        for head in range(layer.heads)
    ]

    def figure(name: str, part: str, row: int, head: int) -> float | None:
        value = float(getattr(table.estimates[name], part)[row, head])
        return None if math.isnan(value) else value

    numbers, texts, figures = arrow.int32(), arrow.string(), arrow.float64()
    return {
        "layer": ([number for _, _, number, _ in places], numbers),
        "head": ([head for *_, head in places], numbers),
        "score": ([name for name, *_ in places], texts),
        **{part: ([figure(name, part, row, head) for name, row, _, head in places], figures) for part in PARTS},
        "samples": (
            [samples[name][:, row, head].tolist() if name in samples else None for name, row, _, head in places],
            arrow.list_(figures),
        ),
    }


def _check_rows(rows: Sequence[Mapping[str, Any]], layers: Sequence[Layer], scores: Sequence[str]) -> None:
    """See that there is one row for each head and score."""
    expected = {(name, layer.number, head) for name in scores for layer in layers for head in range(layer.heads)}
    found: set[tuple[str, int, int]] = set()
    for row in rows:
        place = row["score"], row["layer"], row["head"]
        if place not in expected or place in found:
            what = "has two rows" if place in found else "is none that its metadata names"
            raise Nonsense(f"{place[0]} of head {place[1]}-{place[2]} {what}")
        found.add(place)
    if missing := sorted(expected - found):
        name, layer, head = missing[0]
        raise Nonsense(f"{name} of head {layer}-{head} has no row; a mean of null is a head without a score")


def _read(source: Source) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    arrow, parquet = _library()
    try:
        table = parquet.read_table(io.BytesIO(source.content))
    except (arrow.ArrowException, OSError) as error:
        raise Nonsense(f"is no parquet file ({error})") from None
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return description(metadata.get(KEY)), table.to_pylist()


def _library() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError("pyarrow is not installed; pip install 'pytest-retrieval-heads[files]'") from None
    return pyarrow, parquet
