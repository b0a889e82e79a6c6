"""Scores of an answer that must say several things: how many of them it says."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retrieval_heads.scoring.judge import Judgement, score_answer
from retrieval_heads.scoring.rouge import words_in_line
from retrieval_heads.scoring.settings import STRING_MATCH, STRING_MATCH_PART, WHOLE_WORDS, Scoring

# What RULER reads as line ends.
_CONTROL = re.compile(r"[\x00-\x1f]")


def matches(answer: str, expected: Sequence[str]) -> dict[str, float]:
    """How many of the expected texts an answer holds.

    Args:
        answer: What the model said.
        expected: What it must say, in any order.

    Returns:
        `string_match`, the share that stands in the answer as substrings whatever their case (RULER's
        string_match_all, arXiv 2404.06654); `string_match_part`, 1 where any does (its string_match_part);
        `whole_words`, the share that stands there as whole words: a substring may be part of another word.
    """
    plain = _CONTROL.sub("\n", answer).strip().lower()
    line = words_in_line(answer)
    held = [each.lower() in plain for each in expected]
    whole = [words_in_line(each) in line for each in expected]
    return {
        STRING_MATCH: sum(held) / len(held),
        STRING_MATCH_PART: float(any(held)),
        WHOLE_WORDS: sum(whole) / len(whole),
    }


def judge_any(answer: str, accepted: Sequence[str], scoring: Scoring) -> Judgement:
    """Judge an answer that must say one of several texts: RULER's string_match_part, whatever score decides.

    Args:
        answer: What the model said.
        accepted: What it may say.
        scoring: Which of the scores of `matches` decides.

    Returns:
        Those scores, each that of the text which is matched best.
    """
    each = [matches(answer, [one]) for one in accepted]
    scores = {name: max(found[name] for found in each) for name in each[0]}
    value = scores[scoring.metric]
    if value > scoring.threshold:
        return Judgement(scores, True, "")
    reason = f"{scoring.metric} {value:.3f} is not above {scoring.threshold:g}"
    return Judgement(scores, False, f"{reason}: the answer says none of {', '.join(accepted)}")


def judge_several(answer: str, expected: Sequence[str], question: str, scoring: Scoring) -> Judgement:
    """Judge an answer that must say each of several texts.

    Args:
        answer: What the model said.
        expected: What it must say, in any order.
        question: What it was asked.
        scoring: Which score decides.

    Returns:
        The scores of `score_answer` against all of it as one text, and those of `matches`.

    Raises:
        RetrievalHeadsError: Every word of what is expected stands in the question.
    """
    scores = score_answer(answer, ", ".join(expected), question) | matches(answer, expected)
    value = scores[scoring.metric]
    if value > scoring.threshold:
        return Judgement(scores, True, "")
    line = words_in_line(answer)
    missing = ", ".join(each for each in expected if words_in_line(each) not in line)
    reason = f"{scoring.metric} {value:.3f} is not above {scoring.threshold:g}"
    return Judgement(scores, False, f"{reason}: the answer lacks {missing}" if missing else reason)
