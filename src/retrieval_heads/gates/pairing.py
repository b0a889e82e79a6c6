"""Which record of a run answers the question of which record of the baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from retrieval_heads.gates.selection import Gap, cell_name, last_of_each, place, select, unworded
from retrieval_heads.runs.record import Record


@dataclass(frozen=True)
class Pair:
    """The same cell in both runs, measured in both; its question or answer may have been worded anew."""

    current: Record
    baseline: Record


@dataclass(frozen=True)
class Pairing:
    """The pairs, and the selected cells that have none."""

    pairs: tuple[Pair, ...]
    gaps: tuple[Gap, ...]
    total: int
    """Cells that were selected."""
    warnings: tuple[str, ...]


def pair_records(
    current: Sequence[Record],
    baseline: Sequence[Record],
    selected: Collection[str] | None,
    *,
    allow_new: bool,
    allow_skipped: bool,
) -> Pairing:
    """Pair records by `cell`, and by `suite` too where several suites of one side have a cell of that name.

    What is left of a suite on both sides pairs by needle, seed, arm, length and depth: there the suite says something
    else now, which `compare_questions` tells.

    Args:
        current: The run's records.
        baseline: The baseline's.
        selected: Names of the cells that were to be measured; without it, all of the run and all that the
            baseline measured.
        allow_new: A cell that the baseline did not measure stays out, with a warning.
        allow_skipped: A skipped cell stays out.
    """
    shared = _shared_names(current) | _shared_names(baseline)
    after = [_named(record, shared) for record in current]
    before, warnings = last_of_each(_named(record, shared) for record in baseline)
    measured = {record.cell: record for record in before.values() if record.status in ("pass", "low")}
    asked = {record.cell for record in after} | set(() if selected is None else _spell(selected, after, shared))
    reworded = _reworded(after, [record for cell, record in measured.items() if cell not in asked], measured)
    wanted = set(_spell(selected, after, shared)) if selected is not None else asked | set(measured)
    wanted -= {record.cell for record in reworded.values()}
    measured |= reworded
    cells = select(after, wanted, allow_skipped=allow_skipped)
    spared = {record.cell for record in before.values() if record.status == "spared"}
    new = [record for record in cells.measured if record.cell not in measured and record.cell not in spared]
    pairs = [Pair(record, measured[record.cell]) for record in cells.measured if record.cell in measured]
    gaps = [] if allow_new else [Gap(place(record), "not in the baseline") for record in new]
    compared = [f"{len(new)} of {cells.total} cells are new and not compared"] if new and allow_new else []
    baseline_warnings = [f"baseline: {warning}" for warning in warnings]
    return Pairing(tuple(pairs), (*cells.gaps, *gaps), cells.total, (*cells.warnings, *baseline_warnings, *compared))


def _reworded(current: Iterable[Record], gone: Iterable[Record], measured: Mapping[str, Record]) -> dict[str, Record]:
    """By the name of a cell that the baseline has not, the record of the one that stood in its place there.

    Args:
        current: The run's records.
        gone: Those of the baseline that nobody asks any more.
        measured: All that the baseline measured, by name.
    """
    places: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in gone:
        if record.recipe is not None:  # else it does not say what it was asked
            places[(record.suite_id, unworded(record.cell))].append(record)
    new = [record for record in current if record.cell not in measured and record.recipe is not None]
    found = {record.cell: places.get((record.suite_id, unworded(record.cell)), []) for record in new}
    return {cell: there[0] for cell, there in found.items() if len(there) == 1 and unworded(cell)}


def _shared_names(records: Iterable[Record]) -> set[str]:
    suites: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        suites[cell_name(record)].add(record.suite)
    return {cell for cell, names in suites.items() if len(names) > 1}


def _named(record: Record, shared: Collection[str]) -> Record:
    """The record under a name that is unique on its side."""
    cell = cell_name(record)
    unique = f"{record.suite}::{cell}" if cell in shared else cell
    return record.model_copy(update={"cell": unique})


def _spell(selected: Collection[str], renamed: Iterable[Record], shared: Collection[str]) -> Iterable[str]:
    """The selected names as `_named` gives them; of a shared one, those that the run has."""
    unique: defaultdict[str, list[str]] = defaultdict(list)
    for record in renamed:
        unique[record.cell.removeprefix(f"{record.suite}::")].append(record.cell)
    for cell in selected:
        yield from (unique.get(cell) or [cell]) if cell in shared else [cell]
