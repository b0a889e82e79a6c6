"""Thresholds: does a run reach what its suite demands?"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from retrieval_heads.gates.expression import (
    OWN_METRIC,
    SLACK,
    Aggregate,
    Agreement,
    EffectiveLength,
    Gate,
    How,
)
from retrieval_heads.gates.head_agreement import Draw, HeadMeans, judge_heads
from retrieval_heads.gates.number import number_names, stored_number
from retrieval_heads.gates.selection import Gap, Selection, Values, describe, name_gaps, place, select, valued
from retrieval_heads.gates.verdict import WORST_SHOWN, Inconclusive, Outcome, Verdict, plain
from retrieval_heads.runs.place import LENGTH, Value, in_order, shown
from retrieval_heads.runs.record import Record, finite_mean


@dataclass(frozen=True)
class _Measured:
    value: float
    blamed: Values
    """The cells that a broken gate names its worst of."""
    where: str = ""
    groups: Mapping[str, float] = field(default_factory=dict)
    """The means that an aggregate over an axis is made of."""


def check(
    gates: Iterable[Gate],
    records: Iterable[Record],
    selected: Collection[str],
    *,
    allow_skipped: bool = False,
    suite: str = "",
    heads: HeadMeans | None = None,
    baseline_heads: HeadMeans | None = None,
    drawn: Draw | None = None,
    inconclusive: Inconclusive = "fail",
) -> Verdict:
    """Judge the gates of one suite.

    A gate breaks when its value is beyond the limit, and also when a selected cell has no result, is in
    error, lacks the number or holds NaN, when no cell holds that number, and when nothing was measured.

    Args:
        gates: The suite's gates.
        records: The suite's records; those of cells that were not selected are left out.
        selected: Names of the cells that were to be measured (`Record.cell`).
        allow_skipped: A skipped cell stays out of means instead of breaking the gate.
        suite: Stands before each line, where there are several suites.
        heads: The run's mean head scores by name, each `[layers, heads]`; for gates on heads.
        baseline_heads: The baseline's.
        drawn: The run's mean scores under other weights of its needles and texts.
        inconclusive: Whether a gate on heads that chance may explain fails the run.
    """
    cells = select(records, selected, allow_skipped=allow_skipped)
    outcomes = tuple(
        judge_heads(gate, gate.measure, heads, baseline_heads, cells, suite, drawn, inconclusive)
        if isinstance(gate.measure, Agreement)
        else _judge(gate, cells, suite)
        for gate in gates
    )
    return Verdict(outcomes, cells.warnings)


def _judge(gate: Gate, cells: Selection, suite: str) -> Outcome:
    name = gate.measure.number
    known = number_names(cells.measured)
    if cells.measured and name != OWN_METRIC and name not in known:
        held = f"no measured cell holds {name}; they hold {', '.join(sorted(known))}"
        sentence = f"{gate.measure} has no value, must be {gate.requirement}: {held}"
        return Outcome(str(gate), False, None, gate.limit, sentence, suite=suite)
    values, unvalued = valued(cells.measured, partial(stored_number, name=name), name)
    gaps = [*cells.gaps, *unvalued]
    if not values:
        return _unmeasured(gate, gaps, cells.total, suite)
    measured = _measure(gate, values, cells.allowed)
    passed = gate.holds(measured.value) and not gaps
    sentence = f"{gate.measure} is {plain(measured.value, gate.limit)}{measured.where}, must be {gate.requirement}"
    if gaps:
        sentence += f", but {describe(gaps, cells.total)}"
    if not passed and (cut_off := sum(record.is_cut_off for record in cells.measured)):
        sentence += f"; {cut_off} of {len(cells.measured)} answers were cut off while thinking"
    worst = () if passed else _worst(gate, gaps, measured)
    return Outcome(str(gate), passed, measured.value, gate.limit, sentence, worst, suite)


def _unmeasured(gate: Gate, gaps: list[Gap], total: int, suite: str) -> Outcome:
    why = f": {describe(gaps, total)}" if gaps else ""
    sentence = f"{gate.measure} has no value, must be {gate.requirement}: nothing was measured{why}"
    return Outcome(str(gate), False, None, gate.limit, sentence, tuple(name_gaps(gaps))[:WORST_SHOWN], suite)


def _measure(gate: Gate, values: Values, allowed: tuple[Record, ...]) -> _Measured:
    match gate.measure:
        case EffectiveLength(share):
            return _effective_length(share, values, {record.place.get(LENGTH) for record in allowed})
        case Aggregate(how, over=over) if over is not None:
            return _over_groups(how, over, values)
        case Aggregate(how):
            return _Measured(_aggregate(how, [value for _, value in values]), values)
        case Agreement():
            raise AssertionError("judge_heads judges these")


def _over_groups(how: How, over: str, values: Values) -> _Measured:
    groups: defaultdict[str, Values] = defaultdict(list)
    for record, value in values:
        groups[_group(record, over)].append((record, value))
    means = {group: _mean(members) for group, members in groups.items()}
    found = _aggregate(how, list(means.values()))
    if how not in ("min", "max"):
        return _Measured(found, values, groups=means)
    group = next(group for group, mean in means.items() if mean == found)
    return _Measured(found, groups[group], f" at {over} {group}")


def _group(record: Record, over: str) -> str:
    value = record.place.get(over)
    return "" if value is None else shown(value)


def _effective_length(share: float, values: Values, skipped_lengths: set[Value | None]) -> _Measured:
    rows: defaultdict[Value, Values] = defaultdict(list)
    for record, value in values:
        if (length := record.place.get(LENGTH)) is not None:
            rows[length].append((record, value))
    best = max(_mean(row) for row in rows.values())
    reached = 0.0
    for length in in_order(length for length in (*rows, *skipped_lengths) if length is not None):
        if length not in rows:
            return _Measured(reached, values, f" (length {length} was skipped)")
        mean = _mean(rows[length])
        # With a best mean of 0 every row would hold its share of nothing.
        if best <= 0 or mean < share * best - SLACK:
            return _Measured(reached, rows[length], f" ({plain(mean)} at {length}, best {plain(best)})")
        reached = float(length)
    return _Measured(reached, values)


def _aggregate(how: How, values: list[float]) -> float:
    match how:
        case "mean":
            return finite_mean(values)
        case "median":
            return statistics.median(values)
        case "min":
            return min(values)
        case "max":
            return max(values)


def _mean(values: Values) -> float:
    return finite_mean([value for _, value in values])


def _worst(gate: Gate, gaps: list[Gap], measured: _Measured) -> tuple[str, ...]:
    """Gaps first; then the groups of an axis, or places, because one place may hold several seeds and needles."""
    if measured.groups and isinstance(gate.measure, Aggregate):
        fallen = {name: mean for name, mean in measured.groups.items() if not gate.holds(mean)}
        least = sorted(fallen, key=lambda name: fallen[name], reverse=not gate.wants_high)
        named = [f"{gate.measure.over} {name} {plain(fallen[name], gate.limit)}" for name in least]
        return tuple([*name_gaps(gaps), *named][:WORST_SHOWN])
    places: defaultdict[tuple[Value, ...], Values] = defaultdict(list)
    for record, value in measured.blamed:
        places[record.place.grid].append((record, value))
    means = {at: _mean(held) for at, held in places.items()}
    if isinstance(gate.measure, Aggregate):  # a cell that is within the limit by itself is not to blame
        means = {at: mean for at, mean in means.items() if not gate.holds(mean)}
    sign = 1 if gate.wants_high else -1
    ranked = sorted(means, key=lambda at: (sign * means[at], at))
    named = [f"{place(places[at][0][0])} {plain(means[at], gate.limit)}" for at in ranked]
    return tuple([*name_gaps(gaps), *named][:WORST_SHOWN])
