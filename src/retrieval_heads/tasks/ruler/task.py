"""RULER's tasks as one task: what is asked is an axis beside the length."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.prompts.haystack import SENTENCES, Text
from retrieval_heads.prompts.prompt import Frame, hash_ids
from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.prompts.reuse import Prefix
from retrieval_heads.prompts.settings import PROMPTS, Message, Prompt
from retrieval_heads.reading import path_of
from retrieval_heads.runs.facts import Expectation, PromptFacts
from retrieval_heads.runs.place import LENGTH, Place, Value
from retrieval_heads.runs.record import Insertion, Recipe, Record
from retrieval_heads.scoring import Judgement, judge_any, judge_several
from retrieval_heads.scoring.settings import MATCHES, Scoring
from retrieval_heads.settings.messages import nearest
from retrieval_heads.settings.section import PathText, Section, Whole
from retrieval_heads.tasks.insertions import SAYS_ALL, as_sentences, check_metric, request_of
from retrieval_heads.tasks.ruler.fit import most_that_fit
from retrieval_heads.tasks.ruler.niah import InText
from retrieval_heads.tasks.ruler.part import Asked, Filled, Units
from retrieval_heads.tasks.ruler.parts import NAMES, OF_FILES, part_of, wording_of
from retrieval_heads.tasks.ruler.qa import OverDocuments
from retrieval_heads.tasks.ruler.total import sentences
from retrieval_heads.tasks.ruler.words import PACKAGE, load_words
from retrieval_heads.tasks.task import Question, asked_again


def _absolute(value: str) -> str:
    return str(path_of(value).absolute())


_File = Annotated[PathText, AfterValidator(_absolute)]


class RulerOptions(Section):
    """Which of RULER's tasks are asked."""

    tasks: list[str] = Field(default=[name for name in NAMES if name not in OF_FILES], min_length=1)
    """By their names; where it is left out all, but of `qa_1` and `qa_2` those whose files are given."""
    squad: _File | None = None
    """A file of SQuAD's, such as its dev set of version 2.0: what `qa_1` asks of."""
    hotpotqa: _File | None = None
    """A file of HotpotQA's, such as its dev set of the distractor setting: what `qa_2` asks of."""
    wording: Literal["own", "ruler"] | dict[str, Any] | None = None
    """`own`, ours; `ruler`, RULER's as the package lm-eval holds them. A record's recipe holds the texts themselves."""
    answer_tokens: Annotated[Whole, Field(ge=1)] | None = None
    """The answer's budget, for models that think first; RULER's where it is left out. `generation.max_tokens`, which a
    config may say for all suites, is not read.
    """
    words: str | None = None
    """SHA-256 of the word lists that are expected; those that are installed where it is left out."""

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: list[str]) -> list[str]:
        for at, name in enumerate(tasks):
            if name not in NAMES:
                raise ValueError(f"unknown task {name!r}{nearest(name, NAMES)}")
            if name in tasks[:at]:
                raise ValueError(f"{name} is given twice")
        return tasks

    @model_validator(mode="before")
    @classmethod
    def _with_files(cls, said: Any) -> Any:
        if not isinstance(said, dict) or "tasks" in said:
            return said
        return {**said, "tasks": [name for name in NAMES if name not in OF_FILES or said.get(OF_FILES[name])]}

    @field_validator("wording")
    @classmethod
    def _own(cls, wording: object) -> object:
        return None if wording == "own" else wording


