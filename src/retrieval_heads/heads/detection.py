"""Head scores: their names, how samples become one figure a head, and the files they are kept in.

A head is (layer, head): the layer's number in the model and the query head's in it. Scores are `[layers, heads]`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_heads.errors import ResultsError
from retrieval_heads.files import write_whole
from retrieval_heads.heads.top_heads import TopHeads, overlap, top_heads
from retrieval_heads.intervals import mean_intervals
from retrieval_heads.reading import parse_json, read_text
from retrieval_heads.runs.layers import MOST, Layer, layer_number, read_layer, written_number
from retrieval_heads.runs.record import HeadScores, Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = "retrieval-heads-heads/1"

SCORES = {
    "copy": "distinct needle tokens that were the head's argmax while the model emitted that very token, over the "
    "needle's length (arXiv 2404.15574)",
    "copy_reference": "the same counted at each step, as the paper's code does: a repeated answer counts again",
    "mass": "attention weight on the needle, mean over the answer's steps",
    "query": "attention weight from the question's tokens to the needle, mean over them (arXiv 2506.09944)",
    "copy_by_value": "copy where the greatest weight counts and not the greatest magnitude; only in models with layers "
    "whose weights have a sign, such as gated delta layers",
}
"""Every score and its definition."""

RETRIEVAL_THRESHOLD = 0.1
"""A retrieval head is one with a mean `copy` of at least this (arXiv 2404.15574)."""

_SLACK = 1e-6
_BOUNDED = ("copy", "copy_by_value", "mass", "query")
"""Scores that are a share; a repeated answer's `copy_reference` passes 1."""

# What is stored: sums of rounded shares would put a mean of 0.1 below the threshold.
_DIGITS = 6
_SPLITS = 100

Head = tuple[int, int]
Ranked = tuple[Head, float]


@dataclass(frozen=True)
class Estimate:
    """A score of every head over the counted samples, each `[layers, heads]`; NaN beyond a layer's heads."""

    mean: NDArray[Any]
    low: NDArray[Any]
    """Lower end of the 95 % interval of the mean (`retrieval_heads.intervals`); NaN for too few samples."""
    high: NDArray[Any]
    """Its upper end."""


