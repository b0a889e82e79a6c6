"""Records as panels of a grid, lengths × depths of needles: pure data, no drawing.

A panel shows one needle, seed, suite and so on; only what differs between records makes panels. Values are
the stored scores, or plain means of them where several records fall in one cell.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval_heads.errors import ResultsError
from retrieval_heads.plots.style import printable, shorten
from retrieval_heads.runs.grid import At, Grid, at
from retrieval_heads.runs.place import Value, axis_label, shown
from retrieval_heads.runs.record import Record, finite_mean

MAX_PANELS = 12

MEASURED = ""
SKIPPED = "skipped"
ERROR = "error"
MISSING = "missing"
UNPAIRED = "unpaired"
# What a cell without a value shows when its records differ.
_WORST_FIRST = (ERROR, SKIPPED, UNPAIRED)


@dataclass(frozen=True)
class Sample:
    """One number to plot, or the reason (`state`) why there is none."""

    record: Record
    value: float = math.nan
    state: str = MEASURED
    metric: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture of two sides; arrays are `[ys, xs]`."""

    label: str
    metric: str
    sides: tuple[str, str]
    """The axes that x and y are, such as length and depth; y is empty where the task has one."""
    xs: list[Value]
    """Values on x, in order."""
    ys: list[Value]
    """Values on y, in order."""
    values: Any
    """Mean of the measured records, NaN where there is none."""
    states: Any
    """Empty where measured, else `skipped`, `error`, `unpaired` or `missing`."""
    partial: Any
    """Whether the mean leaves out a record that has no value."""


def measured_samples(records: Sequence[Record], metric: str | None) -> list[Sample]:
    """Each record's stored score, checked.

    Args:
        records: Of one run: no cell twice.
        metric: Name of a score; `None` takes each record's own.

    Raises:
        ResultsError: No record, a cell twice, a score that is absent or no number.
    """
    if not records:
        raise ResultsError("there is nothing to plot: the list of records is empty")
    twice = [cell for cell, count in Counter(r.cell for r in records if r.cell).items() if count > 1]
    if twice:
        raise ResultsError(
            f"cell {twice[0]!r} stands more than once in the records: "
            "they are of several runs; plot one run at a time, or overlay runs as profiles"
        )
    return [_sample(record, metric) for record in records if record.status != "spared"]


def _sample(record: Record, metric: str | None) -> Sample:
    if record.status in (SKIPPED, ERROR):
        return Sample(record, state=record.status)
    name = metric or record.metric or (next(iter(record.scores)) if len(record.scores) == 1 else "")
    where = f"record {describe(record)}"
    known = ", ".join(sorted(record.scores)) or "none"
    if not name:
        raise ResultsError(f"{where} does not say which of its scores counts; choose a metric of: {known}")
    if name not in record.scores:
        raise ResultsError(f"{where} has no score {name!r}; its scores are: {known}")
    value = record.scores[name]
    if not math.isfinite(value):
        raise ResultsError(f"{where}: score {name} is {value}, not a number; run the cell again")
    return Sample(record, value, metric=name)


def describe(record: Record) -> str:
    """Names a record in an error."""
    return repr(record.cell) if record.cell else f"(len {record.context_length}, depth {record.document_depth:g})"


def panels(samples: Sequence[Sample]) -> tuple[list[Panel], str]:
    """Split samples by what differs between their records, and average each cell.

    Returns:
        The panels in order of first appearance, and a note on what was averaged (empty: nothing).

    Raises:
        ResultsError: Scores of different names meet in one panel.
    """
    further = dict.fromkeys(axis for s in samples for axis, _ in s.record.place.facets if axis not in _FACETS)
    facets = [name for name in (*_FACETS, *further) if len({_facet(s.record, name) for s in samples}) > 1]
    if "haystack" in facets and _is_told_by_place(samples):
        facets.remove("haystack")
    dropped = []
    if "seed" in facets and any(isinstance(side, str) for s in samples for side in s.record.place.grid):
        facets.remove("seed")  # rows of names are tasks, and their seeds are samples
        dropped.append("seed")
    for name in ("seed", "haystack", "question", "needle", "arm", "suite"):
        if len({_key(s.record, facets) for s in samples}) <= MAX_PANELS:
            break
        if name in facets:
            facets.remove(name)
            dropped.append(name)
    by_panel: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        by_panel[_key(sample.record, facets)].append(sample)
    labels = _labels(list(by_panel.values()), facets)
    made = []
    for title, members in zip(labels, by_panel.values(), strict=True):
        # Panels of one suite share their axes, so that a row that one seed lacks is seen to be missing.
        suite = members[0].record.suite
        mates = [s for s in samples if s.record.suite == suite or "suite" not in facets]
        made.append(_panel(title, members, mates))
    return made, _note(samples, dropped, by_panel.values())


