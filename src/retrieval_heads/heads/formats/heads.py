"""`heads.json`, ours: every score of every head with its interval, what was measured, and each sample's figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.clusters import Cluster, cluster_of
from retrieval_heads.heads.detection import Detection
from retrieval_heads.heads.formats.figures import (
    Nonsense,
    check_counts,
    checked_score,
    is_known_share,
    may_be_signed,
    scored_heads,
)
from retrieval_heads.heads.formats.format import HeadFile, HeadFormat, Output, Samples, Source, Wanted
from retrieval_heads.heads.score import head_scores
from retrieval_heads.heads.table import DIGITS, Estimate, HeadTable, rank, rectangle
from retrieval_heads.heads.texts import MeasuredText, RandomText
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.layers import Layer, layer_fields, read_layer
from retrieval_heads.runs.record import Replay

SCHEMA = "retrieval-heads-heads/1"

_PARTS = ("mean", "low", "high")
_PARTIAL = "partial"
"""Set where some heads have no score: a run scores every one, and a null in its means is a broken file."""
_TEXTS = "texts"
"""Random texts that heads were measured on once for the model, each with its seed, scores and cost."""
_OWN = {_PARTIAL, _TEXTS, "schema", "definitions", "layers", "ranked", "scores", "samples", "suite"}
"""What is said of heads; everything else in a file is a fact of the run."""


class Heads(HeadFormat):
    """Everything that a run knows of its heads."""

    name = "heads"
    file = "heads.json"
    score = None

    def recognises(self, source: Source) -> bool:
        """By its schema, in any version."""
        return source.is_object and "schema" in source.json

    def table(self, source: Source) -> HeadTable:
        """Everything that it says but for the samples."""
        import numpy as np

        data = source.json
        if data["schema"] != SCHEMA:
            raise ValueError(data["schema"])
        layers = read_layers(data["layers"])
        if not layers or not data["scores"]:
            raise Nonsense("holds no heads")
        estimates = {
            name: Estimate(*(np.array(part, dtype=np.float64) for part in _parts(name, score, layers, data)))
            for name, score in data["scores"].items()
        }
        check_counts(data)
        return HeadTable(
            str(data.get("suite", "")),
            layers,
            estimates,
            data.get("counted"),
            data.get("measured"),
            data.get("stability_top_10"),
            {key: value for key, value in data.items() if key not in _OWN},
        )

    def samples(self, source: Source, table: HeadTable) -> Samples:
        """Those that counted, of every score that all of them have."""
        import numpy as np

        counted = [sample for sample in source.json.get("samples") or [] if sample["counted"]]
        figures = {
            name: np.array(
                [
                    rectangle(
                        _checked_rows(
                            sample["scores"][name],
                            table.layers,
                            f"{name} of {sample['cell']}",
                            may_lack=is_partial(source.json),
                        )
                    )
                    for sample in counted
                ],
                dtype=np.float64,
            )
            for name in table.estimates
            if counted and all(name in (sample["scores"] or {}) for sample in counted)
        }
        return Samples(figures, tuple(str(sample["cell"]) for sample in counted), read_clusters(counted))

    def output(self, heads: HeadFile, wanted: Wanted) -> Output:
        """The scores that are named, with their samples."""
        content = of_file(heads, wanted.scores)
        return Output({self.file: (json.dumps(content, ensure_ascii=False) + "\n").encode()})


FORMAT = Heads()


def contents(detection: Detection, facts: Facts) -> dict[str, Any]:
    """What the file holds of a detection, by its name.

    Args:
        detection: What was measured.
        facts: What is said of the run.
    """
    return {"heads": _everything(detection, facts)}


def read_layers(data: Any) -> tuple[Layer, ...]:
    """Layers as a file holds them.

    Raises:
        ValueError: One is none, or is given twice.
    """
    try:
        layers = tuple(read_layer(layer, "heads") for layer in data)
    except ResultsError as error:
        raise Nonsense(str(error).partition(": ")[2]) from None
    numbers = [layer.number for layer in layers]
    if len(set(numbers)) < len(numbers):
        raise Nonsense(f"layer {next(number for number in numbers if numbers.count(number) > 1)} is given twice")
    return layers


def of_file(heads: HeadFile, scores: Sequence[str]) -> dict[str, Any]:
    """What the file holds of heads that were read from another.

    Args:
        heads: What was read.
        scores: The scores to keep; heads are ranked by the first.
    """
    table, samples = heads.table, heads.samples
    definitions = {name: score.definition for name, score in head_scores().items() if name in scores}
    best = table.ranking if table.ranking in scores else scores[0]
    is_whole = all(len(list(scored_heads(table, name))) == sum(each.heads for each in table.layers) for name in scores)
    return {
        "schema": SCHEMA,
        "suite": table.suite,
        **table.facts,
        **({} if is_whole else {_PARTIAL: True}),
        "definitions": definitions,
        "layers": [layer_fields(layer) for layer in table.layers],
        "counted": table.counted,
        "measured": table.measured,
        "stability_top_10": table.stability,
        "ranked": [[*head, round(value, DIGITS)] for head, value in rank(scored_heads(table, best))],
        "scores": {name: _estimate(table.estimates[name], table.layers) for name in scores},
        "samples": [
            {
                "cell": samples.cells[number] if samples.cells else "",
                **({"cluster": list(samples.clusters[number])} if samples.clusters else {}),
                "counted": True,
                "scores": {
                    name: _rows(figures[number], table.layers, None)
                    for name, figures in samples.figures.items()
                    if name in scores
                },
            }
            for number in range(len(next(iter(samples.figures.values()), ())))
        ],
    }


def read_clusters(samples: Sequence[Mapping[str, Any]]) -> tuple[Cluster, ...]:
    """The needles and texts of samples; empty where a file does not say them of each.

    Raises:
        ValueError: What it says is no pair of names.
    """
    said = [sample.get("cluster") for sample in samples]
    for sample, cluster in zip(samples, said, strict=True):
        is_pair = isinstance(cluster, list) and len(cluster) == 2 and all(isinstance(name, str) for name in cluster)
        if cluster is not None and not is_pair:
            raise Nonsense(f"cluster of {sample.get('cell')}: two names, needle and text, are expected")
    return () if None in said else tuple((str(needle), str(text)) for needle, text in filter(None, said))


def is_partial(data: Mapping[str, Any]) -> bool:
    """Whether a file says that some of its heads have no score."""
    return data.get(_PARTIAL) is True


def _parts(
    name: str, score: Mapping[str, Any], layers: Sequence[Layer], data: Mapping[str, Any]
) -> Iterator[list[list[float]]]:
    """Mean and both ends of the interval of a score, which a file may lack."""
    for part in _PARTS:
        if part != "mean" and part not in score:
            yield rectangle([[math.nan] * layer.heads for layer in layers])
            continue
        may_lack = part != "mean" or is_partial(data)
        yield rectangle(_checked_rows(score[part], layers, f"{name}.{part}", may_lack=may_lack))


def _checked_rows(rows: Any, layers: Sequence[Layer], where: str, *, may_lack: bool) -> list[list[float]]:
    """Scores `[layers][heads]`, as many as the layers have heads; null is NaN, where some may lack."""
    if not isinstance(rows, list) or len(rows) != len(layers):
        raise Nonsense(f"{where}: a row for each of the {len(layers)} layers is expected")
    for row, layer in zip(rows, layers, strict=True):
        if not isinstance(row, list) or len(row) != layer.heads:
            raise Nonsense(f"{where}: {layer.heads} scores are expected for layer {layer.number}")
    name = where.partition(".")[0].partition(" of ")[0]
    is_share, is_signed = is_known_share(name), may_be_signed(name)

    def checked(value: Any, layer: Layer, head: int) -> float:
        if value is None and may_lack:
            return math.nan  # a head without a score, or an interval of too few samples
        at = f"{where} of {layer.number}-{head}"
        return checked_score(value, at, is_share=is_share, is_signed=is_signed)

    return [
        [checked(value, layer, head) for head, value in enumerate(row)] for row, layer in zip(rows, layers, strict=True)
    ]


def _rows(values: Any, layers: Sequence[Layer], digits: int | None = DIGITS) -> list[list[float | None]]:
    """Figures `[layers, heads]` as JSON holds them: as many as a layer has heads, null for NaN."""
    return [
        [
            None if math.isnan(value) else float(value) if digits is None else round(float(value), digits)
            for value in row[: layer.heads]
        ]
        for row, layer in zip(values, layers, strict=True)
    ]


def _estimate(estimate: Estimate, layers: Sequence[Layer]) -> dict[str, Any]:
    return {part: _rows(getattr(estimate, part), layers) for part in _PARTS}


def _everything(detection: Detection, facts: Facts) -> dict[str, Any]:
    layers = detection.layers
    needs = [score.needs for name, score in head_scores().items() if name in detection.estimates]
    is_whole = all(layer.has(each) for each in needs for layer in layers if layer.heads)
    return {
        "schema": SCHEMA,
        **facts,
        **({} if is_whole else {_PARTIAL: True}),
        "definitions": {name: score.definition for name, score in head_scores().items()},
        "layers": [layer_fields(layer) for layer in layers],
        "counted": len(detection.counted),
        "measured": len(detection.samples),
        "stability_top_10": detection.stability(),
        "intervals": detection.clusters.note,
        "retrieval_heads": detection.retrieval_heads(),
        "ranked": [[*head, round(value, DIGITS)] for head, value in detection.ranked()],
        "scores": {name: _estimate(estimate, detection.layers) for name, estimate in detection.estimates.items()},
        "samples": [
            {
                "cell": record.cell,
                "cluster": list(cluster_of(record)),
                "counted": bool(record.passed),
                "scores": record.heads and {name: _whole(rows, layers) for name, rows in record.heads.items()},
            }
            for record in detection.samples
        ],
        **({_TEXTS: [_of_text(text) for text in detection.texts]} if detection.texts else {}),
    }


def _whole(rows: Sequence[Sequence[float]], layers: Sequence[Layer]) -> list[list[float | None]]:
    """A sample's figures with null for the heads of layers that have no such score."""
    return [[*row] if row else [None] * layer.heads for row, layer in zip(rows, layers, strict=True)]


def _of_text(text: MeasuredText) -> dict[str, Any]:
    return {"text": text.text.to_json(), "scores": text.heads, "replay": text.replay.model_dump()}


def measured_texts(path: Path) -> list[MeasuredText]:
    """The random texts that a run's file holds, with what heads were measured on them; none where there is no file.

    Raises:
        ResultsError: It cannot be read.
    """
    if not path.exists():
        return []
    try:
        held = json.loads(path.read_text(encoding="utf-8")).get(_TEXTS, [])
        return [
            MeasuredText(RandomText.of_json(one["text"]), one["scores"], Replay.model_validate(one["replay"]))
            for one in held
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path}: its random texts cannot be read: {error}") from None
