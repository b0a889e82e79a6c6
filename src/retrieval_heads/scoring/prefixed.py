"""The score of an answer that must begin with given letters and then say a text again: OpenAI's grader of MRCR."""

from __future__ import annotations

from difflib import SequenceMatcher

from retrieval_heads.scoring.judge import Judgement
from retrieval_heads.scoring.settings import RATIO, Scoring


def prefixed_ratio(answer: str, expected: str, prefix: str) -> float:
    """How near an answer is to the expected one: 0 where it does not begin with the prefix, else what
    `difflib.SequenceMatcher.ratio` makes of the two without it (dataset openai/mrcr).

    Args:
        answer: What the model said.
        expected: What it should have said, the prefix included.
        prefix: The letters that it must begin with, their case as it is.
    """
    if not answer.startswith(prefix):
        return 0.0
    return SequenceMatcher(None, answer.removeprefix(prefix), expected.removeprefix(prefix)).ratio()


def judge_prefixed(answer: str, expected: str, prefix: str, scoring: Scoring) -> Judgement:
    """Judge an answer by `prefixed_ratio`.

    Args:
        answer: What the model said.
        expected: What it should have said, the prefix included.
        prefix: The letters that it must begin with.
        scoring: Its threshold.
    """
    value = prefixed_ratio(answer, expected, prefix)
    if value > scoring.threshold:
        return Judgement({RATIO: value}, True, "")
    reason = f"{RATIO} {value:.3f} is not above {scoring.threshold:g}"
    if not answer.startswith(prefix):
        reason += f": the answer does not begin with {prefix}"
    return Judgement({RATIO: value}, False, reason)
