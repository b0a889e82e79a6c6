"""Whether settings reach what their gates demand: held, broken or inconclusive."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from retrieval_heads.gates import HeadMeans, Inconclusive, Outcome, check
from retrieval_heads.gates.expression import SLACK, Agreement, Gate
from retrieval_heads.gates.number import PASS_RATE
from retrieval_heads.gates.verdict import plain
from retrieval_heads.intervals import Interval
from retrieval_heads.matrix.comparison import Comparison, Difference, base_name, changes_of
from retrieval_heads.matrix.gate import NotWorse, SettingGate
from retrieval_heads.matrix.power import cells_to_decide, smallest_fall
from retrieval_heads.matrix.sequential import Side, decided_after
from retrieval_heads.matrix.settings import REFERENCE
from retrieval_heads.runs.record import Record

OTHER_PROMPTS = "--rh-allow-other-prompts"
"""The option that pairs cells whose prompts are not the same tokens."""


def judge_settings(
    gates: Iterable[SettingGate],
    comparisons: Sequence[Comparison],
    records: Sequence[Record],
    heads: Mapping[str, HeadMeans | None],
    *,
    allow_other_prompts: bool = False,
    inconclusive: Inconclusive = "fail",
) -> list[Outcome]:
    """Judge the gates of a matrix, each on every suite that its setting was asked in.

    Args:
        gates: The matrix file's.
        comparisons: From `comparison.compare`.
        records: The run's.
        heads: Mean head scores by a detect suite's name.
        allow_other_prompts: Whether prompts may differ.
        inconclusive: What an undecided gate does to the run.
    """
    outcomes: list[Outcome] = []
    for one in gates:
        own = [comparison for comparison in comparisons if comparison.setting == one.setting]
        if not own:
            sentence = f"{one.gate}: the setting was not compared: it or the reference has no cell"
            outcomes.append(Outcome(str(one), False, None, _limit(one.gate), sentence, suite=one.setting))
        for comparison in own:
            judged = _judged(one.gate, comparison, records, heads)
            if comparison.other_prompts and not allow_other_prompts:
                judged = replace(
                    judged, passed=False, is_inconclusive=False, sentence=f"{one.gate}: {other_prompts(comparison)}"
                )
            if judged.is_inconclusive:
                judged = replace(judged, passed=inconclusive == "warn")
            outcomes.append(replace(judged, gate=str(one), suite=f"{comparison.suite}@{one.setting}"))
    return outcomes


def other_prompts(comparison: Comparison) -> str:
    """Why a comparison is none."""
    return (
        f"the prompts of {comparison.other_prompts} of {len(comparison.pairs)} cells are not the reference's tokens "
        f"(another tokenizer or template?): these are not the same questions; {OTHER_PROMPTS} pairs them by cell"
    )


def _limit(gate: NotWorse | Gate) -> float:
    return -gate.margin if isinstance(gate, NotWorse) else gate.limit


def _judged(
    gate: NotWorse | Gate, comparison: Comparison, records: Sequence[Record], heads: Mapping[str, HeadMeans | None]
) -> Outcome:
    if isinstance(gate, NotWorse):
        return _not_worse(gate, comparison)
    own, reference = _sides(comparison, records)
    asked = {record.cell for record in (*own, *reference)}
    if isinstance(gate.measure, Agreement):
        (after, before) = (heads.get(_name(side)) for side in (own, reference))
        return check([gate], own, asked, heads=after, baseline_heads=before).outcomes[0]
    return check([gate], own, asked).outcomes[0]


def _sides(comparison: Comparison, records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    of_suite = [one for one in records if one.setting and f"{one.kind}/{base_name(one)}" == comparison.suite]
    own, reference = ([one for one in of_suite if one.setting == name] for name in (comparison.setting, REFERENCE))
    return own, reference


def _name(records: Collection[Record]) -> str:
    return next((record.suite for record in records), "")


def _not_worse(gate: NotWorse, comparison: Comparison) -> Outcome:
    """Held where the difference certainly lies above the margin, broken where it certainly lies below.

    That is where its whole interval does, or before all cells were asked, where `matrix.sequential` says so.
    """
    found = comparison.of(gate.number)
    if found is None:
        sentence = f"{gate} has no value: no cell was answered under both"
        return Outcome(str(gate), False, None, -gate.margin, sentence)
    told = f"{gate.number} {plain(found.setting)} against {plain(found.reference)}"
    figures = {
        "reference": found.reference,
        "setting": found.setting,
        "p_value": found.p_value,
        "pairs": float(found.pairs),
    }
    if found.interval is None:
        sentence = f"{told} in {found.pairs} cells: too few for an interval, must be {gate}"
        return Outcome(str(gate), False, found.value, -gate.margin, sentence, figures=figures, is_inconclusive=True)
    low, high = found.interval.low, found.interval.high
    figures |= {"low": low, "high": high}
    cells = f"{found.pairs} of {comparison.cells} cells" if comparison.spared else f"{found.pairs} cells"
    sentence = f"{told}: difference {found.value:+.3f} [{low:+.3f}, {high:+.3f}] in {cells}, must be {gate}"
    count = comparison.unpaired
    gaps = (
        f", but {count} {'cell was' if count == 1 else 'cells were'} not answered under both"
        if comparison.unpaired
        else ""
    )
    changes = changes_of(comparison.pairs, gate.number)
    side = _side(gate, comparison, found.interval, changes)
    if side is not None:
        return Outcome(
            str(gate), side == "above" and not gaps, found.value, -gate.margin, sentence + gaps, figures=figures
        )
    needed = cells_to_decide(changes, lambda interval: _side_of(gate, interval) is not None)
    more = f"about {needed:,} cells that come out as these would decide" if needed else "no more cells like these would"
    return Outcome(
        str(gate),
        False,
        found.value,
        -gate.margin,
        f"{sentence}{gaps}: {more}{_power(gate, changes, found)}",
        figures=figures,
        is_inconclusive=not gaps,
    )


def _power(gate: NotWorse, changes: Sequence[float], found: Difference) -> str:
    """Which fall these cells would have shown; of other numbers than the pass rate it is not told."""
    if gate.number != PASS_RATE:
        return ""
    rises = sum(change > 0 for change in changes)
    fall = smallest_fall(round(found.reference * found.pairs), rises, found.pairs, gate.margin)
    if fall is None:
        return "; no fall in so few cells would come out broken 8 times of 10"
    return f"; in these a true fall of {fall:.2f} comes out broken 8 times of 10"


def _side(gate: NotWorse, comparison: Comparison, interval: Interval, changes: Sequence[float]) -> Side | None:
    """On which side of the margin the difference certainly lies."""
    if comparison.is_drawn and (early := decided_after(changes, comparison.cells, -gate.margin)[0]) is not None:
        return early
    return _side_of(gate, interval)


def _side_of(gate: NotWorse, interval: Interval) -> Side | None:
    if interval.low >= -gate.margin - SLACK:
        return "above"
    return "below" if interval.high < -gate.margin - SLACK else None
