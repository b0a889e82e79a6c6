"""Needles that share no word with their question, so that no literal match finds them (arXiv 2502.05167)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from retrieval_heads.errors import ConfigError
from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.place import DEPTH, LENGTH, Place, Value
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring import Judgement
from retrieval_heads.scoring.names import judge_name
from retrieval_heads.scoring.settings import METRICS, NAMES, ONE_NAME, Scoring
from retrieval_heads.settings.section import Number, Said, Section, SuiteFile
from retrieval_heads.tasks.insertions import Planned, drawn_away, request_of
from retrieval_heads.tasks.nonliteral.base import PAIR, totals
from retrieval_heads.tasks.nonliteral.sets import CHARACTER, NeedleSet, Pair, own_set, read_set
from retrieval_heads.tasks.task import FILE_HASH, Question, asked_again

_ANSWER_TOKENS = 192
_MIDDLE = (20.0, 80.0)
"""Percent of the haystack between which distractors stand."""


class NonliteralOptions(Section):
    """Which needles are asked about, and in which words."""

    file: SuiteFile | None = None
    """A needle-set file in NoLiMa's format; our own set where it is left out."""
    questions: list[Said] = Field(default=[])
    """Kinds of question (`onehop`, `twohop`, ...), of our own set its languages; all where it is left out."""
    distractors: bool = True
    """Whether the set's distractors stand in the haystack."""
    apart: Annotated[Number, Field(ge=0, le=30)] = 20.0
    """Percent of the haystack, at least, between a distractor and the needle."""
    wording: Literal["suite", "set"] = "suite"
    """`set`: the prompt is the `system_prompt` and `task_template` of the file."""


class NonliteralTask:
    """A character is drawn; the answer is the one whom the needle is about."""

    axes: tuple[str, ...] = (LENGTH, DEPTH, PAIR)
    settings: type[Section] = NonliteralOptions
    needs = frozenset({"haystack"})
    has_spans = True
    defaults: Mapping[str, object] = {
        "boundary": "line",
        "prompt": "{context}\n\n{question}",
        "generation": {"max_tokens": _ANSWER_TOKENS},
        "scoring": {"metric": ONE_NAME},
    }

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """Every pair by every length by every depth."""
        options = _options(question)
        if (metric := question.scoring.metric) not in (accepted := (*NAMES, *METRICS)):
            raise ConfigError(f"scoring.metric: the task has no score {metric}; accepted: {', '.join(accepted)}")
        pairs = [
            pair for pair in _set(options).pairs.values() if not options.questions or pair.hop in options.questions
        ]
        known = dict.fromkeys(pair.hop for pair in _set(options).pairs.values())
        if unknown := [kind for kind in options.questions if kind not in known]:
            raise ConfigError(f"task.questions: the set has no {unknown[0]!r}; it has {', '.join(known)}")
        pairs = [pair for pair in pairs if pair.hop in (options.questions or known)]
        if options.wording == "set" and (bare := next((pair.name for pair in pairs if pair.prompt is None), None)):
            raise ConfigError(f"task.wording: the set has no task_template for {bare}; suite is accepted")
        for pair, length, depth in itertools.product(pairs, question.lengths, question.depths):
            yield length, depth, pair.name

    def asked(self, question: Question, place: Place) -> Expectation:
        """The question, the drawn name, and those that were not drawn."""
        pair = _pair(question, place)
        name = _drawn(pair, place.seed)
        gold = pair.gold or (name,)
        others = tuple(each for each in pair.characters if each not in (name, *gold))
        return Expectation(pair.question, gold[0], tuple(gold[1:]), others=others)

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """A prompt of exactly the length, the needle behind the first line end at or after its depth."""
        options, pair = _options(question), _pair(question, place)
        length, depth = place.get(LENGTH), place.get(DEPTH)
        assert isinstance(length, int)
        assert isinstance(depth, int | float)
        prompt = pair.prompt if options.wording == "set" else question.prompt
        assert prompt is not None
        sampling = {key: value for key, value in question.generation.items() if value is not None}
        sampling.setdefault("max_tokens", _ANSWER_TOKENS)
        said = options.model_dump(mode="json", exclude={"questions"}, exclude_none=True)
        file_hash = _set(options).hash
        return request_of(
            writer,
            writer.haystack(question.source),
            writer.frame(prompt, pair.question),
            _planned(options, pair, float(depth), place.seed),
            pair.question,
            length,
            sampling,
            seed=place.seed,
            boundary=question.boundary,
            options={**said, FILE_HASH: file_hash} if file_hash else said,
        )

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The prompt of a record, drawn again."""
        return asked_again(self, record, writer)

    def judge(self, answer: str, expected: Expectation, scoring: Scoring) -> Judgement:
        """Whether it names the character, and nobody else; see `retrieval_heads.scoring.names`."""
        return judge_name(answer, expected.references, expected.others or (), expected.question, scoring)

    def totals(self, records: Sequence[Record]) -> list[str]:
        """The base score and the effective length."""
        return totals(records)


NONLITERAL = NonliteralTask()


def _options(question: Question) -> NonliteralOptions:
    # Those of a recipe hold the file's hash beside them.
    given = {key: value for key, value in question.options.items() if key != FILE_HASH}
    return NonliteralOptions.model_validate(given)


def _set(options: NonliteralOptions) -> NeedleSet:
    return own_set() if options.file is None else read_set(Path(options.file))


def _pair(question: Question, place: Place) -> Pair:
    name = str(place.get(PAIR))
    pairs = _set(_options(question)).pairs
    if name not in pairs:
        raise ConfigError(f"the set holds no {name}; it has {len(pairs)} pairs")
    return pairs[name]


def _drawn(pair: Pair, seed: int) -> str:
    """The character, by seed and pair alone: every length and depth asks for the same one."""
    if not pair.characters:
        return ""
    return random.Random(f"retrieval-heads nonliteral {seed} {pair.name}").choice(pair.characters)


def _planned(options: NonliteralOptions, pair: Pair, depth: float, seed: int) -> list[Planned]:
    draw = random.Random(f"retrieval-heads nonliteral distractors {seed} {pair.name}")
    name = _drawn(pair, seed)
    return [
        Planned("asked", pair.needle.replace(CHARACTER, name), None, depth),
        *(
            Planned(
                "distractor", text.replace(CHARACTER, name), None, drawn_away(draw, [depth], options.apart, *_MIDDLE)
            )
            for text in (pair.distractors if options.distractors else ())
        ),
    ]
