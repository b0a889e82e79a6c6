"""Do two runs agree on which heads retrieve? Rank correlation and overlap of the best heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.gates.expression import Agreement, Gate
from retrieval_heads.gates.selection import Selection, describe, name_gaps
from retrieval_heads.gates.verdict import WORST_SHOWN, Inconclusive, Outcome, plain
from retrieval_heads.heads.agreement import overlaps, spearmans
from retrieval_heads.heads.clusters import Drawn
from retrieval_heads.heads.score import RANKING
from retrieval_heads.heads.top_heads import overlap, top_heads
from retrieval_heads.intervals import Interval, drawn_interval

TOP_HEADS: Final = 20

HeadMeans = Mapping[str, Any]
"""Mean head scores by name, each `[layers, heads]`."""

Draw = Callable[[str], Drawn | None]
"""The means of a score under other weights of a run's needles and texts; `None` where there are too few of those."""


@dataclass(frozen=True)
class HeadAgreement:
    """How alike two runs score their heads."""

    spearman: float | None
    """Rank correlation over all scored heads, −1 to 1; `None` where one side scores all heads the same."""
    overlap: float | None
    """Share of the best heads that both runs name, 0–1; `None` where a side has no best heads."""
    top: int
    """How many best heads were asked for."""
    heads: int
    """Heads that both runs scored."""
    notes: tuple[str, ...] = ()
    """What a reader must know before the figures: left-out layers, constant scores, ties."""
    spearman_interval: Interval | None = None
    """Over the needles and texts of this run; `None` where there are too few, or the figure is not defined."""
    overlap_interval: Interval | None = None

    def __str__(self) -> str:
        spearman = "undefined" if self.spearman is None else f"{self.spearman:.3f}{_within(self.spearman_interval)}"
        overlap = "undefined" if self.overlap is None else f"{self.overlap:.0%}{_within(self.overlap_interval)}"
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{self.heads} heads: Spearman {spearman}, overlap of the top {self.top} {overlap}{notes}"


def compare_heads(current: Any, baseline: Any, *, top: int = TOP_HEADS, drawn: Drawn | None = None) -> HeadAgreement:
    """Compare the mean head scores of two runs.

    Spearman's rank correlation (Spearman 1904; ties share their mean rank), and the overlap of the best heads
    (`retrieval_heads.heads.top_heads`).

    Args:
        current: Mean scores, `[layers, heads]`; a NaN is a head, or a layer's row of heads, without a score.
        baseline: The same of the baseline.
        top: How many best heads to compare.
        drawn: The current means under other weights of their needles and texts, for intervals.

    Raises:
        ConfigError: `top` is below 1.
        ResultsError: The shapes differ, or no head has a score on both sides.
    """
    import numpy as np

    if top < 1:
        raise ConfigError(f"top {top}: expected at least 1 head")
    after, before = np.asarray(current, dtype=float), np.asarray(baseline, dtype=float)
    if after.shape != before.shape or after.ndim != 2:
        raise ResultsError(
            f"head scores cannot be compared: [layers, heads] is {list(after.shape)} in this run and "
            f"{list(before.shape)} in the baseline"
        )
    scored = np.isfinite(after) & np.isfinite(before)
    if not scored.any():
        raise ResultsError("head scores cannot be compared: no head has a score in both this run and the baseline")
    after_scored, before_scored = after[scored], before[scored]
    notes = _left_out(scored)
    constant = [
        f"{side} scores every head {scores[0]:g}"
        for side, scores in (("this run", after_scored), ("the baseline", before_scored))
        if (scores == scores[0]).all()
    ]
    spearman = None if constant else _spearman(after_scored, before_scored)
    shared, tied = (None, []) if constant else _overlap(after_scored, before_scored, top)
    found = HeadAgreement(spearman, shared, top, int(scored.sum()), (*notes, *constant, *tied))
    if drawn is None:
        return found
    others, groups = drawn.means[:, scored], drawn.groups
    return replace(
        found,
        spearman_interval=None
        if spearman is None
        else drawn_interval(spearman, spearmans(others, before_scored[None]), groups, (-1, 1)),
        overlap_interval=None
        if shared is None
        else drawn_interval(shared, overlaps(others, before_scored[None], top), groups, (0, 1)),
    )


