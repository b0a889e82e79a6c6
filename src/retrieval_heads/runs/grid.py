"""Records laid out by their places: what every table and picture of a suite is made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from retrieval_heads.runs.place import Value, in_order
from retrieval_heads.runs.record import Record

At = tuple[Value, Value]
"""x and y; y is empty where the task has one axis."""


@dataclass(frozen=True)
class Table:
    """A grid as a table of text.

    Args:
        axes: What goes down, and what goes across; the second is empty where the task has one axis.
        downs: Values that go down, in order.
        acrosses: Values that go across, in order.
        cells: Records by value down and value across.
    """

    axes: tuple[str, str]
    downs: list[Value]
    acrosses: list[Value]
    cells: Mapping[At, list[Record]]


@dataclass(frozen=True)
class Grid:
    """The records of a suite.

    Args:
        sides: The axes that x and y are; y is empty where the task has one axis.
        xs: Values on x, in order.
        ys: Values on y, in order.
        cells: Records by x and y; several where needles, seeds or the like differ.
    """

    sides: tuple[str, str]
    xs: list[Value]
    ys: list[Value]
    cells: Mapping[At, list[Record]]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Grid:
        """The grid of any records; of tasks with other axes, the first record's names stand."""
        cells: dict[At, list[Record]] = {}
        sides: tuple[str, ...] = ()
        for record in records:
            sides = sides or record.place.sides
            cells.setdefault(at(record), []).append(record)
        x, y = (*sides, "", "")[:2]
        return cls((x, y), in_order(place[0] for place in cells), in_order(place[1] for place in cells), cells)

    @property
    def table(self) -> Table:
        """x goes down, as lengths do; but names on y do, which are longer than numbers."""
        if not any(isinstance(y, str) and y for y in self.ys):
            return Table(self.sides, self.xs, self.ys, self.cells)
        (x, y), cells = self.sides, {(y, x): held for (x, y), held in self.cells.items()}
        return Table((y, x), self.ys, self.xs, cells)


def at(record: Record) -> At:
    """Where a record stands in its grid."""
    x, y = (*record.place.grid, "", "")[:2]
    return x, y
