"""A phonebook's accuracy over entries and depth: a count of entries has its own depths, or all are snapped to some."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from retrieval_heads.errors import ResultsError
from retrieval_heads.plots.cells import Scale, grid_figure
from retrieval_heads.plots.grid import measured_samples, panels
from retrieval_heads.plots.layout import Page, arrange, new_figure
from retrieval_heads.plots.saving import save
from retrieval_heads.plots.style import FAINT, SCORES, counted, styled
from retrieval_heads.runs.place import DEPTH, Value
from retrieval_heads.runs.record import Record, finite_mean

_WIDTH, _HEIGHT = 10.4, 4.8
_MOST_LABELS = 15
_ENTRIES = "entries"


def phonebook_heatmap(
    records: Sequence[Record],
    path: Path,
    *,
    depths: Sequence[float] | None = None,
    title: str = "",
    limits: tuple[float, float] = (0.0, 1.0),
) -> list[Path]:
    """Draw the accuracy of a phonebook, entries across and depth down, mean over seeds and runs.

    Args:
        records: Of one run or several; the predecessor's as well.
        path: Where to write, with or without `.png` or `.svg`; both are written.
        depths: Each record counts in the row of the nearest of these, in percent; of two as near, the lesser. `None`:
            every count of entries is a column of as many cells, equally high, as it has depths, so that none is empty.
        title: Heading, such as the model's name.
        limits: Accuracy of the first and last colour.

    Returns:
        The two paths written.

    Raises:
        ResultsError: There is no record of a phonebook, or the folder cannot be written.
    """
    return save(phonebook_figure(records, depths=depths, title=title, limits=limits), path)


@styled()
def phonebook_figure(
    records: Sequence[Record],
    *,
    depths: Sequence[float] | None = None,
    title: str = "",
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Build the figure of `phonebook_heatmap`."""
    asked = [record for record in records if record.task == "phonebook"]
    if not asked:
        raise ResultsError("no record of a phonebook is there")
    title = title or "Phonebook"
    subtitle = f"accuracy · {counted(len(asked), 'record')}"
    if depths is None:
        return _columns_figure(columns_of(asked), title, subtitle, limits)
    snapped = [_snapped(record, sorted(depths)) for record in asked]
    samples = [sample for record in snapped for sample in measured_samples([record], None)]
    (panel,), _ = panels(samples)
    return grid_figure([replace(panel, label="")], Scale(SCORES, limits, "Accuracy"), title=title, subtitle=subtitle)


def columns_of(records: Sequence[Record]) -> dict[int, list[float]]:
    """By count of entries, the mean accuracy at each of its depths, from the first entry to the last."""
    cells: defaultdict[int, defaultdict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        entries, depth = record.place.get(_ENTRIES), record.place.get(DEPTH)
        if record.status in ("pass", "low") and isinstance(entries, int) and isinstance(depth, int | float):
            cells[entries][depth].append(record.scores[record.metric])
    if not cells:
        raise ResultsError("no record of a phonebook holds an answer")
    return {entries: [finite_mean(each[depth]) for depth in sorted(each)] for entries, each in sorted(cells.items())}


def _columns_figure(
    columns: Mapping[int, Sequence[float]], title: str, subtitle: str, limits: tuple[float, float]
) -> Figure:
    figure = new_figure()
    axes, norm = figure.add_subplot(), Normalize(*limits)
    for place, means in enumerate(columns.values()):
        edges = np.linspace(0, 1, len(means) + 1)
        column = np.array(means)[:, None]
        # One image in an SVG: a book of 999 lines would be half a million paths.
        mesh = axes.pcolormesh([place, place + 1], edges, column, cmap=SCORES, norm=norm, rasterized=True)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(1, 0)
    labelled = sorted({round(at) for at in np.linspace(0, len(columns) - 1, min(_MOST_LABELS, len(columns)))})
    axes.set_xticks([at + 0.5 for at in labelled], [f"{list(columns)[at]:,}" for at in labelled])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.set_xlabel("Entries of the phonebook")
    axes.set_ylabel("depth (%)")
    bar = figure.add_subplot()
    colours = figure.colorbar(mesh, cax=bar)
    colours.outline.set_edgecolor(FAINT)
    colours.set_label("Accuracy")
    arrange(Page(figure, [[axes]], (_WIDTH, _HEIGHT), title, subtitle, shared=bar))
    return figure


def _snapped(record: Record, depths: Sequence[float]) -> Record:
    """A record at the nearest of some depths, whatever the suite and the seed."""
    depth = record.place.get(DEPTH)
    assert isinstance(depth, int | float)
    nearest = min(depths, key=lambda each: abs(each - depth))
    axes: dict[str, Value] = {_ENTRIES: record.place.get(_ENTRIES) or 0, DEPTH: nearest}
    return record.model_copy(update={"axes": axes, "seed": 0, "suite": "", "recipe": None})