def agreement(suite: str, heads: HeadMeans | None, before: HeadMeans | None) -> Iterator[str]:
    """How alike the heads of two runs are, in a sentence; none where a side has no heads."""
    if not heads or not before or RANKING not in heads or RANKING not in before:
        return
    try:
        yield f"{suite}: {compare_heads(heads[RANKING], before[RANKING])}"
    except ResultsError as error:
        yield f"{suite}: {error}"


def judge_heads(
    gate: Gate,
    measure: Agreement,
    current: HeadMeans | None,
    baseline: HeadMeans | None,
    cells: Selection,
    suite: str = "",
    drawn: Draw | None = None,
    inconclusive: Inconclusive = "fail",
) -> Outcome:
    """Judge a gate on how alike the heads are to the baseline's.

    It breaks too when a side has no such scores, when the figure is undefined, and when a selected cell has no
    result. Where the figure is beyond the limit and its interval over needles and texts is not, it is inconclusive.
    """
    value, interval, why = _agreement(measure, current, baseline, drawn)
    gaps = f", but {describe(cells.gaps, cells.total)}" if cells.gaps else ""
    if value is None:
        sentence = f"{measure} has no value, must be {gate.requirement}: {why}{gaps}"
    else:
        within = _within(interval)
        sentence = f"{measure} is {plain(value, gate.limit)}{within}, must be {gate.requirement}{why}{gaps}"
    holds = value is not None and gate.holds(value) and not cells.gaps
    is_open = not holds and not cells.gaps and interval is not None and _reaches(gate, interval)
    if is_open:
        sentence += f": the interval holds {gate.limit:g}, so more needles or seeds are needed to tell"
    worst = tuple(name_gaps(cells.gaps))[:WORST_SHOWN]
    figures = {"low": interval.low, "high": interval.high} if interval else {}
    passed = holds or (is_open and inconclusive == "warn")
    return Outcome(str(gate), passed, value, gate.limit, sentence, worst, suite, figures, is_open)


def _reaches(gate: Gate, interval: Interval) -> bool:
    return gate.holds(interval.high if gate.wants_high else interval.low)


def _within(interval: Interval | None) -> str:
    return f" [{interval.low:.2f}, {interval.high:.2f}]" if interval else ""


def _agreement(
    measure: Agreement, current: HeadMeans | None, baseline: HeadMeans | None, drawn: Draw | None
) -> tuple[float | None, Interval | None, str]:
    """The figure with its interval, and what must be said of it; or why there is none."""
    if not baseline:
        return None, None, "no baseline with head scores is given (--rh-baseline)"
    if not current:
        return None, None, "the run has no head scores"
    for side, scores in (("this run", current), ("the baseline", baseline)):
        if measure.number not in scores:
            return None, None, f"{side} has no head score {measure.number!r}"
    try:
        found = compare_heads(
            current[measure.number],
            baseline[measure.number],
            top=measure.top or TOP_HEADS,
            drawn=drawn(measure.number) if drawn else None,
        )
    except ResultsError as error:
        return None, None, str(error)
    is_rank = measure.top is None
    value = found.spearman if is_rank else found.overlap
    notes = "; ".join(found.notes)
    if value is None:
        return None, None, notes
    return value, found.spearman_interval if is_rank else found.overlap_interval, f" ({notes})" if notes else ""


def _left_out(scored: Any) -> list[str]:
    layers = [str(layer) for layer, row in enumerate(scored) if not row.any()]
    single = sum(int((~row).sum()) for row in scored if row.any())
    notes = [f"layers without scores left out: {', '.join(layers)}"] if layers else []
    return notes + ([f"heads without scores left out: {single}"] if single else [])


def _spearman(after: Any, before: Any) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(after, before).statistic)


def _overlap(after: Any, before: Any, top: int) -> tuple[float | None, list[str]]:
    if top >= len(after):
        return None, [f"the top {top} are all {len(after)} scored heads"]
    best = {
        side: top_heads(enumerate(scores.tolist()), top)
        for side, scores in (("this run", after), ("the baseline", before))
    }
    notes = [note for side, heads in best.items() if (note := heads.note(side))]
    return overlap(*best.values()), notes
