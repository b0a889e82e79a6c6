"""Which score decides, as a suite says it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from retrieval_heads.errors import ConfigError
from retrieval_heads.scoring.scorers import EXACT as EXACT
from retrieval_heads.scoring.scorers import NUMBER, REGEX, SCORERS, is_scorer, scorer
from retrieval_heads.settings.messages import nearest
from retrieval_heads.settings.section import Number, Said, Section

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

STRING_MATCH, STRING_MATCH_PART, WHOLE_WORDS = "string_match", "string_match_part", "whole_words"

MATCHES: tuple[str, ...] = (STRING_MATCH, STRING_MATCH_PART, WHOLE_WORDS)
"""Scores of tasks whose answers must say several things; see `retrieval_heads.scoring.matches`."""

CONTAINS, ONE_NAME = "contains", "one_name"

NAMES: tuple[str, ...] = (ONE_NAME, CONTAINS)
"""Scores of tasks whose answer is one of several names; see `retrieval_heads.scoring.names`."""

RATIO = "ratio"
"""How near an answer is to a text that it must say again; see `retrieval_heads.scoring.prefixed`."""

EVERY_METRIC = (*METRICS, EXACT, REGEX, NUMBER, *MATCHES, *NAMES, RATIO)


class Tags(Section):
    """What a model writes around its thoughts."""

    start: Said
    end: Said


TAGS: tuple[Tags, ...] = tuple(
    Tags(start=start, end=end)
    for start, end in (
        ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM-4.5, SmolLM3, Nemotron and most others
        ("[THINK]", "[/THINK]"),  # Magistral
        ("<seed:think>", "</seed:think>"),  # Seed-OSS
        ("<mm:think>", "</mm:think>"),  # MiniMax-M3
        ("<|channel>", "<channel|>"),  # Gemma 4
        ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
    )
)
"""Of the families whose tags are known: those of vLLM's reasoning parsers."""


def _listed_tags(value: object) -> object:
    if value is False:
        return []
    if value is True or isinstance(value, str):
        raise ValueError(f"expected {{start, end}}, a list of such, or false; found {str(value).lower()!r}")
    return [value] if isinstance(value, dict) else value


class Scoring(Section):
    """Which score says that the needle was retrieved: `metric` above `threshold`."""

    metric: str = KEY_WORDS
    threshold: Annotated[Number, Field(ge=0, le=1)] = 0.5
    tolerance: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """How far the metric `number` lets a number lie from the expected one, as a share of it; not at all where it is
    left out."""
    thinking: Annotated[list[Tags] | None, BeforeValidator(_listed_tags)] = None
    """The tags around thoughts, which stand before an answer and do not count; `TAGS` where it is left out. `false`:
    all that a model says is its answer."""

    @property
    def tags(self) -> tuple[Tags, ...]:
        """The tags that count."""
        return TAGS if self.thinking is None else tuple(self.thinking)

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric in EVERY_METRIC:
            return metric
        if not is_scorer(metric):
            known = (*EVERY_METRIC, *(name for name in SCORERS.names if name not in EVERY_METRIC))
            raise ValueError(f"unknown metric {metric!r}{nearest(metric, known)}")
        try:
            scorer(metric)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("scoring.metric: ")) from None
        return metric
