"""One metric and one threshold for both sides of a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.gates.pairing import Pair
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.settings import TAGS
from retrieval_heads.scoring.thoughts import told_apart


@dataclass(frozen=True)
class Marked:
    """Pairs of which both sides are judged alike."""

    pairs: tuple[Pair, ...]
    rescored: str = ""
    """Where answers of the baseline were scored again: by what, and by what they had been judged."""
    stale: str = ""
    """Where both sides are judged as the baseline was: by what, and by what the run itself is judged."""


def mark_alike(pairs: Sequence[Pair]) -> Marked:
    """Judge both sides of every pair by one metric and threshold.

    The baseline's answers by the run's, where it holds that score, or holds the answers, which can be scored again. A
    baseline of before may hold neither: then the run's answers are judged as the baseline was.
    """
    made, rescored, stale = [], Counter[str](), Counter[str]()
    for pair in pairs:
        before, now = _mark(pair.baseline), _mark(pair.current)
        if not before or not now or before == now:
            made.append(pair)
        elif pair.current.metric in pair.baseline.scores:
            made.append(Pair(pair.current, _judged_by(pair.baseline, pair.current)))
            rescored[f"pass_rate means {before} in the baseline and {now} now"] += 1
        elif (again := _scored_again(pair.baseline, pair.current)) is not None:
            made.append(Pair(pair.current, again))
            rescored[f"the baseline's answers were scored again by {now}; they had been judged by {before}"] += 1
        else:
            made.append(Pair(_judged_by(pair.current, pair.baseline), pair.baseline))
            stale[f"was judged by {before}, and so is this run here, not by its own {now}"] += 1
    return Marked(tuple(made), *(next(iter(dict(told.most_common(1))), "") for told in (rescored, stale)))


def _scored_again(record: Record, by: Record) -> Record | None:
    """A baseline's record under another's metric and threshold; `None` where it holds no answer."""
    if not record.reference:
        return None
    from retrieval_heads.scoring import score_answer

    # Baselines of before 0.2.0 hold a reasoning model's thoughts in its answer.
    _, answer = told_apart(record.thoughts, record.text, TAGS)
    try:
        scores = score_answer(answer, (record.reference, *by.alternatives), record.question, by.sayings)
    except RetrievalHeadsError:
        return None
    if by.metric not in scores:
        return None
    return _judged_by(record.model_copy(update={"scores": scores}), by)


def _judged_by(record: Record, by: Record) -> Record:
    """A record under another's metric and threshold, as far as it holds that metric."""
    score = record.scores.get(by.metric)
    if score is None or by.threshold is None:
        return record
    passed = score > by.threshold
    status = "pass" if passed else "low"
    return record.model_copy(
        update={"metric": by.metric, "threshold": by.threshold, "passed": passed, "status": status}
    )


def _mark(record: Record) -> str:
    known = record.metric and record.threshold is not None
    return f"{record.metric} > {record.threshold:g}" if known else ""
