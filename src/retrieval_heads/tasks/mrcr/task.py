"""The k-th of several near-identical requests of a long conversation: multi-round co-reference (MRCR).

After OpenAI's dataset openai/mrcr, whose rows `MRCR_FILE` asks; `MRCR` asks conversations that are drawn here.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.prompts.settings import PROMPTS
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.place import LENGTH, Place, Value
from retrieval_heads.runs.record import Record, finite_mean
from retrieval_heads.scoring import Judgement
from retrieval_heads.scoring.prefixed import judge_prefixed
from retrieval_heads.scoring.settings import RATIO, Scoring
from retrieval_heads.settings.section import Said, Section, SuiteFile, Whole
from retrieval_heads.tasks.mrcr.conversation import drawn, largest_fit, request_of
from retrieval_heads.tasks.mrcr.rows import ROW, Columns, row_of, rows_of
from retrieval_heads.tasks.mrcr.writing import alike, ordinal, prefix
from retrieval_heads.tasks.task import FILE_HASH, Question, of_recipe

REQUESTS, ASKED = "requests", "asked"
_MARKS = ("{prefix}", "{ordinal}", "{form}", "{topic}")
_SPARE = 32
"""Tokens of an answer's budget beyond those of the expected one, where the suite sets none."""
_DEFAULTS: Mapping[str, Any] = {"scoring": {"metric": RATIO, "threshold": 0.9}}


class MrcrOptions(Section):
    """How many requests are alike, and which of their replies are asked for."""

    requests: Annotated[list[Annotated[Whole, Field(ge=1, le=100)]], Field(min_length=1)] = Field(default=[2, 4, 8])
    """Requests that are alike, several times."""
    asked: list[Annotated[Whole, Field(ge=1, le=100)]] | None = None
    """Which of the replies are asked for, from 1; each of them where it is left out."""
    question: Said = (
        "Begin your answer with {prefix} and then repeat, word for word, the {ordinal} {form} about {topic} that you "
        "wrote above. Write nothing else."
    )
    """The last message, with `{prefix}`, `{ordinal}`, `{form}` and `{topic}` in it."""

    @field_validator("question")
    @classmethod
    def _asks(cls, question: str) -> str:
        for mark in _MARKS:
            if (found := question.count(mark)) != 1:
                raise ValueError(f"holds {mark} {found} times; once is accepted")
        return question