def _is_told_by_place(samples: Sequence[Sample]) -> bool:
    """Whether what is asked says which text it is asked of, as RULER's tasks do."""
    if any(s.record.task is None for s in samples):
        return False
    places = {(s.record.suite, s.record.place.axes) for s in samples}
    return len(places) == len({(s.record.suite, s.record.place.axes, _facet(s.record, "haystack")) for s in samples})


_FACETS = ("suite", "arm", "needle", "question", "haystack", "seed")
_OF_THE_NEEDLE = ("needle", "question")
_PLURAL = {"haystack": "haystacks", "suite": "suites", "arm": "arms"}


def _facet(record: Record, name: str) -> str:
    if name == "haystack":
        return record.recipe.haystack if record.recipe else ""
    if name in _OF_THE_NEEDLE and record.task is not None:
        return ""  # another task asks something else at every place
    if name in _FACETS:
        return str(getattr(record, name))
    value = record.place.get(name)
    return "" if value is None else shown(value)


def _key(record: Record, facets: Sequence[str]) -> tuple[str, ...]:
    return tuple(_facet(record, name) for name in facets)


def _labels(groups: Sequence[Sequence[Sample]], facets: Sequence[str]) -> list[str]:
    # A needle and its question nearly always change together: the needle's name says both.
    shown = [name for name in facets if name != "question" or "needle" not in facets]
    labels = [" · ".join(_facet_label(group[0].record, name) for name in shown) for group in groups]
    seen: Counter[str] = Counter()
    for index, label in enumerate(labels):
        seen[label] += 1
        if seen[label] > 1:
            labels[index] = f"{label} ({seen[label]})"
    return labels


def _facet_label(record: Record, name: str) -> str:
    if name == "needle":
        return shorten(record.needle_name or record.needle, 34)
    if name == "seed":
        return f"seed {record.seed}"
    if name == "arm":
        return shorten(record.arm, 24) or "nothing masked"
    if name not in _FACETS:
        return shorten(f"{axis_label(name)} {_facet(record, name)}", 34)
    return shorten(_facet(record, name), 34) or f"no {name}"


def _panel(title: str, members: Sequence[Sample], mates: Iterable[Sample]) -> Panel:
    metrics = sorted({s.metric for s in members if s.metric})
    if len(metrics) > 1:
        raise ResultsError(f"the records count by different scores ({', '.join(metrics)}); choose one as metric")
    grid = Grid.of(s.record for s in mates)
    cells: dict[At, list[Sample]] = defaultdict(list)
    for sample in members:
        cells[at(sample.record)].append(sample)
    values = np.full((len(grid.ys), len(grid.xs)), np.nan)
    states: Any = np.full(values.shape, MISSING, dtype=object)
    partial: Any = np.zeros(values.shape, dtype=bool)
    row_of = {y: row for row, y in enumerate(grid.ys)}
    column_of = {x: column for column, x in enumerate(grid.xs)}
    for (x, y), inside in cells.items():
        here = row_of[y], column_of[x]
        measured = [s.value for s in inside if s.state == MEASURED]
        if measured:
            values[here] = finite_mean(measured)
            states[here] = MEASURED
            partial[here] = len(measured) < len(inside)
        else:
            states[here] = next(state for state in _WORST_FIRST if any(s.state == state for s in inside))
    return Panel(title, metrics[0] if metrics else "", grid.sides, grid.xs, grid.ys, values, states, partial)


def _note(samples: Sequence[Sample], dropped: Sequence[str], groups: Iterable[Sequence[Sample]]) -> str:
    parts = []
    for name in dropped:
        count = len({_facet(s.record, name) for s in samples})
        parts.append(f"{count} {_PLURAL.get(name, name + 's')}")
    if parts:
        return "mean over " + ", ".join(parts)
    most = max(max(Counter(at(s.record) for s in group).values()) for group in groups)
    return f"mean of up to {most} records a cell" if most > 1 else ""


def metric_label(metric: str) -> str:
    """A score's name as people write it: `rouge1_recall` is ROUGE-1 recall."""
    match = re.fullmatch(r"rouge(\w+?)_(.+)", metric)
    if match:
        rest = match[2].replace("_", " ")
        return f"ROUGE-{match[1]} {'F' if rest == 'f' else rest}"
    return printable(metric).replace("_", " ") or "score"


def number_labels(values: Sequence[float]) -> list[str]:
    """Percent with as few decimals as keep them apart: 50, but 0.7 and 1.8."""
    for decimals in range(5):
        labels = [f"{value:.{decimals}f}" for value in values]
        exact = all(math.isclose(float(label), value) for label, value in zip(labels, values, strict=True))
        if exact or (decimals and len(set(labels)) == len(labels)):
            break
    return [_without_zeros(label) for label in labels]


def value_labels(values: Sequence[Value]) -> list[str]:
    """The values on an axis as a picture writes them."""
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) < len(values):
        return [str(value) for value in values]
    return number_labels(numbers) if any(isinstance(value, float) for value in numbers) else [f"{n:,}" for n in numbers]


def _without_zeros(label: str) -> str:
    return label.rstrip("0").rstrip(".") if "." in label else label
