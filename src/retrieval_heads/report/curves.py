"""The curves of a page: means over an axis with their intervals, and the dose curve of an ablation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from retrieval_heads.intervals import mean_interval
from retrieval_heads.runs.grid import Grid
from retrieval_heads.runs.place import axis_label
from retrieval_heads.runs.record import Record, finite_mean

Point = tuple[float, float, float | None, float | None, int]
"""x, mean, both ends of its 95 % interval where there is one, and how many values."""


def curves(records: Sequence[Record]) -> list[dict[str, object]]:
    """The mean of the score that decides over each axis of numbers, a line for each arm.

    Args:
        records: Of one suite.

    Returns:
        Of each axis that has several values: its name, its title, and by arm the points.
    """
    measured = [
        record
        for record in records
        if record.status in ("pass", "low") and record.scores.get(record.metric) is not None
    ]
    return [
        {"axis": axis, "title": axis_label(axis), "lines": lines}
        for axis in Grid.of(records).sides
        if axis and (lines := _lines(measured, axis))
    ]


def _lines(records: Sequence[Record], axis: str) -> dict[str, list[Point]]:
    values: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        x = record.place.get(axis)
        if not isinstance(x, int | float):
            return {}
        values[record.arm][x].append(record.scores[record.metric])
    lines = {arm: [_point(x, at[x]) for x in sorted(at)] for arm, at in values.items()}
    return lines if any(len(points) > 1 for points in lines.values()) else {}


def _point(x: float, values: Sequence[float]) -> Point:
    interval = mean_interval(values)
    ends = (round(interval.low, 4), round(interval.high, 4)) if interval else (None, None)
    return x, round(finite_mean(list(values)), 4), *ends, len(values)


def dose(ablation: Mapping[str, Any]) -> dict[str, object] | None:
    """Accuracy by how many heads are masked, the best ones and others; `None` where the file does not say how many."""
    groups = ablation["groups"]
    if not all(isinstance(group.get("count"), int) for group in groups):
        return None
    lines: dict[str, list[Point]] = {"the best heads": [], "others of the same layers": []}
    for group in groups:
        accuracy = group["accuracy"]
        point = (group["count"], accuracy["value"], accuracy["low"], accuracy["high"], group["cells"])
        for name, is_own in zip(lines, (not group["draws"], bool(group["draws"])), strict=True):
            if is_own or not group["count"]:
                lines[name].append(point)
    return {"suite": ablation["suite"], "lines": {name: points for name, points in lines.items() if len(points) > 1}}
