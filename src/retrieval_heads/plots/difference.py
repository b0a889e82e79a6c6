"""Run against run: what a change of model or engine did to each cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from retrieval_heads.errors import ResultsError
from retrieval_heads.plots.cells import Scale, grid_figure
from retrieval_heads.plots.grid import (
    MEASURED,
    UNPAIRED,
    Sample,
    describe,
    measured_samples,
    metric_label,
    panels,
)
from retrieval_heads.plots.saving import save
from retrieval_heads.plots.style import DIFFERENCES, printable, styled
from retrieval_heads.runs.place import Value
from retrieval_heads.runs.record import Record, finite_mean

# Smaller differences than this never fill the scale: noise should look like noise.
_LEAST_LIMIT = 0.1

Question = tuple[str, tuple[tuple[str, Value], ...], int]


def difference_map(
    records_a: Sequence[Record],
    records_b: Sequence[Record],
    path: Path,
    *,
    metric: str | None = None,
    title: str = "",
    names: tuple[str, str] = ("A", "B"),
) -> list[Path]:
    """Draw, cell by cell, the score of the second run minus that of the first.

    Args:
        records_a: The first run, such as the baseline.
        records_b: The second run, paired with the first by `cell`, or by needle, length, depth and seed
            where a record has no cell name.
        path: Where to write, with or without `.png` or `.svg`; both are written.
        metric: Name of a score; `None` takes each record's own metric.
        title: Heading; empty names the two runs.
        names: What the runs are called.

    Returns:
        The two paths written.

    Raises:
        ResultsError: A run without records, a cell twice in one, no cell measured in both, scores of
            different names, a score that is absent or NaN, or an unwritable folder.
    """
    return save(difference_figure(records_a, records_b, metric=metric, title=title, names=names), path)


@styled()
def difference_figure(
    records_a: Sequence[Record],
    records_b: Sequence[Record],
    *,
    metric: str | None = None,
    title: str = "",
    names: tuple[str, str] = ("A", "B"),
) -> Figure:
    """Build the figure of `difference_map`."""
    first, second = (printable(name) for name in names)
    differences = paired_samples(measured_samples(records_a, metric), measured_samples(records_b, metric))
    values = [s.value for s in differences if s.state == MEASURED]
    if not values:
        raise ResultsError(f"no cell was measured in both runs ({first} and {second}): nothing to compare")
    shown, note = panels(differences)
    metrics = {panel.metric for panel in shown if panel.metric}
    label = metric_label(metrics.pop()) if len(metrics) == 1 else "score"
    limit = max(_LEAST_LIMIT, *(abs(value) for value in values))
    higher, lower = sum(value > 0 for value in values), sum(value < 0 for value in values)
    facts = [
        f"{label}, {second} minus {first}",
        f"{len(values):,} of {len(differences):,} cells in both",
        f"mean {round(finite_mean(values), 3) + 0.0:+.3f}",
        f"{higher:,} higher, {lower:,} lower, {len(values) - higher - lower:,} equal",
    ]
    return grid_figure(
        shown,
        Scale(DIFFERENCES, (-limit, limit), "change", signed=True),
        title=title or f"{second} against {first}",
        subtitle=" · ".join([*facts, *([note] if note else [])]),
    )


def paired_samples(first: Sequence[Sample], second: Sequence[Sample]) -> list[Sample]:
    """Second minus first for every question that either run asked.

    Args:
        first: One run's samples.
        second: The other's.

    Returns:
        A sample for each pair and each sample without a partner; `unpaired` where either side has no value.

    Raises:
        ResultsError: A question without a cell name that one run asked twice, or scores of different names.
    """
    by_cell = {s.record.cell: s for s in second if s.record.cell}
    by_question = _by_question(second)
    _by_question([s for s in first if not s.record.cell])
    used: set[int] = set()
    made = []
    for one in first:
        other = by_cell.get(one.record.cell) or by_question.get(_question(one.record))
        # Two different cell names are two different questions, however alike their numbers.
        if other is not None and one.record.cell and other.record.cell not in ("", one.record.cell):
            other = None
        if other is not None:
            used.add(id(other))
        made.append(_difference(one, other))
    return made + [_difference(s, None) for s in second if id(s) not in used]


def _question(record: Record) -> Question:
    return record.needle, record.place.axes, record.seed


def _by_question(samples: Sequence[Sample]) -> dict[Question, Sample]:
    found: dict[Question, Sample] = {}
    for sample in samples:
        other = found.setdefault(_question(sample.record), sample)
        if other is not sample and not (other.record.cell and sample.record.cell):
            raise ResultsError(
                f"{describe(sample.record)} stands more than once in one run, and has no cell name to tell "
                "its records apart; give the records of one run"
            )
    return found


def _difference(one: Sample, other: Sample | None) -> Sample:
    if other is None or one.state != MEASURED or other.state != MEASURED:
        return Sample(one.record, state=UNPAIRED)
    if one.metric != other.metric:
        raise ResultsError(
            f"{describe(one.record)} counts by {one.metric} in one run and by {other.metric} in the other; "
            "choose one as metric"
        )
    return Sample(one.record, other.value - one.value, metric=one.metric)
