"""Scores that a suite chooses beside the stored ones: some of ours, and functions of a user's own.

A scorer is a function `score(answer, expected)` that gives a number from 0 to 1. A suite names it, `metric: NAME`, or
says where it stands, `metric: my_package:score`; another distribution registers one as an entry point of
`retrieval_heads.scorers`.
"""

from __future__ import annotations

import math
import pkgutil
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from retrieval_heads.errors import ConfigError, RetrievalHeadsError
from retrieval_heads.registry import Registry
from retrieval_heads.scoring.expected import Expected
from retrieval_heads.scoring.numbers import readings

EXACT: Final = "exact"
REGEX: Final = "regex"
NUMBER: Final = "number"
GROUP: Final = "retrieval_heads.scorers"
"""Of entry points, each `NAME = "module:function"`."""

_NUMBER = re.compile(r"(?<!\d)[-−]?\d+(?:[.,'’٬٫\u00a0\u202f]\d+)*")


class Scorer(Protocol):
    """Scores an answer."""

    def __call__(self, answer: str, expected: Expected) -> float:
        """A number from 0 to 1; the answer has passed above the suite's threshold.

        Args:
            answer: What the model said, its thoughts left out.
            expected: The `question`, and the accepted answers (`references`).
        """


def exact(answer: str, expected: Expected) -> float:
    """1 where the whole answer is an accepted one: case, width, blanks and a closing mark do not matter."""
    return float(_bare(answer) in map(_bare, expected.references))


def regex(answer: str, expected: Expected) -> float:
    """1 where an accepted answer, which is a regular expression, is found in the answer.

    Raises:
        RetrievalHeadsError: It is none.
    """
    for pattern in expected.references:
        try:
            if re.search(pattern, answer):
                return 1.0
        except re.error as error:
            raise RetrievalHeadsError(f"scoring.metric regex: {pattern!r} is no regular expression ({error})") from None
    return 0.0


def number(answer: str, expected: Expected) -> float:
    """1 where the answer's first number that the question does not hold is that of an accepted answer.

    Raises:
        RetrievalHeadsError: An accepted answer holds no number.
    """
    return number_within(answer, expected, 0.0)


def number_within(answer: str, expected: Expected, tolerance: float) -> float:
    """The same with a number that lies so near to it, as a share of it.

    Raises:
        RetrievalHeadsError: An accepted answer holds no number.
    """
    asked = {value for values in _numbers(expected.question) for value in values}
    said = next((values for values in _numbers(answer) if not values & asked), frozenset())
    for reference in expected.references:
        wanted = next(_numbers(reference), None)
        if wanted is None:
            raise RetrievalHeadsError(f"scoring.metric number: the expected answer {reference!r} holds no number")
        near = (abs(one - right) <= tolerance * abs(right) for one in said for right in wanted)
        if any(near):
            return 1.0
    return 0.0


SCORERS: Final = Registry[Scorer](
    GROUP, "scorer", {name: f"retrieval_heads.scoring.scorers:{name}" for name in (EXACT, REGEX, NUMBER)}
)


def is_scorer(metric: str) -> bool:
    """Whether a metric is a scorer's name or place, and no stored score's."""
    return ":" in metric or metric in SCORERS.names


def scorer(metric: str) -> Scorer:
    """The function of a name, or of a place such as `my_package:score`.

    Raises:
        ConfigError: There is none, or it cannot be imported.
    """
    return _placed(metric) if ":" in metric else SCORERS.find(metric)


def scored(metric: str, answer: str, expected: Expected, tolerance: float) -> float:
    """What a scorer gives an answer.

    Args:
        metric: Its name or place.
        answer: What the model said.
        expected: What it should have said.
        tolerance: Of the metric `number`.

    Raises:
        RetrievalHeadsError: There is no such scorer, it fails, or what it gives is no number from 0 to 1.
    """
    if metric == NUMBER:
        return number_within(answer, expected, tolerance)
    try:
        value = scorer(metric)(answer, expected)
    except RetrievalHeadsError:
        raise
    except Exception as error:  # a user's code: whatever it raises is told with its name
        raise RetrievalHeadsError(f"scoring.metric {metric}: {type(error).__name__}: {error}") from None
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise RetrievalHeadsError(f"scoring.metric {metric}: expected a number from 0 to 1, it gave {value!r:.80}")
    return float(value)


@cache
def _placed(place: str) -> Scorer:
    module = place.partition(":")[0]
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # as `python -m pytest` has it, and the engine's process
    try:
        found: Scorer = pkgutil.resolve_name(place)
    except Exception as error:  # a user's code
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"scoring.metric: {place} cannot be imported ({why}); {module} is looked for in {here}"
        ) from None
    if not callable(found):
        raise ConfigError(f"scoring.metric: {place} is a {type(found).__name__}, and a function is expected")
    return found


def _bare(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(".!?。！？\"'“”‘’ ")


def _numbers(text: str) -> Iterator[frozenset[float]]:
    """Every number of a text, each with the values that it may have: 1,250 is one, or one and a quarter."""
    for found in _NUMBER.findall(text):
        if values := frozenset(_floats(sorted(readings(found)))):
            yield values


def _floats(texts: Sequence[str]) -> Iterator[float]:
    for text in texts:
        try:
            yield float(text)
        except ValueError:  # a date or a time among the readings
            continue