@dataclass(frozen=True)
class Detection:
    """The heads of one detection run.

    Args:
        layers: The layers, in the order of the scores' rows; those that cannot be scored have no heads.
        counted: Records whose answer retrieved the needle; they alone are averaged.
        samples: Every record with head scores.
        estimates: By score; a score that some counted sample lacks is not among them.
    """

    layers: tuple[Layer, ...]
    counted: tuple[Record, ...]
    samples: tuple[Record, ...]
    estimates: Mapping[str, Estimate]

    def ranked(self, score: str = "copy") -> list[Ranked]:
        """Every head with its mean, best first; ties in the order of layer, then head."""
        mean = self.estimates[score].mean
        heads = [
            ((layer.number, head), float(mean[row, head]))
            for row, layer in enumerate(self.layers)
            for head in range(layer.heads)
        ]
        return rank(heads)

    def stability(self, top: int = 10) -> float | None:
        """How far the ranking depends on the samples: the overlap of the `top` heads by `copy` of two random halves of
        the counted samples (`retrieval_heads.heads.top_heads`), mean over 100 seeded splits; `None` below two samples,
        and where no head ever copied. A half in which no head stands out agrees with nothing.
        """
        import numpy as np

        if len(self.counted) < 2:
            return None
        values = _stacked(self.counted, "copy").reshape(len(self.counted), -1)
        if not (values > 0).any():
            return None
        random = np.random.default_rng(0)
        overlaps = []
        for _ in range(_SPLITS):
            order = random.permutation(len(values))
            halves = (order[: len(order) // 2], order[len(order) // 2 :])
            first, second = (top_heads(enumerate(values[half].mean(0).tolist()), top) for half in halves)
            overlaps.append(overlap(first, second) or 0.0)
        return float(np.mean(overlaps))

    def top(self, count: int, score: str = "copy") -> TopHeads:
        """The best heads, as far as their scores tell them from the rest."""
        return top_heads(self.ranked(score), count)

    def table(self, suite: str) -> HeadTable:
        """The means as `heads.json` tells them, rounded as there."""
        estimates = {
            name: Estimate(*(getattr(estimate, part).round(_DIGITS) for part in ("mean", "low", "high")))
            for name, estimate in self.estimates.items()
        }
        return HeadTable(suite, self.layers, estimates, len(self.counted), len(self.samples), self.stability())

    def retrieval_heads(self) -> int:
        """How many heads have a mean `copy` of at least `RETRIEVAL_THRESHOLD`."""
        return int((self.estimates["copy"].mean.round(_DIGITS) >= RETRIEVAL_THRESHOLD).sum())


@dataclass(frozen=True)
class HeadTable:
    """Mean head scores as any head file tells them.

    Args:
        suite: The detect suite's name; empty where the file does not say.
        layers: The layers, in the order of the scores' rows; those that cannot be scored have no heads.
        estimates: By score; NaN where a head has no score, and for the ends of intervals that the file lacks.
        counted: Samples that were averaged.
        measured: Samples with head scores.
        stability: See `Detection.stability`.
        facts: What the file says of the run: model, dtype and so on.
    """

    suite: str
    layers: tuple[Layer, ...]
    estimates: Mapping[str, Estimate]
    counted: int | None = None
    measured: int | None = None
    stability: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def ranked(self, score: str) -> list[tuple[int, int]]:
        """Every scored head as (row, head), best first; ties in the order of layer, then head."""
        mean = self.estimates[score].mean
        heads = [
            ((row, head), float(mean[row, head]))
            for row, layer in enumerate(self.layers)
            for head in range(layer.heads)
            if not math.isnan(mean[row, head])
        ]
        return [head for head, _ in rank(heads)]

    def top(self, score: str, count: int) -> TopHeads:
        """The best heads, each (layer number, head), as far as their scores tell them from the rest."""
        mean = self.estimates[score].mean
        heads = self.ranked(score)
        return top_heads((((self.layers[row].number, head), float(mean[row, head])) for row, head in heads), count)


def aggregate(records: Sequence[Record], layers: Sequence[Layer]) -> Detection:
    """Average the head scores of the samples whose answer retrieved the needle.

    Intervals are those of `intervals.mean_intervals`. `copy_reference` has no upper limit of its own: that of its
    scale is the greatest figure that any counted answer could have come to, one needle token copied at each step.

    Raises:
        ResultsError: No sample counts, or samples are of other models.
    """
    samples = tuple(record for record in records if record.heads is not None)
    counted = tuple(record for record in samples if record.passed)
    if not counted:
        raise ResultsError(
            f"none of the {len(records)} samples retrieved its needle, so no head can be scored; "
            "ask easier cells (shorter, or another needle)"
        )
    shape = [layer.heads for layer in layers]
    if any([len(row) for row in heads] != shape for record in counted for heads in (record.heads or {}).values()):
        raise ResultsError("the samples' heads are not those of this model's layers: they are of other models")
    measured = [name for name in SCORES if all(record.heads and name in record.heads for record in counted)]
    return Detection(
        tuple(layers),
        counted,
        samples,
        {name: _estimate(_stacked(counted, name), _greatest(name, counted)) for name in measured},
    )


def rank(heads: Iterable[Ranked]) -> list[Ranked]:
    """Best first; ties in the order of layer, then head."""
    return sorted(heads, key=lambda ranked: (-ranked[1], ranked[0]))


def write_heads(detection: Detection, folder: Path, facts: Mapping[str, Any], suffix: str = "") -> list[Path]:
    """Write a detection in every form that is read elsewhere.

    Args:
        detection: What was measured.
        folder: The run's folder.
        facts: What `heads.json` says of the run: model, revision, dtype, engine.
        suffix: Behind each file's name, when a run has several detect suites.

    Returns:
        `heads.json` (everything), `detected.json` and `detected-agg.json` (the predecessor's form, `copy`), and
        `head_score.json` (the paper's form, `copy_reference`).
    """
    copies = {
        layer.path: {
            str(head): [record.heads["copy"][row][head] for record in detection.counted if record.heads]
            for head in range(layer.heads)
        }
        for row, layer in enumerate(detection.layers)
        if layer.heads
    }
    means = {
        path: {head: math.fsum(all_) / len(all_) for head, all_ in heads.items()} for path, heads in copies.items()
    }
    paper = {
        f"{layer.number}-{head}": [
            record.heads["copy_reference"][row][head] for record in detection.counted if record.heads
        ]
        for row, layer in enumerate(detection.layers)
        for head in range(layer.heads)
    }
    contents: dict[str, Any] = {
        "heads": _everything(detection, facts),
        "detected": copies,
        "detected-agg": means,
        "head_score": paper,
    }
    written = []
    for name, content in contents.items():
        path = folder / f"{name}{suffix}.json"
        write_whole(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())
        written.append(path)
    return written


def read_ranked(path: Path) -> list[Ranked]:
    """The heads of any head file with their mean scores, best first; ties in the order of layer, then head.

    Args:
        path: `heads.json`, `detected.json` or `detected-agg.json` (ours or the predecessor's), or the paper's form
            `{"layer-head": [scores]}`.

    Raises:
        ResultsError: The file is missing, empty, or of none of these forms.
    """
    data = _read_object(path)
    try:
        return rank(_heads_in(data))
    except _MALFORMED as error:
        raise _no_heads(path, error) from None


def read_table(path: Path) -> HeadTable:
    """Every score of any head file that `read_ranked` accepts.

    Raises:
        ResultsError: The file is missing, empty, of none of these forms, or a score is no number.
    """
    data = _read_object(path)
    try:
        table = _whole_table(data) if "schema" in data else _plain_table(data)
    except _MALFORMED as error:
        raise _no_heads(path, error) from None
    if all(math.isnan(value) for estimate in table.estimates.values() for value in estimate.mean.flat):
        raise ResultsError(f"{path}: no head has a score that is a number")
    return table


_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError)


class _Nonsense(ValueError):
    """A file of heads in one of the forms, whose figures cannot be those of heads."""


def _read_object(path: Path) -> dict[str, Any]:
    data = parse_json(read_text(path), str(path), "JSON")
    if not isinstance(data, dict) or not data:
        raise ResultsError(f"{path}: holds no heads")
    return data


def _no_heads(path: Path, error: Exception) -> ResultsError:
    if isinstance(error, _Nonsense):
        return ResultsError(f"{path}: {error}")
    return ResultsError(
        f"{path}: not a file of heads; accepted are heads.json, detected.json, detected-agg.json and the paper's "
        'form {"layer-head": [scores]}'
    )


def _layers(data: Mapping[str, Any]) -> tuple[Layer, ...]:
    try:
        layers = tuple(read_layer(layer, "heads") for layer in data["layers"])
    except ResultsError as error:
        raise _Nonsense(str(error).partition(": ")[2]) from None
    numbers = [layer.number for layer in layers]
    if len(set(numbers)) < len(numbers):
        raise _Nonsense(f"layer {next(number for number in numbers if numbers.count(number) > 1)} is given twice")
    return layers


def _checked_rows(rows: Any, layers: Sequence[Layer], where: str) -> list[list[float]]:
    """Scores `[layers][heads]`, as many as the layers have heads."""
    if not isinstance(rows, list) or len(rows) != len(layers):
        raise _Nonsense(f"{where}: a row for each of the {len(layers)} layers is expected")
    for row, layer in zip(rows, layers, strict=True):
        if not isinstance(row, list) or len(row) != layer.heads:
            raise _Nonsense(f"{where}: {layer.heads} scores are expected for layer {layer.number}")
    name, _, part = where.partition(".")
    may_lack = part != "mean"  # too few samples have no interval
    return [
        [
            math.nan if value is None and may_lack else checked_score(value, f"{where} of {layer.number}-{head}", name)
            for head, value in enumerate(row)
        ]
        for row, layer in zip(rows, layers, strict=True)
    ]


def checked_score(value: Any, where: str, name: str) -> float:
    """A head's score, which is a number from 0, and up to 1 where it is a share.

    Args:
        value: What a file says.
        where: Names the place in errors.
        name: Of the score.

    Raises:
        ValueError: It is none, in one sentence.
    """
    is_share = name in _BOUNDED
    most = 1 + _SLACK if is_share else float(MOST)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -_SLACK <= value <= most:
        raise _Nonsense(f"{where}: a score of {'0 to 1' if is_share else '0 or more'} is expected, found {value!r}")
    return float(value)


def _whole_table(data: Mapping[str, Any]) -> HeadTable:
    """What `heads.json` says."""
    import numpy as np

    if data["schema"] != SCHEMA:
        raise ValueError(data["schema"])
    layers = _layers(data)
    if not layers or not data["scores"]:
        raise _Nonsense("holds no heads")
    estimates = {
        name: Estimate(
            *(
                np.array(_rectangle(_checked_rows(score[part], layers, f"{name}.{part}")), dtype=np.float64)
                for part in ("mean", "low", "high")
            )
        )
        for name, score in data["scores"].items()
    }
    for key, most in (("counted", math.inf), ("measured", math.inf), ("stability_top_10", 1)):
        value = data.get(key)
        if value is not None and (isinstance(value, bool) or not 0 <= value <= most):
            raise _Nonsense(f"{key}: a number is expected, found {value!r}")
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


def _plain_table(data: Mapping[str, Any]) -> HeadTable:
    """One mean a head: the predecessor's `copy` (or the paper's per-step count) and nothing else."""
    import numpy as np

    means = dict(_heads_in(data))
    numbers = sorted({layer for layer, _ in means})
    most = 1 + max(head for _, head in means)
    mean = np.full((len(numbers), most), math.nan)
    row_of = {number: row for row, number in enumerate(numbers)}
    for (layer, head), value in means.items():
        mean[row_of[layer], head] = value
    unknown = np.full(mean.shape, math.nan)
    name = "copy" if all(isinstance(value, Mapping) for value in data.values()) else "copy_reference"
    layers = tuple(Layer("", number, most) for number in numbers)
    return HeadTable("", layers, {name: Estimate(mean, unknown, unknown)})


def _heads_in(data: Mapping[str, Any]) -> Iterable[Ranked]:
    if "schema" in data:
        if data["schema"] != SCHEMA:
            raise ValueError(data["schema"])
        layers = _layers(data)
        mean = _checked_rows(data["scores"]["copy"]["mean"], layers, "copy.mean")
        for layer, row in zip(layers, mean, strict=True):
            yield from (((layer.number, head), value) for head, value in enumerate(row))
        return
    seen: set[Head] = set()
    for head, scores, score in _plain_heads(data):
        name = "-".join(map(str, head))
        if head in seen:
            raise _Nonsense(f"head {name} is given twice")
        seen.add(head)
        if not all(0 <= number < MOST for number in head):
            raise _Nonsense(f"head {name}: numbers of layers and heads are below {MOST}")
        each = scores if isinstance(scores, list) else [scores]
        values = [checked_score(value, f"head {name}", score) for value in each]
        if not values:
            raise ValueError(f"head {name}: holds no score")
        yield head, math.fsum(values) / len(values)


def _plain_heads(data: Mapping[str, Any]) -> Iterator[tuple[Head, Any, str]]:
    """Heads of the forms without a schema, what is said of each, and which score that is."""
    is_predecessors = all(isinstance(value, Mapping) for value in data.values())
    for name, value in data.items():
        if is_predecessors:  # module path, then head
            number = layer_number(name)
            yield from (((number, written_number(head)), scores, "copy") for head, scores in value.items())
        else:  # the paper's: "layer-head"
            layer, head = name.split("-")
            yield (written_number(layer), written_number(head)), value, "copy_reference"


def _stacked(records: Sequence[Record], score: str) -> NDArray[Any]:
    """`[samples, layers, heads]`, NaN beyond a layer's heads."""
    import numpy as np

    stacked: list[HeadScores] = [record.heads for record in records if record.heads is not None]
    return np.array([_rectangle(heads[score]) for heads in stacked], dtype=np.float64)


def _rectangle(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """As many heads for every layer, NaN beyond its own."""
    most = max(map(len, rows))
    return [[*row, *[math.nan] * (most - len(row))] for row in rows]


def _estimate(values: NDArray[Any], greatest: float) -> Estimate:
    return Estimate(values.mean(0), *mean_intervals(values, greatest))


def _greatest(score: str, records: Sequence[Record]) -> float:
    """The greatest figure that a score could have on any of these samples."""
    if score != "copy_reference":
        return 1.0
    said = [
        len(record.token_ids) / (end - start)
        for record in records
        for start, end in [record.needle_span or (0, 0)]
        if end > start
    ]
    measured = [value for record in records for row in (record.heads or {})[score] for value in row]
    return max(1.0, *said, *measured)


def _everything(detection: Detection, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        **facts,
        "definitions": SCORES,
        "layers": [vars(layer) for layer in detection.layers],
        "counted": len(detection.counted),
        "measured": len(detection.samples),
        "stability_top_10": detection.stability(),
        "retrieval_heads": detection.retrieval_heads(),
        "ranked": [[*head, round(value, _DIGITS)] for head, value in detection.ranked()],
        "scores": {
            name: {
                part: [
                    [None if math.isnan(value) else round(float(value), _DIGITS) for value in row[: layer.heads]]
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
