"""`heads.json`, ours: every score of every head with its interval, what was measured, and each sample's figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.detection import Detection
from retrieval_heads.heads.formats.figures import Nonsense, checked_score, is_known_share
from retrieval_heads.heads.score import RANKING, head_scores
from retrieval_heads.heads.table import DIGITS, Estimate, HeadTable, Ranked, rectangle
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.layers import Layer, read_layer

SCHEMA = "retrieval-heads-heads/1"


def is_form_of(data: Mapping[str, Any]) -> bool:
    """Whether a file's object is of this form, in any version."""
    return "schema" in data


def means_in(data: Mapping[str, Any]) -> Iterator[Ranked]:
    """Every head's mean of the score that heads are ranked by.

    Raises:
        ValueError: It is of another form, or a figure cannot be a head's.
    """
    if data["schema"] != SCHEMA:
        raise ValueError(data["schema"])
    layers = _layers(data)
    mean = _checked_rows(data["scores"][RANKING]["mean"], layers, f"{RANKING}.mean")
    for layer, row in zip(layers, mean, strict=True):
        yield from (((layer.number, head), value) for head, value in enumerate(row))


def table_in(data: Mapping[str, Any]) -> HeadTable:
    """Everything that it says.

    Raises:
        ValueError: It is of another form, or a figure cannot be a head's.
    """
    import numpy as np

    if data["schema"] != SCHEMA:
        raise ValueError(data["schema"])
    layers = _layers(data)
    if not layers or not data["scores"]:
        raise Nonsense("holds no heads")
    estimates = {
        name: Estimate(
            *(
                np.array(rectangle(_checked_rows(score[part], layers, f"{name}.{part}")), dtype=np.float64)
                for part in ("mean", "low", "high")
            )
        )
        for name, score in data["scores"].items()
    }
    for key, most in (("counted", math.inf), ("measured", math.inf), ("stability_top_10", 1)):
        value = data.get(key)
        if value is not None and (isinstance(value, bool) or not 0 <= value <= most):
            raise Nonsense(f"{key}: a number is expected, found {value!r}")
    told = {"schema", "definitions", "layers", "ranked", "scores", "samples", "suite"}
    return HeadTable(
        str(data.get("suite", "")),
        layers,
        estimates,
        data.get("counted"),
        data.get("measured"),
        data.get("stability_top_10"),
        {key: value for key, value in data.items() if key not in told},
    )


def contents(detection: Detection, facts: Facts) -> dict[str, Any]:
    """What the file holds of a detection, by its name.

    Args:
        detection: What was measured.
        facts: What is said of the run.
    """
    return {"heads": _everything(detection, facts)}


def _layers(data: Mapping[str, Any]) -> tuple[Layer, ...]:
    try:
        layers = tuple(read_layer(layer, "heads") for layer in data["layers"])
    except ResultsError as error:
        raise Nonsense(str(error).partition(": ")[2]) from None
    numbers = [layer.number for layer in layers]
    if len(set(numbers)) < len(numbers):
        raise Nonsense(f"layer {next(number for number in numbers if numbers.count(number) > 1)} is given twice")
    return layers


def _checked_rows(rows: Any, layers: Sequence[Layer], where: str) -> list[list[float]]:
    """Scores `[layers][heads]`, as many as the layers have heads."""
    if not isinstance(rows, list) or len(rows) != len(layers):
        raise Nonsense(f"{where}: a row for each of the {len(layers)} layers is expected")
    for row, layer in zip(rows, layers, strict=True):
        if not isinstance(row, list) or len(row) != layer.heads:
            raise Nonsense(f"{where}: {layer.heads} scores are expected for layer {layer.number}")
    name, _, part = where.partition(".")
    may_lack, is_share = part != "mean", is_known_share(name)  # too few samples have no interval

    def checked(value: Any, layer: Layer, head: int) -> float:
        if value is None and may_lack:
            return math.nan
        return checked_score(value, f"{where} of {layer.number}-{head}", is_share=is_share)

    return [
        [checked(value, layer, head) for head, value in enumerate(row)] for row, layer in zip(rows, layers, strict=True)
    ]


def _everything(detection: Detection, facts: Facts) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        **facts,
        "definitions": {name: score.definition for name, score in head_scores().items()},
        "layers": [vars(layer) for layer in detection.layers],
        "counted": len(detection.counted),
        "measured": len(detection.samples),
        "stability_top_10": detection.stability(),
        "retrieval_heads": detection.retrieval_heads(),
        "ranked": [[*head, round(value, DIGITS)] for head, value in detection.ranked()],
        "scores": {
            name: {
                part: [
                    [None if math.isnan(value) else round(float(value), DIGITS) for value in row[: layer.heads]]
                    for row, layer in zip(getattr(estimate, part), detection.layers, strict=True)
                ]
                for part in ("mean", "low", "high")
            }
            for name, estimate in detection.estimates.items()
        },
        "samples": [
            {"cell": record.cell, "counted": bool(record.passed), "scores": record.heads}
            for record in detection.samples
        ],
    }
