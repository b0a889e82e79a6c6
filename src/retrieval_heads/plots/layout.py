"""Placing panels in inches: each panel has the size it was planned with, and the page grows around it.

matplotlib's own layout engines give panels what is left of a fixed page. Here numbers in the cells must fit,
so the panel comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from retrieval_heads.plots.style import FAINT, printable

MARGIN = 0.18
GAP = 0.28
_TITLE_LINES = 3
_MIN_WIDTH = 4.6


@dataclass(frozen=True)
class Page:
    """What stands on a page: panels in rows, a heading above, a legend below.

    `beside` maps a panel to the colour bar that stands at its right and belongs to it; `shared` is one bar
    for all panels. Sizes are inches.
    """

    figure: Figure
    rows: Sequence[Sequence[Axes]]
    size: tuple[float, float]
    title: str
    subtitle: str
    legend: Sequence[Artist] = ()
    beside: dict[Axes, Axes] | None = None
    shared: Axes | None = None


def new_figure() -> Figure:
    """A figure on an Agg canvas, which needs no display and no pyplot state."""
    figure = Figure(figsize=(8, 6))
    FigureCanvasAgg(figure)
    return figure


def arrange(page: Page) -> None:
    """Give every panel its size and every text its place, and the figure the size that holds them."""
    figure, (width, height) = page.figure, page.size
    bars = page.beside or {}
    everything = [axes for row in page.rows for axes in row]
    figure_width, figure_height = figure.get_size_inches()
    for axes in everything:
        axes.set_position((0, 0, width / figure_width, height / figure_height))
        if axes in bars:
            _set_beside(bars[axes], width, height, figure)
    over = {axes: _overhang(figure, axes, bars.get(axes)) for axes in everything}
    columns = max(len(row) for row in page.rows)
    left = [max(over[row[c]][0] for row in page.rows if c < len(row)) for c in range(columns)]
    right = [max(over[row[c]][1] for row in page.rows if c < len(row)) for c in range(columns)]
    below = [max(over[axes][2] for axes in row) for row in page.rows]
    above = [max(over[axes][3] for axes in row) for row in page.rows]

    grid_width = sum(left) + sum(right) + columns * width + (columns - 1) * GAP
    grid_height = sum(below) + sum(above) + len(page.rows) * height + (len(page.rows) - 1) * GAP
    shared_width = 0.0
    if page.shared is not None:
        bar_height = min(height * len(page.rows), 4.2)
        page.shared.set_position((0, 0, 0.14 / figure_width, bar_height / figure_height))
        bar_over = _overhang(figure, page.shared, None)
        shared_width = GAP + bar_over[0] + 0.14 + bar_over[1]
    total_width = max(_MIN_WIDTH, 2 * MARGIN + grid_width + shared_width)
    heading = _heading(page, total_width - 2 * MARGIN)
    legend = _legend(page, total_width - 2 * MARGIN)
    heading_height = sum(text_height for _, text_height in heading) + (0.1 if heading else 0)
    legend_height = _extent(legend)[1] + 0.16 if legend is not None else 0.0
    total_height = 2 * MARGIN + heading_height + grid_height + legend_height

    figure.set_size_inches(total_width, total_height)
    top = total_height - MARGIN
    for text, text_height in heading:
        text.set_position((MARGIN / total_width, top / total_height))
        top -= text_height
    top -= 0.1 if heading else 0
    grid_top = top
    for r, row in enumerate(page.rows):
        top -= above[r] + height
        x = MARGIN
        for c, axes in enumerate(row):
            x += left[c]
            axes.set_position((x / total_width, top / total_height, width / total_width, height / total_height))
            if axes in bars:
                _set_beside(bars[axes], width, height, figure, x, top)
            x += width + right[c] + GAP
        top -= below[r] + GAP
    if page.shared is not None:
        x = MARGIN + grid_width + GAP + bar_over[0]
        y = grid_top - above[0] - bar_height
        page.shared.set_position((x / total_width, y / total_height, 0.14 / total_width, bar_height / total_height))
    if legend is not None:
        legend.set_bbox_to_anchor((MARGIN / total_width, MARGIN / total_height), figure.transFigure)


def spread(count: int, room: float, pitch: float) -> list[int]:
    """Which of `count` evenly spaced ticks to label when each needs `pitch` of the `room`, ends first."""
    most = max(1, int(room / pitch))
    step = next((s for s in range(1, count + 1) if (count - 1) // s + 1 <= most), count)
    chosen = list(range(0, count, step))
    if chosen[-1] != count - 1:
        # The far end is worth more than an even step: it is the longest context or the last layer.
        if len(chosen) > 1 and (count - 1 - chosen[-1]) * room / count < pitch:
            chosen.pop()
        if (count - 1 - chosen[-1]) * room / count >= pitch:
            chosen.append(count - 1)
    return chosen


def text_width(figure: Figure, text: str, points: float, weight: str = "normal") -> float:
    """Inches that one line of text takes."""
    artist = figure.text(0, 0, text, fontsize=points, fontweight=weight)
    width = _extent(artist)[0]
    artist.remove()
    return width


def _set_beside(bar: Axes, width: float, height: float, figure: Figure, x: float = 0.0, y: float = 0.0) -> None:
    figure_width, figure_height = figure.get_size_inches()
    bar_height = min(height, 3.0)
    bar.set_position(
        (
            (x + width + 0.14) / figure_width,
            (y + height - bar_height) / figure_height,
            0.12 / figure_width,
            bar_height / figure_height,
        )
    )


def _overhang(figure: Figure, axes: Axes, bar: Axes | None) -> tuple[float, float, float, float]:
    """Inches that labels and the own colour bar take outside the panel: left, right, below, above."""
    inner = axes.get_window_extent()
    boxes: list[Any] = [inner, axes.get_tightbbox()]
    if bar is not None:
        boxes.append(bar.get_tightbbox())
    outer = Bbox.union(boxes)
    dpi = figure.dpi
    return (
        (inner.x0 - outer.x0) / dpi,
        (outer.x1 - inner.x1) / dpi,
        (inner.y0 - outer.y0) / dpi,
        (outer.y1 - inner.y1) / dpi,
    )


def _extent(artist: Any) -> tuple[float, float]:
    figure = artist.get_figure()
    box = artist.get_window_extent()
    return box.width / figure.dpi, box.height / figure.dpi


def _heading(page: Page, width: float) -> list[tuple[Any, float]]:
    """Title and subtitle, wrapped to the page, each with its height in inches."""
    heading = []
    for text, points, weight, color in (
        (page.title, 13.0, "bold", None),
        (page.subtitle, 9.0, "normal", FAINT),
    ):
        lines = _wrap(page.figure, printable(text), width, points, weight)
        if lines:
            artist = page.figure.text(
                0, 0, "\n".join(lines), fontsize=points, fontweight=weight, va="top", linespacing=1.25
            )
            if color:
                artist.set_color(color)
            heading.append((artist, _extent(artist)[1] + 0.07))
    return heading


def _wrap(figure: Figure, text: str, width: float, points: float, weight: str) -> list[str]:
    """Lines no wider than the page by measure; scripts without spaces break anywhere."""
    lines: list[str] = []
    while text:
        if text_width(figure, text, points, weight) <= width:
            return [*lines, text]
        if len(lines) == _TITLE_LINES - 1:
            return [*lines, _longest(figure, text, width, points, weight, "…") + "…"]
        head = _longest(figure, text, width, points, weight)
        space = head.rfind(" ") if text[len(head) : len(head) + 1] != " " else len(head)
        # A lone space near the start would leave a nearly empty line.
        cut = space if space > len(head) // 2 else len(head)
        lines.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return lines


def _longest(figure: Figure, text: str, width: float, points: float, weight: str, end: str = "") -> str:
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(figure, text[:middle] + end, points, weight) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def _legend(page: Page, width: float) -> Any:
    """The legend in as many columns as the page holds."""
    if not page.legend:
        return None
    for columns in range(len(page.legend), 0, -1):
        legend = page.figure.legend(handles=list(page.legend), loc="lower left", ncols=columns)
        if columns == 1 or _extent(legend)[0] <= width:
            return legend
        legend.remove()
    return None
