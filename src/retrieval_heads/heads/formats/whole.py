"""What formats that keep everything say beside their figures: layers, facts of the run, cells, where ties begin."""

from __future__ import annotations

import json
from typing import Any

from retrieval_heads.heads.formats.figures import Nonsense
from retrieval_heads.heads.formats.format import HeadFile, Wanted
from retrieval_heads.heads.formats.heads import SCHEMA, read_layers
from retrieval_heads.heads.order import order_of
from retrieval_heads.heads.table import Estimate, HeadTable
from retrieval_heads.reading import parse_json

KEY = "retrieval_heads"
"""What it stands under in a file's metadata."""


def described(heads: HeadFile, wanted: Wanted) -> str:
    """All but the figures, as JSON."""
    table = heads.table
    content = {
        "schema": SCHEMA,
        "suite": table.suite,
        "layers": [vars(layer) for layer in table.layers],
        "scores": list(wanted.scores),
        "counted": table.counted,
        "measured": table.measured,
        "stability_top_10": table.stability,
        "facts": dict(table.facts),
        "cells": list(heads.samples.cells),
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
    """The table of figures that were read beside it."""
    return HeadTable(
        str(content["suite"]),
        read_layers(content["layers"]),
        estimates,
        content["counted"],
        content["measured"],
        content["stability_top_10"],
        dict(content["facts"]),
    )
