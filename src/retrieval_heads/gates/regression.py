"""Comparison with a baseline: did a number fall, and by more than noise? Held, broken or inconclusive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from retrieval_heads.errors import ConfigError
from retrieval_heads.gates.baseline import Baseline, meta_differences
from retrieval_heads.gates.expression import OWN_METRIC, nearest
from retrieval_heads.gates.fall import Change, Fall, label, measure_fall, paired_changes
from retrieval_heads.gates.marks import Marked, mark_alike
from retrieval_heads.gates.number import PASS_RATE, number_names
from retrieval_heads.gates.paired import PairedTest, fall_p_value, holm, smallest_p_value
from retrieval_heads.gates.pairing import pair_records
from retrieval_heads.gates.power import seeds_to_tell, smallest_fall
from retrieval_heads.gates.questions import Questions, compare_questions
from retrieval_heads.gates.selection import Gap, describe, name_gaps, place
from retrieval_heads.gates.tolerance import DEFAULT, Tolerance
from retrieval_heads.gates.verdict import WORST_SHOWN, Inconclusive, Outcome, Verdict, plain
from retrieval_heads.runs.place import Value
from retrieval_heads.runs.record import Record, finite_mean

_LESS_IS_NOT_WORSE: Final = {"achieved_depth", "cached_tokens", "prompt_tokens", "seconds"}


@dataclass(frozen=True)
class Compared:
    """One number of one suite, set against its baseline."""

    name: str
    tolerance: Tolerance
    fall: Fall | None
    """`None` where no cell pairs."""
    gaps: tuple[Gap, ...]
    total: int
    """Cells that were selected."""
    suite: str


@dataclass(frozen=True)
class Comparison:
    """A suite of a run set against its baseline, not judged yet: that takes the falls of all its suites."""

    compared: tuple[Compared, ...]
    warnings: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    """What is decided without a test."""

    def judged(self, inconclusive: Inconclusive = "fail") -> Verdict:
        """The verdict where no other suite is compared in the same run; see `judge`."""
        return judge([self], inconclusive)[0]


def set_against(
    current: Iterable[Record],
    baseline: Baseline,
    *,
    max_drop: Mapping[str, Tolerance],
    meta: Mapping[str, str] | None = None,
    selected: Collection[str] | None = None,
    allow_new: bool = False,
    allow_skipped: bool = False,
    allow_changed: bool = False,
    suite: str = "",
) -> Comparison:
    """Pair a run with a baseline, cell by cell, and measure how far each number fell.

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
        allow_changed: Cells that were asked something else than the baseline's are a warning, and break no gate.
        suite: Stands before each line, where there are several suites.

    Raises:
        ConfigError: A tolerance names a number that no record holds, or one of which less is not worse.
    """
    records = tuple(current)
    pairing = pair_records(records, baseline.records, selected, allow_new=allow_new, allow_skipped=allow_skipped)
    marked = mark_alike(pairing.pairs)
    pairing = replace(pairing, pairs=marked.pairs)
    judged = tuple(pair.current for pair in marked.pairs) or records
    tolerances = _by_number(max_drop, judged)
    _check_names(tolerances, (*records, *baseline.records, *(pair.baseline for pair in marked.pairs)))
    questions = compare_questions(pairing.pairs, baseline.meta, meta)
    warnings = [*pairing.warnings, *filter(None, [marked.rescored, _stale(baseline, marked, questions)])]
    outcomes = []
    if questions.changed and not allow_changed:
        outcomes.append(questions.outcome(suite))
    elif questions.changed:
        warnings.append(questions.sentence)
    if meta is not None:
        warnings += meta_differences(baseline.meta, meta)
    compared = []
    for name, tolerance in tolerances.items():
        changes, gaps = paired_changes(name, pairing)
        fall = measure_fall(changes, tolerance) if changes else None
        compared.append(Compared(name, tolerance, fall, gaps, pairing.total, suite))
    return Comparison(tuple(compared), tuple(warnings), tuple(outcomes))


def judge(comparisons: Sequence[Comparison], inconclusive: Inconclusive = "fail") -> list[Verdict]:
    """Judge all comparisons of a run together, since the more of them there are, the more of them fall by chance.

    A number *held* where its mean fell by no more than the tolerance. It is *broken* where it fell further and the
    fall is significant (`paired.fall_p_value`, adjusted by Holm over all numbers of all suites), or where so few
    pairs moved that no fall over them ever could be. The rest is *inconclusive*. A number is broken too when a selected
    cell has no result, is in error, lacks the number or holds NaN, when the baseline lacks it, and when no cell pairs.

    Args:
        comparisons: Of every suite.
        inconclusive: Whether an inconclusive number fails the run.

    Returns:
        A verdict for each comparison.
    """
    falls = [one.fall for comparison in comparisons for one in comparison.compared if one.fall]
    p_values = holm([fall_p_value(fall.drops) for fall in falls])
    least = holm([smallest_p_value(fall.drops) for fall in falls])
    tests = (PairedTest(*pair, comparisons=len(falls)) for pair in zip(p_values, least, strict=True))
    return [
        Verdict(
            (
                *comparison.outcomes,
                *(_judge(one, next(tests) if one.fall else None, inconclusive) for one in comparison.compared),
            ),
            comparison.warnings,
        )
        for comparison in comparisons
    ]


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


def _judge(one: Compared, test: PairedTest | None, inconclusive: Inconclusive) -> Outcome:
    fall = one.fall
    if fall is None or test is None:
        return _unpaired(one)
    is_inconclusive = not one.gaps and fall.exceeds and not test.decides
    passed = not one.gaps and (not fall.exceeds or (is_inconclusive and inconclusive == "warn"))
    word = "inconclusive" if is_inconclusive else "held" if passed else "broken"
    limit = plain(fall.limit) + (f" ({one.tolerance})" if one.tolerance.relative else "")
    sentence = f"{label(one.name)} {plain(fall.before)}→{plain(fall.after)}, {word}: "
    sentence += f"drop {plain(fall.drop, fall.limit)}, limit {limit}"
    if fall.exceeds:
        sentence += f", {_tested(fall, test)}"
    caught = smallest_fall(fall, test.comparisons)
    smallest = caught.beyond if inconclusive == "fail" else caught.broken
    sentence += f"; {'no fall' if smallest is None else f'a fall of {plain(smallest)}'} is caught 8 times of 10"
    if one.gaps:
        sentence += f", but {describe(one.gaps, one.total)}"
    figures = {
        "baseline": fall.before,
        "current": fall.after,
        "pairs": len(fall.changes),
        "p_value": test.p_value,
        **({} if caught.beyond is None else {"smallest_fall_caught": caught.beyond}),
        **({} if caught.broken is None else {"smallest_fall_broken": caught.broken}),
    }
    worst = _worst(fall.changes, one.gaps) if one.gaps or fall.exceeds else ()
    gate = _gate(one.name, one.tolerance)
    return Outcome(gate, passed, fall.drop, fall.limit, sentence, worst, one.suite, figures, is_inconclusive)


def _tested(fall: Fall, test: PairedTest) -> str:
    """What the test says of a fall beyond the tolerance."""
    if test.is_significant:
        return f"p {plain(test.p_value)}"
    if test.decides:
        return "too few pairs moved to tell it from noise, so that it counts"
    needed = seeds_to_tell(fall)
    return f"but noise can explain it (p {plain(test.p_value)}): about {needed} seeds a cell in both runs would tell"


def _unpaired(one: Compared) -> Outcome:
    why = f": {describe(one.gaps, one.total)}" if one.gaps else ""
    sentence = f"{label(one.name)} cannot be compared, limit {one.tolerance}: no cell pairs with the baseline{why}"
    worst = tuple(name_gaps(one.gaps)[:WORST_SHOWN])
    limit = None if one.tolerance.relative else one.tolerance.amount
    return Outcome(_gate(one.name, one.tolerance), False, None, limit, sentence, worst, one.suite)


def _worst(changes: Iterable[Change], gaps: Sequence[Gap]) -> tuple[str, ...]:
    places: defaultdict[tuple[Value, ...], list[Change]] = defaultdict(list)
    for change in changes:
        places[change.record.place.grid].append(change)
    drops = {at: finite_mean([change.drop for change in held]) for at, held in places.items()}
    named = [
        f"{place(places[at][0].record)} {_mean('before', places[at])}→{_mean('after', places[at])}"
        for at in sorted(drops, key=lambda at: (-drops[at], at))
        if drops[at] > 0
    ]
    return tuple([*name_gaps(gaps), *named][:WORST_SHOWN])


def _mean(side: str, changes: Iterable[Change]) -> str:
    return plain(finite_mean([getattr(change, side) for change in changes]))


def _stale(baseline: Baseline, marked: Marked, questions: Questions) -> str:
    """What a baseline of before cannot be compared by, and the command that saves it anew; empty where all can be."""
    reasons = [marked.stale] if marked.stale else []
    if questions.unknown:
        reasons.append(f"does not say what it was asked ({', '.join(questions.unknown)})")
    return f"the baseline {' and '.join(reasons)}; save it anew: {baseline.save_command}" if reasons else ""


def _gate(name: str, tolerance: Tolerance) -> str:
    return f"drop of {label(name)} <= {tolerance}"