class RulerTask:
    """RULER's tasks over lengths; the samples of a task are the sweep's seeds."""

    axes: tuple[str, ...] = (LENGTH, "task")
    settings: type[Section] = RulerOptions
    needs = frozenset({"haystack"})
    has_spans = True
    defaults: Mapping[str, object] = SAYS_ALL

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """Every length by every task."""
        check_metric(question.scoring)
        options = RulerOptions.model_validate(question.options)
        if question.prompt != PROMPTS["book"]:
            raise ConfigError("prompt: the tasks of ruler have wordings of their own; leave it out")
        for name in options.tasks:
            if name in OF_FILES and getattr(options, OF_FILES[name]) is None:
                raise ConfigError(f"task.{OF_FILES[name]}: {name} asks of a file of yours; none is given")
            if name in OF_FILES and (metric := question.scoring.metric) not in MATCHES:
                raise ConfigError(f"scoring.metric: {name} has no {metric}; it has {', '.join(MATCHES)}")
        parts = {name: part_of(name, options.wording, _file_of(name, options, question)) for name in options.tasks}
        without = [name for name, part in parts.items() if not part.has_spans]
        if question.kind != "niah" and without:
            raise ConfigError(f"kind: {question.kind} takes prompts with spans, and {', '.join(without)} has none")
        if options.wording is not None and question.boundary != "sentence":
            raise ConfigError("boundary: RULER's needles stand between sentences; leave it out")
        load_words()
        return itertools.product(question.lengths, options.tasks)

    def asked(self, question: Question, place: Place) -> Expectation:
        """The question, and all that must be said."""
        asked = _Sample.of(question, place).asked
        if place.get("task") in OF_FILES:
            return Expectation(asked.question, asked.expected[0], asked.alternatives)
        return Expectation(asked.question, ", ".join(asked.expected), expected=asked.expected)

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """A prompt that leaves room for the answer within the length."""
        sample = _Sample.of(question, place)
        if sample.options.words not in (None, load_words().hash):
            raise PromptError(f"the word lists of {PACKAGE} are not those of task.words (their hash differs)")
        asked = sample.asked
        example = sample.part.example(place.seed, sample.length, writer.prompts.count)
        wording = Prompt(messages=[Message(content=asked.message)], prefill=asked.prefill)
        frame = writer.frame(wording, asked.question, example)
        if isinstance(sample.part, InText):
            return _in_text(sample, sample.part, frame, question, writer)
        return _of_units(sample, sample.part, frame, writer)

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The prompt of a record, drawn again."""
        return asked_again(self, record, writer)

    def judge(self, answer: str, expected: Expectation, scoring: Scoring) -> Judgement:
        """How much of what is expected is said, or whether one of the accepted answers is; see
        `retrieval_heads.scoring.matches`.
        """
        if expected.expected is None:
            return judge_any(answer, expected.references, scoring)
        return judge_several(answer, expected.expected, expected.question, scoring)

    def has_own_text(self, question: Question, place: Place) -> bool:
        """Whether it is made of units, and no running text."""
        return not isinstance(_Sample.of(question, place).part, InText)

    def totals(self, records: Sequence[Record]) -> list[str]:
        """The total of each length, and the effective length where all of RULER's tasks were asked."""
        return sentences(records)


RULER = RulerTask()


