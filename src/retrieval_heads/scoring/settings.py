"""Which score decides, as a suite says it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from retrieval_heads.settings.messages import nearest
from retrieval_heads.settings.section import Number, Section

KEY_WORDS = "key_words"
"""The score that decides where a suite names none; see `retrieval_heads.scoring.key_words`."""

METRICS: tuple[str, ...] = (
    *(
        f"{rouge}_{part}{words}"
        for words in ("", "_novel")
        for rouge in ("rouge1", "rougeL")
        for part in ("precision", "recall", "f")
    ),
    "substring",
    KEY_WORDS,
)
"""Every stored score of a needle. `_novel`: over the words that the question does not contain. `rouge1_recall` above
0.5 is the rule of arXiv 2404.15574.
"""

EXACT = "exact"
"""1 where the whole answer is the expected one, as its task compares the two; needles have no such score."""

STRING_MATCH, STRING_MATCH_PART, WHOLE_WORDS = "string_match", "string_match_part", "whole_words"

MATCHES: tuple[str, ...] = (STRING_MATCH, STRING_MATCH_PART, WHOLE_WORDS)
"""Scores of tasks whose answers must say several things; see `retrieval_heads.scoring.matches`."""

EVERY_METRIC = (*METRICS, EXACT, *MATCHES)


class Scoring(Section):
    """Which score says that the needle was retrieved: `metric` above `threshold`."""

    metric: str = KEY_WORDS
    threshold: Annotated[Number, Field(ge=0, le=1)] = 0.5

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in EVERY_METRIC:
            raise ValueError(f"unknown metric {metric!r}{nearest(metric, EVERY_METRIC)}")
        return metric
