"""Scores of an answer that is a name out of a known list."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval_heads.scoring.judge import Judgement, score_answer
from retrieval_heads.scoring.rouge import words_in_line
from retrieval_heads.scoring.settings import CONTAINS, ONE_NAME, Scoring


def judge_name(
    answer: str, accepted: Sequence[str], others: Sequence[str], question: str, scoring: Scoring
) -> Judgement:
    """Judge an answer that must be one name.

    Args:
        answer: What the model said.
        accepted: The names that are right.
        others: Those that are wrong.
        question: What it was asked.
        scoring: Which score decides.

    Returns:
        The scores of `score_answer`; `contains`, 1 where an accepted name stands in the answer, its case as it is
        (arXiv 2502.05167); `one_name`, 1 where it stands there as a whole word and no other name does.
    """
    line = words_in_line(answer)
    said = [name for name in others if words_in_line(name) in line]
    is_named = any(words_in_line(name) in line for name in accepted)
    scores = score_answer(answer, list(accepted), question) | {
        CONTAINS: float(any(name in answer for name in accepted)),
        ONE_NAME: float(is_named and not said),
    }
    value = scores[scoring.metric]
    if value > scoring.threshold:
        return Judgement(scores, True, "")
    reason = f"{scoring.metric} {value:.3f} is not above {scoring.threshold:g}"
    expected = " or ".join(accepted)
    if said:
        return Judgement(scores, False, f"{reason}: the answer names {', '.join(said)}, and {expected} is expected")
    return Judgement(scores, False, reason if is_named else f"{reason}: the answer does not name {expected}")
