"""Comparison with a baseline: did a number fall, and by more than noise?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from retrieval_heads.errors import ConfigError
from retrieval_heads.gates.baseline import Baseline, meta_differences
from retrieval_heads.gates.expression import OWN_METRIC, nearest
from retrieval_heads.gates.fall import Change, Fall, label, measure_fall, paired_changes
from retrieval_heads.gates.noise import Bound, seeds_to_tell
from retrieval_heads.gates.number import PASS_RATE, number_names
from retrieval_heads.gates.pairing import Pair, pair_records
from retrieval_heads.gates.selection import Gap, describe, name_gaps, place
from retrieval_heads.gates.tolerance import DEFAULT, Tolerance
from retrieval_heads.gates.verdict import WORST_SHOWN, Outcome, Verdict, plain
from retrieval_heads.results import Record, finite_mean

_LESS_IS_NOT_WORSE: Final = {"achieved_depth", "cached_tokens", "prompt_tokens", "seconds"}


def compare(
    current: Iterable[Record],
    baseline: Baseline,
    *,
    max_drop: Mapping[str, Tolerance],
    meta: Mapping[str, str] | None = None,
    selected: Collection[str] | None = None,
    allow_new: bool = False,
    allow_skipped: bool = False,
    suite: str = "",
) -> Verdict:
    """Judge a run against a baseline, cell by cell.

    A number breaks when its mean falls by more than the tolerance and, with 10 pairs or more, the drop's
    one-sided 95 % bound excludes 0 (`noise.bound_drop`); a drop that noise can explain is a warning. It
    breaks too when a selected cell has no result, is in error, lacks the number or holds NaN, when the
    baseline lacks it, and when no cell pairs.

    Args:
        current: The run's records.
        baseline: What they are compared with. Records pair by `cell`, and by `suite` too where several suites
            of one side have a cell of that name.
        max_drop: From `parse_max_drop`. The `DEFAULT` tolerance applies to the run's pass metric and to
            `pass_rate`.
        meta: The run's model, revision and so on: what differs from the baseline's becomes a warning.
        selected: Names of the cells that were to be measured; without it, those of both sides.
        allow_new: A selected cell that the baseline lacks stays out instead of breaking the gate.
        allow_skipped: A skipped cell stays out instead of breaking the gate.
        suite: Stands before each line, where there are several suites.

    Raises:
        ConfigError: A tolerance names a number that no record holds, or one of which less is not worse.
    """
    records = tuple(current)
    tolerances = _by_number(max_drop, records)
    _check_names(tolerances, (*records, *baseline.records))
    pairing = pair_records(records, baseline.records, selected, allow_new=allow_new, allow_skipped=allow_skipped)
    warnings = [*pairing.warnings, *_pass_marks(pairing.pairs)]
    if meta is not None:
        warnings += meta_differences(baseline.meta, meta)
    outcomes = []
    for name, tolerance in tolerances.items():
        changes, gaps = paired_changes(name, pairing)
        if not changes:
            outcomes.append(_unpaired(name, tolerance, gaps, pairing.total, suite))
            continue
        fall = measure_fall(changes, tolerance)
        outcomes.append(_judge(name, tolerance, fall, gaps, pairing.total, suite))
        if fall.hidden and fall.bound:
            warnings.append(_hidden(name, fall, fall.bound))
    return Verdict(tuple(outcomes), tuple(warnings))


def _by_number(max_drop: Mapping[str, Tolerance], records: Sequence[Record]) -> dict[str, Tolerance]:
    """The default tolerance spelt out; a tolerance of its own goes before it."""
    named = {name: tolerance for name, tolerance in max_drop.items() if name != DEFAULT}
    if DEFAULT not in max_drop:
        return named
    metrics = {record.metric for record in records if record.metric}
    metric = metrics.pop() if len(metrics) == 1 else OWN_METRIC
    return {metric: max_drop[DEFAULT], PASS_RATE: max_drop[DEFAULT]} | named


def _check_names(names: Iterable[str], records: Sequence[Record]) -> None:
    if not any(record.scores for record in records):
        return  # nothing was measured, which is what the verdict will say
    known = number_names(records) - _LESS_IS_NOT_WORSE
    for name in names:
        if name != OWN_METRIC and name not in known:
            raise ConfigError(f"max drop: {name!r} cannot be compared; {nearest(name, known)}")


def _judge(name: str, tolerance: Tolerance, fall: Fall, gaps: Sequence[Gap], total: int, suite: str) -> Outcome:
    passed = not gaps and (not fall.exceeds or fall.hidden)
    limit = plain(fall.limit) + (f" ({tolerance})" if tolerance.relative else "")
    sentence = f"{label(name)} {plain(fall.before)}→{plain(fall.after)}: "
    sentence += f"drop {plain(fall.drop, fall.limit)}, limit {limit}"
    if fall.bound:
        sentence += f", 95 % bound {plain(fall.bound.low)}"
    elif fall.exceeds:
        sentence += f", {len(fall.changes)} pairs are too few to tell noise"
    if gaps:
        sentence += f", but {describe(gaps, total)}"
    figures = {"baseline": fall.before, "current": fall.after, "pairs": len(fall.changes)}
    if fall.bound:
        figures |= {"bound": fall.bound.low, "standard_error": fall.bound.error}
    worst = () if passed else _worst(fall.changes, gaps)
    return Outcome(_gate(name, tolerance), passed, fall.drop, fall.limit, sentence, worst, suite, figures)


def _unpaired(name: str, tolerance: Tolerance, gaps: Sequence[Gap], total: int, suite: str) -> Outcome:
    why = f": {describe(gaps, total)}" if gaps else ""
    sentence = f"{label(name)} cannot be compared, limit {tolerance}: no cell pairs with the baseline{why}"
    worst = tuple(name_gaps(gaps)[:WORST_SHOWN])
    limit = None if tolerance.relative else tolerance.amount
    return Outcome(_gate(name, tolerance), False, None, limit, sentence, worst, suite)


def _hidden(name: str, fall: Fall, bound: Bound) -> str:
    seeds = max(1, round(len(fall.changes) / len(fall.cells)))
    needed = seeds_to_tell(fall.drop, bound, seeds)
    low = plain(bound.low)
    return (
        f"{label(name)} fell by {plain(fall.drop, fall.limit)}, more than {plain(fall.limit)}, but noise "
        f"can explain it (95 % bound {low}): about {needed} seeds a cell in both runs would tell, now {seeds}"
    )


def _worst(changes: Iterable[Change], gaps: Sequence[Gap]) -> tuple[str, ...]:
    places: defaultdict[tuple[int, float], list[Change]] = defaultdict(list)
    for change in changes:
        places[(change.record.context_length, change.record.document_depth)].append(change)
    drops = {at: finite_mean([change.drop for change in held]) for at, held in places.items()}
    named = [
        f"{place(places[at][0].record)} {_mean('before', places[at])}→{_mean('after', places[at])}"
        for at in sorted(drops, key=lambda at: (-drops[at], at))
        if drops[at] > 0
    ]
    return tuple([*name_gaps(gaps), *named][:WORST_SHOWN])


def _mean(side: str, changes: Iterable[Change]) -> str:
    return plain(finite_mean([getattr(change, side) for change in changes]))


def _pass_marks(pairs: Iterable[Pair]) -> list[str]:
    """A warning where the two sides call different answers passed."""
    marks = {(_mark(pair.baseline), _mark(pair.current)) for pair in pairs}
    return [
        f"pass_rate means {before} in the baseline and {after} now"
        for before, after in sorted(marks)
        if before and after and before != after
    ]


def _mark(record: Record) -> str:
    known = record.metric and record.threshold is not None
    return f"{record.metric} > {record.threshold:g}" if known else ""


def _gate(name: str, tolerance: Tolerance) -> str:
    return f"drop of {label(name)} <= {tolerance}"