class MrcrTask:
    """Conversations drawn by the seed, as long as whole turns let them be."""

    axes: tuple[str, ...] = (LENGTH, REQUESTS, ASKED)
    settings: type[Section] = MrcrOptions
    needs: frozenset[str] = frozenset()
    has_spans = True
    defaults = _DEFAULTS

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """Every length by every count of requests by every reply that is asked for."""
        options = MrcrOptions.model_validate(question.options)
        _check(question)
        if not question.lengths:
            raise ConfigError("sweep.context_lengths: the grid is empty; expected a list or min, max, intervals")
        for name, values in (("requests", options.requests), ("asked", options.asked or ())):
            if twice := [value for at, value in enumerate(values) if value in values[:at]]:
                raise ConfigError(f"task.{name}: {twice[0]} is given twice")
        if options.asked and (beyond := max(options.asked)) > max(options.requests):
            raise ConfigError(f"task.asked: the {ordinal(beyond)} of {max(options.requests)} requests is asked for")
        for length, requests in itertools.product(question.lengths, options.requests):
            for asked in options.asked or range(1, requests + 1):
                if asked <= requests:
                    yield length, requests, asked

    def asked(self, question: Question, place: Place) -> Expectation:
        """The last message, and the asked reply behind its prefix."""
        options = MrcrOptions.model_validate(question.options)
        requests, number = _whole(place, REQUESTS), _whole(place, ASKED)
        turn = alike(place.seed, requests)[number - 1]
        marks = dict(zip(_MARKS, (prefix(place.seed), ordinal(number), turn.form, turn.topic), strict=True))
        said = options.question
        for mark, text in marks.items():
            said = said.replace(mark, text)
        return Expectation(said, prefix(place.seed) + turn.reply, answer_prefix=prefix(place.seed))

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """A prompt of at most the length, of as many whole turns as fit."""
        options, expected = MrcrOptions.model_validate(question.options), self.asked(question, place)
        requests, number = _whole(place, REQUESTS), _whole(place, ASKED)
        conversation = largest_fit(
            lambda turns: drawn(place.seed, requests, number, turns, expected.question),
            requests,
            _whole(place, LENGTH),
            writer,
        )
        said = options.model_dump(mode="json", include={"question"})
        sampling = _sampling(question, expected, writer)
        return request_of(conversation, sampling, writer, said, needs_spans=question.kind == "detect")

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The same conversation again."""
        if record.recipe is None:
            raise PromptError("the record holds no recipe")
        question = Question(record.suite, record.kind, options=record.recipe.options or {})
        return of_recipe(self.request(question, record.place, writer), record.recipe, "conversation")

    def has_own_text(self, question: Question, place: Place) -> bool:
        """Every seed and count of turns has its own."""
        return True

    def judge(self, answer: str, expected: Expectation, scoring: Scoring) -> Judgement:
        """How near the answer is to the asked reply; see `retrieval_heads.scoring.prefixed`."""
        return judge_prefixed(answer, expected.reference, expected.answer_prefix or "", scoring)


class MrcrFileOptions(Section):
    """Which file is asked."""

    file: SuiteFile
    """JSONL, CSV or TSV, a conversation in each row."""
    columns: Columns = Columns()


class MrcrFileTask:
    """Conversations of a file, each a question."""

    axes: tuple[str, ...] = (REQUESTS, ROW)
    settings: type[Section] = MrcrFileOptions
    needs: frozenset[str] = frozenset()
    has_spans = True
    defaults = _DEFAULTS

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """Every row."""
        _check(question)
        for name, row in rows_of(_options(question).file, _options(question).columns).rows.items():
            yield row.requests, name

    def asked(self, question: Question, place: Place) -> Expectation:
        """The row's last message and its answer."""
        row = row_of(_options(question).file, _options(question).columns, place)
        return Expectation(row.messages[-1]["content"], row.answer, answer_prefix=row.prefix)

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """The row's messages through the chat template."""
        options = _options(question)
        table = rows_of(options.file, options.columns)
        conversation = row_of(options.file, options.columns, place).conversation()
        said = {**options.model_dump(mode="json", exclude_none=True), FILE_HASH: table.hash}
        sampling = _sampling(question, self.asked(question, place), writer)
        return request_of(conversation, sampling, writer, said, needs_spans=question.kind == "detect")

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The same row again."""
        if record.recipe is None:
            raise PromptError("the record holds no recipe")
        question = Question(record.suite, record.kind, options=record.recipe.options or {})
        return of_recipe(self.request(question, record.place, writer), record.recipe, "conversation")

    def judge(self, answer: str, expected: Expectation, scoring: Scoring) -> Judgement:
        """How near the answer is to the row's; see `retrieval_heads.scoring.prefixed`."""
        return judge_prefixed(answer, expected.reference, expected.answer_prefix or "", scoring)

    def totals(self, records: Sequence[Record]) -> list[str]:
        """The mean by the length of the prompt, in bins that end at powers of two, as the dataset's page has it."""
        bins: defaultdict[int, list[float]] = defaultdict(list)
        for record in records:
            if record.prompt_tokens and RATIO in record.scores:
                bins[1 << (record.prompt_tokens - 1).bit_length()].append(record.scores[RATIO])
        means = [f"{end:,}: {finite_mean(bins[end]):.3f} (n={len(bins[end])})" for end in sorted(bins)]
        return [f"mean {RATIO} by prompt tokens up to {', '.join(means)}"] if means else []


MRCR, MRCR_FILE = MrcrTask(), MrcrFileTask()


def _check(question: Question) -> None:
    if question.scoring.metric != RATIO:
        raise ConfigError(f"scoring.metric: the score of a conversation is {RATIO}, not {question.scoring.metric}")
    if question.prompt not in (None, PROMPTS["book"]):
        raise ConfigError("prompt: the conversation is the prompt; leave it out (task.question words the question)")


def _options(question: Question) -> MrcrFileOptions:
    # Those of a recipe hold the file's hash beside them.
    return MrcrFileOptions.model_validate({key: value for key, value in question.options.items() if key != FILE_HASH})


def _sampling(question: Question, expected: Expectation, writer: Writer) -> dict[str, Any]:
    sampling = {key: value for key, value in question.generation.items() if value is not None}
    sampling.setdefault("max_tokens", len(writer.prompts.tokenize(expected.reference)[0]) + _SPARE)
    return sampling


def _whole(place: Place, axis: str) -> int:
    value = place.get(axis)
    assert isinstance(value, int)
    return value
