"""Cells without a number: hatched, so that no colour of the scale can be mistaken for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path


@dataclass(frozen=True)
class Look:
    """How such a cell is drawn, and its words in the legend."""

    face: str
    hatch: str
    line: str
    words: str


def hatch_cells(axes: Axes, mask: Any, look: Look, name: str) -> None:
    """Cover the cells where `mask` `[rows, columns]` is true; `name` labels the artist."""
    rectangles = _row_runs(mask)
    if rectangles:
        # One patch for all: a hatch costs the same for one cell as for a thousand.
        shape = Path.make_compound_path(*(Path(corners, closed=True) for corners in rectangles))
        patch = PathPatch(shape, facecolor=look.face, edgecolor=look.line, hatch=look.hatch, linewidth=0, label=name)
        axes.add_patch(patch)


def legend_patch(look: Look) -> Patch:
    """The look's entry in a legend."""
    return Patch(facecolor=look.face, edgecolor=look.line, hatch=look.hatch, linewidth=0.6, label=look.words)


def _row_runs(mask: Any) -> list[list[tuple[int, int]]]:
    """Corners of rectangles over the true cells, neighbours in a row joined."""
    found = []
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(int)))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            found.append([(start, row), (end, row), (end, row + 1), (start, row + 1), (start, row)])
    return found
