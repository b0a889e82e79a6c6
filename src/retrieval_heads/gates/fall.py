"""How far a number fell between two runs, over all cells that pair."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from retrieval_heads.gates.expression import OWN_METRIC, SLACK
from retrieval_heads.gates.noise import Bound, bound_drop, mean_over_cells
from retrieval_heads.gates.number import stored_number
from retrieval_heads.gates.pairing import Pairing
from retrieval_heads.gates.selection import Gap, place
from retrieval_heads.gates.tolerance import Tolerance
from retrieval_heads.results import Record

FEWEST_PAIRS: Final = 10
"""Below this the bootstrap says nothing, and the point drop alone decides."""


@dataclass(frozen=True)
class Change:
    """One number of one cell, before and after."""

    record: Record
    before: float
    after: float

    @property
    def drop(self) -> float:
        """Above 0 where the number fell."""
        return self.before - self.after


@dataclass(frozen=True)
class Fall:
    """One number over all pairs, set against its tolerance."""

    changes: tuple[Change, ...]
    cells: tuple[tuple[Change, ...], ...]
    """The changes by cell: the seeds of one needle, length and depth together."""
    before: float
    after: float
    drop: float
    limit: float
    bound: Bound | None
    """`None` where the drop is accepted anyhow, or the pairs are too few."""

    @property
    def exceeds(self) -> bool:
        """Whether the drop is above the tolerance."""
        return self.drop > self.limit + SLACK

    @property
    def hidden(self) -> bool:
        """Whether a drop above the tolerance may be noise alone."""
        return self.exceeds and self.bound is not None and not self.bound.excludes_zero


def paired_changes(name: str, pairing: Pairing) -> tuple[tuple[Change, ...], tuple[Gap, ...]]:
    """The pairs that hold a number on both sides, and all selected cells that give none."""
    changes, gaps = [], list(pairing.gaps)
    for pair in pairing.pairs:
        # One name for both sides: the baseline may have passed its cells by another metric.
        number = pair.current.metric if name == OWN_METRIC else name
        before, after = stored_number(pair.baseline, number), stored_number(pair.current, number)
        if before is None or after is None:
            side = " in the baseline" if before is None else ""
            gaps.append(Gap(place(pair.current), f"without {label(name)}{side}"))
        elif not math.isfinite(before) or not math.isfinite(after):
            side = " in the baseline" if not math.isfinite(before) else ""
            gaps.append(Gap(place(pair.current), f"with {label(name)} not a number{side}"))
        else:
            changes.append(Change(pair.current, before, after))
    return tuple(changes), tuple(gaps)


def measure_fall(changes: tuple[Change, ...], tolerance: Tolerance) -> Fall:
    """Average over seeds, then over cells; the bootstrap runs only where it decides something."""
    cells = tuple(_by_cell(changes))
    before = mean_over_cells([[change.before for change in seeds] for seeds in cells])
    after = mean_over_cells([[change.after for change in seeds] for seeds in cells])
    drops = [[change.drop for change in seeds] for seeds in cells]
    fall = Fall(changes, cells, before, after, mean_over_cells(drops), tolerance.drop(before), None)
    if fall.exceeds and len(changes) >= FEWEST_PAIRS:
        return replace(fall, bound=bound_drop(drops))
    return fall


def _by_cell(changes: Iterable[Change]) -> Iterator[tuple[Change, ...]]:
    cells: defaultdict[tuple[object, ...], list[Change]] = defaultdict(list)
    for change in changes:
        cells[_cell_without_seed(change.record)].append(change)
    yield from map(tuple, cells.values())


def _cell_without_seed(record: Record) -> tuple[object, ...]:
    haystack = record.recipe.haystack if record.recipe else ""
    question = (record.suite, record.kind, record.needle_name or record.needle, haystack, record.arm)
    return (*question, record.context_length, record.document_depth)


def label(name: str) -> str:
    """What to call a number in a sentence."""
    return name or "pass metric"
