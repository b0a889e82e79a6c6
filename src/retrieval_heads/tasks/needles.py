"""Many needles in a haystack: several values of a key, several keys asked, and others that are like them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.place import DEPTH, LENGTH, Place, Value
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring import Judgement, judge_several
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.settings.section import Number, Said, Section, Whole
from retrieval_heads.tasks.insertions import SAYS_ALL, Planned, check_metric, drawn_away, request_of
from retrieval_heads.tasks.task import Question, asked_again

_ANSWER_TOKENS = 24
"""For each value that is asked for, where the suite sets no budget."""

_FIRST = (
    "amber brisk calm dusty eager faint gentle hollow idle jolly keen lively mellow narrow odd plain quiet rusty "
    "silent tidy upper velvet warm young"
)
_SECOND = (
    "anchor basket candle dragon engine falcon garden hammer island jacket kettle lantern meadow needle orchard "
    "pillow quarry ribbon saddle temple umbrella violin window yard"
)

_Few = Annotated[Whole, Field(ge=1, le=100)]
_Some = Annotated[Whole, Field(ge=0, le=1000)]


class NeedlesOptions(Section):
    """How many needles there are, what they say and where they stand."""

    needle: Said = "The access code of the {key} is {value}."
    """What a needle says; `{key}` and `{value}` in it."""
    question: Said = "List every access code that the text gives for {keys}."
    """What is asked; `{keys}` in it."""
    values: _Few = 1
    """Values of each key that is asked for."""
    queries: _Few = 1
    """Keys that are asked for."""
    keys: _Some = 0
    """Needles of other keys, which are not asked for."""
    distractors: list[Said] = Field(default=[])
    """Texts near in meaning to the needles."""
    apart: Annotated[Number, Field(ge=0, le=50)] = 5.0
    """Percent of the haystack, at least, between a distractor or another key and each needle that is asked for."""
    moves: Literal["first", "all"] = "first"
    """What the grid's depth moves: the first needle that is asked for, the others at seeded depths of their own; or
    all of them, spread evenly from there to the end.
    """

    @model_validator(mode="after")
    def _complete(self) -> NeedlesOptions:
        for key, text, marks in (
            ("needle", self.needle, ("{key}", "{value}")),
            ("question", self.question, ("{keys}",)),
        ):
            for mark in marks:
                if (count := text.count(mark)) != 1:
                    raise ValueError(f"{key} holds {mark} {count} times; once is accepted")
        if (count := self.queries + self.keys) > len(names := _names()):
            raise ValueError(f"{count} keys; there are {len(names)} names for them")
        return self


@dataclass(frozen=True)
class Drawn:
    """What a seed makes of the settings.

    Args:
        question: What is asked.
        asked: Each needle that is asked for: its text and its value.
        others: Texts that are not asked for.
    """

    question: str
    asked: tuple[tuple[str, str], ...]
    others: tuple[str, ...]


class NeedlesTask:
    """Several needles in one haystack, and a question that asks for some of them."""

    axes: tuple[str, ...] = (LENGTH, DEPTH)
    settings: type[Section] = NeedlesOptions
    needs = frozenset({"haystack"})
    has_spans = True
    defaults: Mapping[str, object] = SAYS_ALL

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """Every length by every depth."""
        check_metric(question.scoring)
        return itertools.product(question.lengths, question.depths)

    def asked(self, question: Question, place: Place) -> Expectation:
        """The question, and every value that must be said."""
        drawn = _drawn(NeedlesOptions.model_validate(question.options), place.seed)
        values = tuple(value for _, value in drawn.asked)
        return Expectation(drawn.question, ", ".join(values), expected=values)

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """A prompt of exactly the length with all needles in it."""
        options = NeedlesOptions.model_validate(question.options)
        drawn = _drawn(options, place.seed)
        length, depth = place.get(LENGTH), place.get(DEPTH)
        assert isinstance(length, int)
        assert isinstance(depth, int | float)
        assert question.prompt is not None
        sampling = {key: value for key, value in question.generation.items() if value is not None}
        sampling.setdefault("max_tokens", _ANSWER_TOKENS * len(drawn.asked))
        return request_of(
            writer,
            writer.haystack(question.source),
            writer.frame(question.prompt, drawn.question),
            _planned(options, drawn, float(depth), place.seed),
            drawn.question,
            length,
            sampling,
            seed=place.seed,
            boundary=question.boundary,
            options=question.options,
        )

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The prompt of a record, drawn again."""
        return asked_again(self, record, writer)

    def judge(self, answer: str, expected: Expectation, scoring: Scoring) -> Judgement:
        """How many of the values are said; see `retrieval_heads.scoring.matches`."""
        return judge_several(answer, expected.expected or (), expected.question, scoring)


NEEDLES = NeedlesTask()


def _drawn(options: NeedlesOptions, seed: int) -> Drawn:
    """Keys and values by the seed alone, so that all lengths and depths ask the same."""
    draw = random.Random(f"retrieval-heads needles {seed}")
    keys = draw.sample(_names(), options.queries + options.keys)
    values = iter(draw.sample(range(1_000_000, 10_000_000), options.queries * options.values + options.keys))
    asked = [(key, str(next(values))) for key in keys[: options.queries] for _ in range(options.values)]
    others = [(key, str(next(values))) for key in keys[options.queries :]]
    return Drawn(
        options.question.replace("{keys}", listed([f"the {key}" for key in keys[: options.queries]])),
        tuple((_said(options, key, value), value) for key, value in asked),
        (*(_said(options, key, value) for key, value in others), *options.distractors),
    )


def _names() -> list[str]:
    return [f"{first} {second}" for first in _FIRST.split() for second in _SECOND.split()]


def _said(options: NeedlesOptions, key: str, value: str) -> str:
    return options.needle.replace("{key}", key).replace("{value}", value)


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them: `a, b and c`."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _planned(options: NeedlesOptions, drawn: Drawn, depth: float, seed: int) -> list[Planned]:
    draw, count = random.Random(f"retrieval-heads needles' depths {seed}"), len(drawn.asked)
    if options.moves == "all":
        depths = [depth, *(round(depth + number * (100 - depth) / count, 4) for number in range(1, count))]
    else:
        depths = [depth, *(round(draw.uniform(0, 100), 4) for _ in range(count - 1))]
    return [
        *(Planned("asked", text, value, at) for (text, value), at in zip(drawn.asked, depths, strict=True)),
        *(Planned("distractor", text, None, drawn_away(draw, depths, options.apart)) for text in drawn.others),
    ]
