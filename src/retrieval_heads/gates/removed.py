"""What a baseline measured and the suites of today do not ask any more: a suite that shrinks must not stay green."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from retrieval_heads.gates.selection import cell_name, place, unworded
from retrieval_heads.gates.verdict import WORST_SHOWN, Outcome
from retrieval_heads.runs.record import Record

GATE: Final = "every cell of the baseline is there"


@dataclass(frozen=True)
class Shrinkage:
    """The measured cells of a baseline that no collected suite asks.

    Args:
        removed: By suite, those that are gone.
        uncollected: By suite, how many belong to suites that this session did not collect.
        measured: By suite, how many the baseline holds.
    """

    removed: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)
    uncollected: Mapping[str, int] = field(default_factory=dict)
    measured: Mapping[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What is gone, a sentence for each suite."""
        return [
            f"{len(gone)} of the baseline's {self.measured[suite]} cells of {suite} are gone"
            for suite, gone in self.removed.items()
        ]

    def outcome(self, suite: str) -> Outcome:
        """The broken gate of a suite that lost cells."""
        gone, before = self.removed[suite], self.measured[suite]
        sentence = f"{len(gone)} of the {before} cells that the baseline measured are not in the suite any more"
        if len(gone) == before:
            sentence = f"the baseline measured {before} cells of {suite}, and none of them is asked any more"
        return Outcome(
            gate=GATE,
            passed=False,
            measured=float(len(gone)),
            limit=0.0,
            sentence=f"{sentence}; --rh-allow-removed lets them go",
            worst=tuple(place(record) for record in gone[:WORST_SHOWN]),
            suite=suite,
        )


def cells_of(records: Iterable[Record]) -> dict[str, list[str]]:
    """The cells of records by suite."""
    cells: dict[str, list[str]] = {}
    for record in records:
        cells.setdefault(record.suite_id, []).append(cell_name(record))
    return cells


def shrinkage(
    baseline: Iterable[Record],
    collected: Mapping[str, Collection[str]],
    beside: Mapping[str, Collection[str]],
    gone_kinds: Collection[str],
) -> Shrinkage:
    """Find the measured cells of a baseline that are asked no more.

    A cell that another suite asks now, and did not then, was moved there: its suite was renamed or split. One that its
    suite asks in other words is not gone either: the comparison of questions tells that.

    Args:
        baseline: Its records; those that name no suite (the predecessor's) are passed over.
        collected: The cells of each collected suite before any was deselected, by kind and name.
        beside: The same of suites that lie in the same folders and were not collected.
        gone_kinds: A suite of one of these kinds that is in neither is gone; one of another may lie elsewhere.
    """
    measured: dict[tuple[str, str], Record] = {}
    for record in baseline:
        if record.suite and record.status in ("pass", "low"):
            measured[(record.suite_id, cell_name(record))] = record
    asked = {suite: set(cells) for suite, cells in collected.items()}
    new = {(suite, cell) for suite, cells in asked.items() for cell in cells if (suite, cell) not in measured}
    moved = {cell for _, cell in new}
    reworded = {(suite, unworded(cell)) for suite, cell in new if unworded(cell)}
    removed: dict[str, list[Record]] = {}
    uncollected: dict[str, int] = {}
    totals: dict[str, int] = {}
    for (suite, cell), record in measured.items():
        totals[suite] = totals.get(suite, 0) + 1
        if cell in asked.get(suite, ()) or cell in moved:
            continue
        if record.recipe is not None and (suite, unworded(cell)) in reworded:
            continue
        if suite in asked or (suite not in beside and record.kind in gone_kinds):
            removed.setdefault(suite, []).append(record)
        else:
            uncollected[suite] = uncollected.get(suite, 0) + 1
    return Shrinkage({suite: tuple(records) for suite, records in removed.items()}, uncollected, totals)
