"""What formats that keep everything say beside their figures: layers, facts of the run, cells, where ties begin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from retrieval_heads.heads.formats.figures import Nonsense, check_counts, named_score
from retrieval_heads.heads.formats.format import HeadFile, Samples, Wanted
from retrieval_heads.heads.formats.heads import SCHEMA, read_clusters, read_layers
from retrieval_heads.heads.order import order_of
from retrieval_heads.heads.table import Estimate, HeadTable
from retrieval_heads.reading import parse_json
from retrieval_heads.runs.layers import Layer, layer_fields

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS: Final = ("mean", "low", "high")
"""Of an estimate, as files call them."""
KEY = "retrieval_heads"
"""What it stands under in a file's metadata."""


def described(heads: HeadFile, wanted: Wanted) -> str:
    """All but the figures, as JSON."""
    table = heads.table
    content = {
        "schema": SCHEMA,
        "suite": table.suite,
        "layers": [layer_fields(layer) for layer in table.layers],
        "scores": list(wanted.scores),
        "counted": table.counted,
        "measured": table.measured,
        "stability_top_10": table.stability,
        "facts": dict(table.facts),
        "cells": list(heads.samples.cells),
        **({"clusters": [list(each) for each in heads.samples.clusters]} if heads.samples.clusters else {}),
        "ties": {name: order_of(table, name).to_json() for name in wanted.scores},
    }
    return json.dumps(content, ensure_ascii=False)


def description(text: str | None) -> dict[str, Any]:
    """What `described` wrote.

    Raises:
        ValueError: There is none, or of another version.
    """
    content = parse_json(text or "null", "its metadata")
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise Nonsense(f"holds no metadata {KEY!r} of schema {SCHEMA}")
    return content


def table_of_description(content: dict[str, Any], estimates: dict[str, Estimate]) -> HeadTable:
    """The table of figures that were read beside it.

    Raises:
        ValueError: They are not of these layers, or a figure cannot be a head's.
    """
    layers = read_layers(content["layers"])
    check_counts(content)
    for name, estimate in estimates.items():
        for part in PARTS:
            _check_figures(f"{name}.{part}", name, getattr(estimate, part), layers)
    return HeadTable(
        str(content["suite"]),
        layers,
        estimates,
        content["counted"],
        content["measured"],
        content["stability_top_10"],
        dict(content["facts"]),
    )


def samples_of_description(content: dict[str, Any], figures: dict[str, NDArray[Any]], table: HeadTable) -> Samples:
    """Each sample's figures, which were read beside it.

    Raises:
        ValueError: They are not of these layers and cells, or one is not there or cannot be a head's.
    """
    import numpy as np

    cells = tuple(map(str, content["cells"]))
    for name, values in figures.items():
        if values.ndim != 3 or len(values) != len(cells or values):
            raise Nonsense(f"{name}.samples: figures of {len(cells)} cells are expected, found shape {values.shape}")
        for number, each in enumerate(values):
            _check_figures(f"{name} of sample {number}", name, each, table.layers)
        if (np.isnan(values) & ~np.isnan(table.estimates[name].mean)).any():
            raise Nonsense(f"{name}.samples: a head that has a mean lacks a sample's figure")
    if len({len(values) for values in figures.values()}) > 1:
        raise Nonsense("scores have different numbers of samples")
    clusters = read_clusters([{"cell": cell, "cluster": each} for cell, each in _paired(content, cells)])
    return Samples(figures, cells, clusters)


def _paired(content: dict[str, Any], cells: tuple[str, ...]) -> list[tuple[str, Any]]:
    clusters = content.get("clusters") or []
    if clusters and len(clusters) != len(cells):
        raise Nonsense(f"clusters: those of {len(cells)} cells are expected, found {len(clusters)}")
    return list(zip(cells, clusters, strict=True)) if clusters else []


def _check_figures(where: str, name: str, values: NDArray[Any], layers: Sequence[Layer]) -> None:
    """See that figures are `[layers, heads]`, and each a head's; NaN is a head without one."""
    shape = (len(layers), max(layer.heads for layer in layers))
    if values.shape != shape:
        raise Nonsense(f"{where}: figures of {shape[0]} layers × {shape[1]} heads are expected, found {values.shape}")
    for row, layer in zip(values.tolist(), layers, strict=True):
        for head, value in enumerate(row):
            if value == value:
                if head >= layer.heads:
                    raise Nonsense(f"{where}: layer {layer.number} has {layer.heads} heads, and head {head} a score")
                named_score(value, f"{where} of {layer.number}-{head}", name)
