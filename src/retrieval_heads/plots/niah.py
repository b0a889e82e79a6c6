"""The needle-in-a-haystack picture: context length across, needle depth down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from retrieval_heads.errors import ResultsError
from retrieval_heads.plots.cells import Scale, grid_figure
from retrieval_heads.plots.grid import ERROR, MEASURED, SKIPPED, measured_samples, metric_label, panels
from retrieval_heads.plots.saving import save
from retrieval_heads.plots.style import SCORES, counted, styled
from retrieval_heads.runs.record import Record, finite_mean


def niah_heatmap(
    records: Sequence[Record],
    path: Path,
    *,
    metric: str | None = None,
    title: str = "",
    limits: tuple[float, float] = (0.0, 1.0),
) -> list[Path]:
    """Draw length × depth heatmaps of the stored scores, one panel for each needle, seed and so on.

    Args:
        records: Of one run; records of the predecessor as well.
        path: Where to write, with or without `.png` or `.svg`; both are written.
        metric: Name of a score; `None` takes each record's own metric.
        title: Heading, such as model and suite; empty takes the suite's name.
        limits: Scores of the first and last colour: 0 to 1 whatever was measured, so that pictures of two runs can be
            laid side by side.

    Returns:
        The two paths written.

    Raises:
        ResultsError: No records, limits in the wrong order, a cell twice, a score that is absent or NaN, or an
            unwritable folder.
    """
    if not limits[0] < limits[1]:
        raise ResultsError(f"the colours go from {limits[0]:g} to {limits[1]:g}; the first must be the lower")
    return save(niah_figure(records, metric=metric, title=title, limits=limits), path)


@styled()
def niah_figure(
    records: Sequence[Record], *, metric: str | None = None, title: str = "", limits: tuple[float, float] = (0.0, 1.0)
) -> Figure:
    """Build the figure of `niah_heatmap`."""
    samples = measured_samples(records, metric)
    shown, note = panels(samples)
    metrics = {panel.metric for panel in shown if panel.metric}
    label = metric_label(metrics.pop()) if len(metrics) == 1 else "score"
    count = Counter(sample.state for sample in samples)
    facts = [label, counted(len(samples), "record")]
    facts += [f"{count[state]:,} {words}" for state, words in _NOT_MEASURED.items() if count[state]]
    if count[MEASURED]:
        facts.append(f"mean {finite_mean([s.value for s in samples if s.state == MEASURED]):.3f}")
    if note:
        facts.append(note)
    suites = sorted({record.suite for record in records if record.suite})
    return grid_figure(
        shown,
        Scale(SCORES, limits, label),
        title=title or ", ".join(suites) or "Needle in a haystack",
        subtitle=" · ".join(facts),
    )


_NOT_MEASURED = {SKIPPED: "skipped", ERROR: "in error"}
