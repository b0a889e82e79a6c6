"""The selected cells of a run: what was measured, and the gaps that no mean may hide."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from retrieval_heads.runs.record import Record

Values = list[tuple[Record, float]]


@dataclass(frozen=True)
class Gap:
    """A selected cell without a value."""

    cell: str
    """As `length/depth`, or the cell's name where that says neither."""
    why: str
    """Completes "3 of 44 selected cells ...", such as `in error`."""


@dataclass(frozen=True)
class Selection:
    """The selected cells of a run, told apart by what became of them."""

    measured: tuple[Record, ...]
    allowed: tuple[Record, ...]
    """Skipped cells that may stay out."""
    gaps: tuple[Gap, ...]
    warnings: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Cells that were selected."""
        return len(self.measured) + len(self.allowed) + len(self.gaps)


def select(records: Iterable[Record], selected: Collection[str], *, allow_skipped: bool = False) -> Selection:
    """Match the records of a run with the cells it was to measure.

    Args:
        records: Those of other cells are left out; of several for one cell the last counts.
        selected: Names of cells (`Record.cell`).
        allow_skipped: A skipped cell is no gap.
    """
    wanted = set(selected)
    found, warnings = last_of_each(record for record in records if cell_name(record) in wanted)
    measured, allowed = [], []
    gaps = [Gap(_place_in(cell), "without a result") for cell in sorted(wanted - {cell for _, cell in found})]
    for record in found.values():
        if record.status == "spared":
            continue  # nobody was to measure it
        if record.status == "skipped":
            if allow_skipped:
                allowed.append(record)
            else:
                gaps.append(Gap(place(record), "skipped"))
        elif record.status == "error":
            gaps.append(Gap(place(record), "in error"))
        else:
            measured.append(record)
    return Selection(tuple(measured), tuple(allowed), tuple(gaps), warnings)


def last_of_each(records: Iterable[Record]) -> tuple[dict[tuple[str, str], Record], tuple[str, ...]]:
    """The last record of each (suite, cell), and a warning where there were several."""
    last: dict[tuple[str, str], Record] = {}
    several = set()
    for record in records:
        key = (record.suite, cell_name(record))
        if key in last:
            several.add(key)
        last[key] = record
    if not several:
        return last, ()
    cells = "1 cell has" if len(several) == 1 else f"{len(several)} cells have"
    return last, (f"{cells} several records ({min(several)[1]}): the last of each counts",)


def valued(records: Iterable[Record], number: Callable[[Record], float | None], name: str) -> tuple[Values, list[Gap]]:
    """The records with their finite values, and a gap for each one that has none."""
    values, gaps = [], []
    for record in records:
        value = number(record)
        if value is None:
            gaps.append(Gap(place(record), f"without {name or 'a metric'}"))
        elif not math.isfinite(value):
            gaps.append(Gap(place(record), f"with {name or 'a metric'} not a number"))
        else:
            values.append((record, value))
    return values, gaps


def describe(gaps: Sequence[Gap], total: int) -> str:
    """Such as "3 of 44 selected cells without a result, 1 in error"."""
    counts = Counter(gap.why for gap in gaps).items()
    parts = [
        f"{count} of {total} selected cells {why}" if position == 0 else f"{count} {why}"
        for position, (why, count) in enumerate(counts)
    ]
    return ", ".join(parts)


def name_gaps(gaps: Iterable[Gap]) -> list[str]:
    """One entry a cell for the list of worst cells."""
    return [f"{gap.cell} {gap.why}" for gap in gaps]


def cell_name(record: Record) -> str:
    """The record's `cell`; for the predecessor's records, which have none, one of the same kind."""
    if record.cell:
        return record.cell
    said = hashlib.sha256(record.needle.strip().encode()).hexdigest()[:8]
    return f"{said}/len_{record.context_length}/depth_{record.document_depth:g}"


def unworded(cell: str) -> str:
    """A cell's name without haystack and wording: needle, seed, arm, length and depth; empty where it has no wording.

    One suite asks once what goes by that name, so a cell of it that has another wording now is the same cell, changed.
    """
    found = re.fullmatch(r".*/([^/]+)-[0-9a-f]{8}/(seed_\d+/.*)", cell)
    return f"{found[1]}/{found[2]}" if found else ""


def place(record: Record) -> str:
    """A cell as its `length/depth`, in tokens and percent; of another task, its values on the grid's sides."""
    return str(record.place)


def _place_in(cell: str) -> str:
    found = re.search(r"\blen_(\d+)/depth_([\d.]+)", cell)
    return f"{found[1]}/{found[2]}" if found else cell
