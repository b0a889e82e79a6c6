"""Do two runs agree on which heads retrieve? Rank correlation and overlap of the best heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.gates.expression import Agreement, Gate
from retrieval_heads.gates.selection import Selection, describe, name_gaps
from retrieval_heads.gates.verdict import WORST_SHOWN, Outcome, plain
from retrieval_heads.heads.score import RANKING
from retrieval_heads.heads.top_heads import overlap, top_heads

TOP_HEADS: Final = 20

HeadMeans = Mapping[str, Any]
"""Mean head scores by name, each `[layers, heads]`."""


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

    def __str__(self) -> str:
        spearman = "undefined" if self.spearman is None else f"{self.spearman:.3f}"
        overlap = "undefined" if self.overlap is None else f"{self.overlap:.0%}"
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{self.heads} heads: Spearman {spearman}, overlap of the top {self.top} {overlap}{notes}"


def compare_heads(current: Any, baseline: Any, *, top: int = TOP_HEADS) -> HeadAgreement:
    """Compare the mean head scores of two runs.

    Spearman's rank correlation (Spearman 1904; ties share their mean rank), and the overlap of the best heads
    (`retrieval_heads.heads.top_heads`).

    Args:
        current: Mean scores, `[layers, heads]`; a NaN is a head, or a layer's row of heads, without a score.
        baseline: The same of the baseline.
        top: How many best heads to compare.

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
    return HeadAgreement(spearman, shared, top, int(scored.sum()), (*notes, *constant, *tied))


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
) -> Outcome:
    """Judge a gate on how alike the heads are to the baseline's.

    It breaks too when a side has no such scores, when the figure is undefined, and when a selected cell has no
    result.
    """
    value, why = _agreement(measure, current, baseline)
    gaps = f", but {describe(cells.gaps, cells.total)}" if cells.gaps else ""
    if value is None:
        sentence = f"{measure} has no value, must be {gate.requirement}: {why}{gaps}"
    else:
        sentence = f"{measure} is {plain(value, gate.limit)}, must be {gate.requirement}{why}{gaps}"
    passed = value is not None and gate.holds(value) and not cells.gaps
    worst = tuple(name_gaps(cells.gaps))[:WORST_SHOWN]
    return Outcome(str(gate), passed, value, gate.limit, sentence, worst, suite)


def _agreement(measure: Agreement, current: HeadMeans | None, baseline: HeadMeans | None) -> tuple[float | None, str]:
    """The figure, and what must be said of it; or why there is none."""
    if not baseline:
        return None, "no baseline with head scores is given (--rh-baseline)"
    if not current:
        return None, "the run has no head scores"
    for side, scores in (("this run", current), ("the baseline", baseline)):
        if measure.number not in scores:
            return None, f"{side} has no head score {measure.number!r}"
    try:
        found = compare_heads(current[measure.number], baseline[measure.number], top=measure.top or TOP_HEADS)
    except ResultsError as error:
        return None, str(error)
    value = found.spearman if measure.top is None else found.overlap
    notes = "; ".join(found.notes)
    if value is None:
        return None, notes
    return value, f" ({notes})" if notes else ""


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