@dataclass(frozen=True)
class _Sample:
    """A sample of one of the tasks.

    Args:
        name: The task's.
        length: Tokens of prompt and answer.
        seed: Draws it.
        part: The task.
        asked: Its question.
        options: The settings.
        sampling: With the answer's budget.
    """

    name: str
    length: int
    seed: int
    part: InText | Units
    asked: Asked
    options: RulerOptions
    sampling: dict[str, Any]

    @classmethod
    def of(cls, question: Question, place: Place) -> _Sample:
        """The sample at a place."""
        name, length = place.get("task"), place.get(LENGTH)
        assert isinstance(name, str)
        assert isinstance(length, int)
        options = RulerOptions.model_validate(question.options)
        part = part_of(name, options.wording, _file_of(name, options, question))
        sampling = {key: value for key, value in question.generation.items() if value is not None}
        sampling["max_tokens"] = options.answer_tokens or part.answer_tokens
        return cls(name, length, place.seed, part, part.asked(place.seed, length), options, sampling)

    @property
    def room(self) -> int:
        """Tokens of the prompt."""
        return self.length - int(self.sampling["max_tokens"])

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that draw it again: what other tasks are asked beside it says nothing of it."""
        said: dict[str, Any] = {"tasks": [self.name], "words": load_words().hash, "squad": None, "hotpotqa": None}
        if self.name in OF_FILES:  # where it stands and what it holds are the recipe's haystack and hash
            said["words"] = None
        if self.options.wording is not None:
            said["wording"] = wording_of(self.name, self.options.wording).model_dump(mode="json")
        return self.options.model_copy(update=said).model_dump(mode="json")


def _file_of(name: str, options: RulerOptions, question: Question) -> str:
    """What a task of a file asks of; of a record, which names it as its haystack, that."""
    return (getattr(options, OF_FILES[name]) or question.source) if name in OF_FILES else ""


def _in_text(sample: _Sample, part: InText, frame: Frame, question: Question, writer: Writer) -> Request:
    """Needles in a running text: a prompt of the exact length."""
    planned, boundary, seed = part.planned(sample.seed), question.boundary, sample.seed
    if part.noise is not None:
        haystack, seed = writer.text(sample.name, part.noise), 0
    elif part.among_sentences:  # RULER's essays start at their start, on one line
        haystack, boundary, seed = writer.haystack(question.source, one_line=True), SENTENCES, 0
        planned = as_sentences(planned, haystack, sample.room - len(frame), writer)
    else:
        haystack = writer.haystack(question.source)
    return request_of(
        writer,
        haystack,
        frame,
        planned,
        sample.asked.question,
        sample.room,
        sample.sampling,
        seed=seed,
        boundary=boundary,
        options=sample.recipe,
    )


def _of_units(sample: _Sample, part: Units, frame: Frame, writer: Writer) -> Request:
    """A text of as many whole units as fit."""
    writer.check_room(sample.room, sample.sampling["max_tokens"])

    def tokens_of(count: int) -> int:
        return writer.prompts.count(part.filled(sample.seed, sample.length, count).text)

    fewest = part.fewest(sample.seed)
    count = most_that_fit(tokens_of, fewest, sample.room - len(frame))
    if count is None:
        least = len(frame) + tokens_of(fewest) + sample.sampling["max_tokens"]
        raise PromptError(
            f"a length of {sample.length} tokens is too short for {sample.name}: {fewest} {part.unit}, question "
            f"and answer take {least}"
        )
    filled = part.filled(sample.seed, sample.length, count)
    text = Text.of(filled.text, writer.prompts.tokenize)
    ids = [*frame.head, *text.ids, *frame.tail]
    start = len(frame.head) + (0 if frame.question_in_head else len(text.ids))
    if isinstance(part, OverDocuments):
        source, hashed = part.documents.path, part.documents.hash
    else:
        source, hashed = f"package:{PACKAGE}", load_words().hash
    recipe = Recipe(
        haystack=source,
        hash=hashed,
        wording=frame.wording,
        prefill=frame.prefill,
        template_hash=frame.hash,
        prompt_hash=hash_ids(ids),
        options=sample.recipe,
    )
    asked_at = (start + frame.question_span[0], start + frame.question_span[1])
    facts = PromptFacts(len(ids), recipe, question_span=asked_at)
    if filled.counted:
        insertions = _insertions(filled, text, len(frame.head))
        first = insertions[0]
        facts = replace(facts, needle_span=first.span, achieved_depth=first.achieved_depth, insertions=insertions)
    sent = writer.prompts.framed_text(frame, filled.text, sample.asked.question) if writer.takes_text else None
    prefix = Prefix(frame.head, recipe.prompt_hash, len(text.ids), (), frame.tail)
    return Request(ids, sample.sampling, facts, prefix=prefix, text=sent)


def _insertions(filled: Filled, text: Text, before: int) -> tuple[Insertion, ...]:
    """Where what is asked for stands in the prompt."""
    spans = [text.span(start, end) for start, end in filled.counted]
    made = []
    for (start, end), (first, last) in zip(filled.counted, spans, strict=True):
        depth = round(100 * first / len(text.ids), 4)
        made.append(
            Insertion(
                role="asked",
                text=filled.text[start:end],
                depth=depth,
                achieved_depth=depth,
                place=first,
                span=(before + first, before + last),
            )
        )
    return tuple(made)
