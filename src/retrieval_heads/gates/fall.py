"""How far a number fell between two runs, over all cells that pair."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from retrieval_heads.gates.expression import OWN_METRIC, SLACK
from retrieval_heads.gates.number import stored_number
from retrieval_heads.gates.pairing import Pairing
from retrieval_heads.gates.selection import Gap, place
from retrieval_heads.gates.tolerance import Tolerance
from retrieval_heads.runs.record import Record


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
    weights: tuple[float, ...]
    """Of each change in the mean; their sum is 1. Every cell counts the same, whatever its number of seeds."""
    before: float
    after: float
    limit: float
    """The accepted drop."""
    cells: int
    """Places of a needle, length and depth, each with its seeds."""

    @property
    def drop(self) -> float:
        """Above 0 where the number fell."""
        return math.fsum(self.drops)

    @property
    def drops(self) -> list[float]:
        """Each pair's share of the drop; their sum is the drop."""
        return [weight * change.drop for weight, change in zip(self.weights, self.changes, strict=True)]

    @property
    def exceeds(self) -> bool:
        """Whether the drop is above the tolerance."""
        return self.drop > self.limit + SLACK


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
    """Average over the seeds of a needle, length and depth, then over these."""
    cells = Counter(_cell_without_seed(change.record) for change in changes)
    weights = tuple(1 / (len(cells) * cells[_cell_without_seed(change.record)]) for change in changes)
    before, after = (
        math.fsum(weight * getattr(change, side) for weight, change in zip(weights, changes, strict=True))
        for side in ("before", "after")
    )
    return Fall(changes, weights, before, after, tolerance.drop(before), len(cells))


def _cell_without_seed(record: Record) -> tuple[object, ...]:
    haystack = record.recipe.haystack if record.recipe else ""
    return (record.suite, record.kind, haystack, record.arm, record.place.axes)


def label(name: str) -> str:
    """What to call a number in a sentence."""
    return name or "pass metric"
