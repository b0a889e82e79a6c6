"""Rings around the top heads, with names that neither overlap nor leave the panel."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from retrieval_heads.plots.layout import text_width
from retrieval_heads.plots.style import INK, PAPER

# More rings than this are not named: the names would hide the heads.
MAX_NAMED_HEADS = 12
_NAME_POINTS = 7.5
_RING_POINTS = 8.0

Box = tuple[float, float, float, float]


def ring_heads(figure: Figure, axes: Axes, top: Sequence[tuple[int, int]], names: Sequence[str]) -> None:
    """Ring the heads of an arranged panel, and name them where a name finds room.

    Args:
        figure: The page; its size is final.
        axes: The panel, a unit square for each head.
        top: Heads, each (layer row, head).
        names: One for each head, or none at all.
    """
    if not top:
        return
    halo = [withStroke(linewidth=2.8, foreground=PAPER)]
    corner, opposite = axes.transData.transform([(0, 0), (1, 1)])
    cell = min(abs(opposite - corner)) / figure.dpi * 72
    diameter = max(_RING_POINTS, min(0.9 * cell, 13.0))
    axes.scatter(
        [head + 0.5 for _, head in top],
        [layer + 0.5 for layer, _ in top],
        s=diameter**2,
        facecolor="none",
        edgecolor=INK,
        linewidth=1.2,
        path_effects=halo,
        clip_on=False,
        zorder=4,
        label="top",
    )
    if not names:
        return
    centres = axes.transData.transform([(head + 0.5, layer + 0.5) for layer, head in top]) / figure.dpi * 72
    extent = axes.get_window_extent()
    frame = [side / figure.dpi * 72 for side in (extent.x0, extent.y0, extent.x1, extent.y1)]
    radius = diameter / 2 + 1
    taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in centres]
    for (layer, head), name, (x, y) in zip(top, names, centres, strict=True):
        size = (text_width(figure, name, _NAME_POINTS, "bold") * 72 + 1.5, _NAME_POINTS * 1.15)
        box = _free_box(x, y, radius, size, taken, frame)
        if box is None:
            continue
        taken.append(box)
        axes.annotate(
            name,
            (head + 0.5, layer + 0.5),
            xytext=((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_NAME_POINTS,
            fontweight="bold",
            path_effects=halo,
            zorder=5,
        )


def _free_box(
    x: float, y: float, radius: float, size: tuple[float, float], taken: Sequence[Box], frame: Sequence[float]
) -> Box | None:
    """Where a name fits beside its ring, in points: right first, then around it, inside the panel."""
    width, height = size
    apart = radius + 0.5
    places = [(apart, -height / 2), (-apart - width, -height / 2)]
    for low in (apart, -apart - height, apart + height, -apart - 2 * height):
        places += [(-width / 2, low), (-radius, low), (radius - width, low)]
    for across, up in places:
        box = (x + across, y + up, x + across + width, y + up + height)
        inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
        if inside and not any(_overlap(box, other) for other in taken):
            return box
    return None


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
