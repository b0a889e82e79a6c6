"""Drawing panels of cells: colours, numbers, hatches and axes of a heatmap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from retrieval_heads.plots.grid import ERROR, MISSING, SKIPPED, UNPAIRED, Panel, value_labels
from retrieval_heads.plots.hatching import Look, hatch_cells, legend_patch
from retrieval_heads.plots.layout import Page, arrange, new_figure, spread, text_width
from retrieval_heads.plots.style import FAINT, INK, MIN_TEXT, PAPER, axis_title, printable, shorten
from retrieval_heads.runs.place import Value

# The order is that of the legend.
LOOKS = {
    SKIPPED: Look("#e3e5e9", "////", "#7d8491", "skipped"),
    ERROR: Look("#c3c7cf", "xxxx", INK, "error"),
    MISSING: Look(PAPER, "....", "#a8adb7", "not in the results"),
    UNPAIRED: Look("#e3e5e9", "\\\\\\\\", "#7d8491", "not measured in both runs"),
}
# A vector path for each cell makes an SVG slow to open beyond this many; the cells become one image in it.
_MAX_VECTOR_CELLS = 2500


@dataclass(frozen=True)
class Scale:
    """What the colours mean. `signed` values carry a sign in numbers, and a mark where no number fits."""

    cmap: Colormap
    limits: tuple[float, float]
    label: str
    signed: bool = False

    def number(self, value: float) -> str:
        """Two decimals; a bare 1 or 0 is exact, so that 0.996 does not pass for a perfect score."""
        if math.isnan(value):
            return ""
        sign = "+" if self.signed and value else ""
        return format(value, f"{sign}.0f" if value in (-1.0, 0.0, 1.0) else f"{sign}.2f")


def grid_figure(shown: Sequence[Panel], scale: Scale, *, title: str, subtitle: str) -> Figure:
    """Draw the panels with one colour bar and a legend of what is not a plain score."""
    figure = new_figure()
    rows, columns = (max(len(axis) for axis in axes) for axes in zip(*_axes_of(shown), strict=True))
    across, width, height = _panel_size(len(shown), rows, columns)
    width = max(width, 2.6)
    points = _number_points(figure, shown, scale, width / columns, height / rows)
    drawn: list[Axes] = []
    for panel in shown:
        axes = figure.add_subplot()
        _draw(axes, panel, scale, points)
        _label_axes(axes, panel, width, height, figure)
        # seaborn draws the whole figure once for each heatmap; what is hidden costs nothing then.
        axes.set_visible(False)
        drawn.append(axes)
    for axes in drawn:
        axes.set_visible(True)
    grid = [drawn[start : start + across] for start in range(0, len(drawn), across)]
    same = all(axes == _axes_of(shown)[0] for axes in _axes_of(shown))
    for index, axes in enumerate(drawn):
        if index % across:
            axes.set_ylabel("")
            axes.tick_params(labelleft=not same)
        if index + across < len(drawn):
            axes.set_xlabel("")
            axes.tick_params(labelbottom=not same)
    bar = figure.add_subplot()
    _colour_bar(figure, bar, drawn[0], shown, scale)
    legend = _legend(shown, scale, with_numbers=points is not None)
    arrange(Page(figure, grid, (width, height), title, subtitle, legend, shared=bar))
    return figure


def _axes_of(shown: Sequence[Panel]) -> list[tuple[list[Value], list[Value]]]:
    return [(panel.ys, panel.xs) for panel in shown]


def _panel_size(count: int, rows: int, columns: int) -> tuple[int, float, float]:
    """Panels in a row of the page, and inches of one panel: cells as large as a 12 inch page lets them."""
    if count == 1 or (columns > 20 and count <= 3):
        across = 1
    else:
        across = 2 if count <= 4 and columns > 5 else 3 if count <= 9 else 4
    across = min(across, count)
    width = min(0.62 * columns, (10.4, 5.4, 3.7, 2.9)[across - 1])
    height = min(0.36 * rows, (7.2, 4.4, 3.2, 2.8)[across - 1])
    # Room enough for the colour bar's label.
    return across, width, max(height, 1.8)


def _number_points(figure: Figure, shown: Sequence[Panel], scale: Scale, width: float, height: float) -> float | None:
    """Text size at which every number fits a cell of that many inches with some room; `None`: none does."""
    numbers = {scale.number(value) for panel in shown for value in panel.values.flat}
    longest = max(numbers, key=len)
    for points, room in ((8.0, 6), (7.5, 4), (MIN_TEXT, 3)):
        if height * 72 >= 1.5 * points and text_width(figure, longest, points) * 72 + room <= width * 72:
            return points
    return None


def _draw(axes: Axes, panel: Panel, scale: Scale, points: float | None) -> None:
    texts = np.vectorize(scale.number, otypes=[object])(panel.values)
    sns.heatmap(
        panel.values,
        ax=axes,
        cmap=scale.cmap,
        vmin=scale.limits[0],
        vmax=scale.limits[1],
        annot=texts if points else False,
        fmt="",
        annot_kws={"fontsize": points},
        cbar=False,
        xticklabels=False,
        yticklabels=False,
        # A fine light line keeps neighbours apart; among many cells it would wash out the colours.
        linewidths=0 if panel.values.size > 900 else 0.8,
        linecolor=PAPER,
        rasterized=panel.values.size > _MAX_VECTOR_CELLS,
    )
    faces = scale.cmap(Normalize(*scale.limits)(panel.values))
    for text in axes.texts:
        column, row = text.get_position()
        text.set_color(_readable_on(faces[int(row), int(column)]))
    for state, look in LOOKS.items():
        hatch_cells(axes, panel.states == state, look, state)
    if panel.partial.any():
        corners = [
            [(column + 0.74, row), (column + 1, row), (column + 1, row + 0.34)]
            for row, column in np.argwhere(panel.partial)
        ]
        axes.add_collection(PolyCollection(corners, facecolor=INK, edgecolor=PAPER, linewidth=0.5, label="partial"))
    if scale.signed and not points:
        # The two arms of the map look alike in grey; numbers would carry the sign.
        losses = np.argwhere(np.nan_to_num(panel.values) < 0)
        size = min(axes.bbox.width / panel.values.shape[1], axes.bbox.height / panel.values.shape[0])
        axes.scatter(
            losses[:, 1] + 0.5,
            losses[:, 0] + 0.5,
            marker="_",
            s=min(size * 0.4, 7.0) ** 2,
            linewidth=0.9,
            color=[_readable_on(faces[row, column]) for row, column in losses],
            label="lower",
        )
    for spine in axes.spines.values():
        spine.set_visible(True)


def _readable_on(colour: tuple[float, float, float, float]) -> str:
    """Dark or white text, whichever has the higher contrast (WCAG relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return INK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.21 else PAPER


def _label_axes(axes: Axes, panel: Panel, width: float, height: float, figure: Figure) -> None:
    points = mpl.rcParams["xtick.labelsize"]
    line = points / 72 * 1.35
    across = value_labels(panel.xs)
    widest = max(text_width(figure, label, points) for label in across) + 0.08
    # Upright labels cost a reader her neck: only where fewer than eight would fit the other way.
    level = len(spread(len(across), width, widest)) >= min(len(across), 8)
    columns = spread(len(across), width, widest if level else line)
    axes.set_xticks([c + 0.5 for c in columns], [across[c] for c in columns])
    if not level:
        axes.tick_params(axis="x", labelrotation=90)
    down = value_labels(panel.ys)
    shown = spread(len(down), height, line)
    axes.set_yticks([r + 0.5 for r in shown], [down[r] for r in shown])
    axes.tick_params(axis="y", labelrotation=0)
    x, y = panel.sides
    axes.set_xlabel(axis_title(x))
    axes.set_ylabel(axis_title(y))
    label = panel.label
    if label:
        while text_width(figure, label, mpl.rcParams["axes.titlesize"], "bold") > width and len(label) > 4:
            label = printable(label[:-2]).rstrip("… ") + "…"
        axes.set_title(label)


def _colour_bar(figure: Figure, bar_axes: Axes, heatmap: Axes, shown: Sequence[Panel], scale: Scale) -> None:
    values = np.concatenate([panel.values[~np.isnan(panel.values)] for panel in shown])
    over, under = bool((values > scale.limits[1]).any()), bool((values < scale.limits[0]).any())
    extend = "both" if over and under else "max" if over else "min" if under else "neither"
    bar = figure.colorbar(heatmap.collections[0], cax=bar_axes, extend=extend)
    low, high = scale.limits
    marks = [low, low / 2, 0.0, high / 2, high] if scale.signed else np.linspace(low, high, 6).tolist()
    bar.set_ticks(marks, labels=[f"{mark:+.3g}" if scale.signed and mark else f"{mark:.3g}" for mark in marks])
    bar.outline.set_edgecolor(FAINT)
    bar.outline.set_linewidth(0.6)
    bar.set_label(shorten(scale.label, 26))


def _legend(shown: Sequence[Panel], scale: Scale, *, with_numbers: bool) -> list[Any]:
    states = {state for panel in shown for state in panel.states.flat}
    entries: list[Any] = [legend_patch(look) for state, look in LOOKS.items() if state in states]
    if scale.signed and not with_numbers and any((panel.values < 0).any() for panel in shown):
        entries.append(Line2D([], [], marker="_", linestyle="", markersize=6, markeredgecolor=INK, label="lower score"))
    if any(panel.partial.any() for panel in shown):
        entries.append(
            Line2D(
                [],
                [],
                marker=[(-1, 1), (1, 1), (1, -1)],
                linestyle="",
                markersize=7,
                markerfacecolor=INK,
                markeredgewidth=0,
                label="mean without the records of this cell that have no score",
            )
        )
    return entries
