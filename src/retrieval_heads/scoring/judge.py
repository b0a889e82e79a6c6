"""The one place that scores an answer and says whether it retrieved its expected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrieval_heads.scoring.expected import Expected
from retrieval_heads.scoring.key_words import best_key_words
from retrieval_heads.scoring.rouge import rouge_scores
from retrieval_heads.scoring.scorers import is_scorer, scored
from retrieval_heads.scoring.settings import KEY_WORDS, Scoring


@dataclass(frozen=True)
class Judgement:
    """What an answer scores, and whether that is enough.

    Args:
        scores: Every score by name, 0–1.
        passed: Whether the score that decides is above its threshold.
        reason: Why it is not, one sentence; empty where it is.
    """

    scores: dict[str, float]
    passed: bool
    reason: str


def judge(answer: str, expected: Expected, scoring: Scoring) -> Judgement:
    """Judge an answer by the score that the settings name.

    Raises:
        RetrievalHeadsError: Every word of an expected answer stands in the question, or a scorer fails.
    """
    if is_scorer(scoring.metric):  # a pattern or a number has no words that the others could count
        scores = {scoring.metric: scored(scoring.metric, answer, expected, scoring.tolerance or 0.0)}
    else:
        scores = score_answer(answer, expected.references, expected.question, expected.sayings)
    value = scores[scoring.metric]
    if value > scoring.threshold:
        return Judgement(scores, True, "")
    reason = f"{scoring.metric} {value:.3f} is not above {scoring.threshold:g}: the answer does not hold the needle"
    if scoring.metric == KEY_WORDS:
        reason += f"; {best_key_words(answer, expected.sayings, expected.question).reason}"
    return Judgement(scores, False, reason)


def score_answer(
    answer: str, references: str | Sequence[str], question: str, sayings: Sequence[str] = ()
) -> dict[str, float]:
    """Every score of an answer, 0–1.

    Args:
        answer: What the model said.
        references: What it should have said; of several, each score is that of the best one.
        question: What it was asked.
        sayings: What `key_words` looks for, any one of them; the references where it is left out.

    Returns:
        `rouge1_*` and `rougeL_*` with `precision`, `recall` and `f`, each also as `_novel`; `substring`; `key_words`.

    Raises:
        RetrievalHeadsError: Every word of a reference stands in the question.
    """
    references = [references] if isinstance(references, str) else list(references)
    each = [rouge_scores(answer, reference, question) for reference in references]
    scores = {name: max(scores[name] for scores in each) for name in each[0]}
    scores[KEY_WORDS] = best_key_words(answer, list(sayings) or references, question).score
    return scores
