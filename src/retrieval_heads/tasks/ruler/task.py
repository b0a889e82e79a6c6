"""RULER's synthetic tasks as one task: what is asked is an axis beside the length."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.prompts.haystack import Text
from retrieval_heads.prompts.prompt import hash_ids
from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.prompts.settings import PROMPTS, Message, Prompt
from retrieval_heads.runs.place import LENGTH, Place, Value
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring import Judgement, judge_several
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.settings.messages import nearest
from retrieval_heads.settings.section import Section, Whole
from retrieval_heads.tasks.insertions import SAYS_ALL, check_metric, request_of
from retrieval_heads.tasks.ruler.cwe import CWE
from retrieval_heads.tasks.ruler.fwe import FWE
from retrieval_heads.tasks.ruler.niah import NIAH, InText
from retrieval_heads.tasks.ruler.part import Asked, Filled, Units
from retrieval_heads.tasks.ruler.vt import VT
from retrieval_heads.tasks.ruler.words import PACKAGE, load_words
from retrieval_heads.tasks.task import Question, asked_again

PARTS: dict[str, InText | Units] = {**NIAH, "vt": VT, "cwe": CWE, "fwe": FWE}
"""By RULER's names."""


class RulerOptions(Section):
    """Which of RULER's tasks are asked."""

    tasks: list[str] = Field(default=list(PARTS), min_length=1)
    """By their names; all where it is left out."""
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
            if name not in PARTS:
                raise ValueError(f"unknown task {name!r}{nearest(name, tuple(PARTS))}")
            if name in tasks[:at]:
                raise ValueError(f"{name} is given twice")
        return tasks


class RulerTask:
    """RULER's tasks over lengths; the samples of a task are the sweep's seeds."""

    axes: tuple[str, ...] = (LENGTH, "task")
    settings: type[Section] = RulerOptions
    needs = frozenset({"haystack"})
    has_spans = True
    defaults: Mapping[str, Any] = SAYS_ALL

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """Every length by every task."""
        check_metric(question.scoring)
        options = RulerOptions.model_validate(question.options)
        if question.prompt != PROMPTS["book"]:
            raise ConfigError("prompt: the tasks of ruler have wordings of their own; leave it out")
        without = [name for name in options.tasks if not PARTS[name].has_spans]
        if question.kind != "niah" and without:
            raise ConfigError(f"kind: {question.kind} takes prompts with spans, and {', '.join(without)} has none")
        load_words()
        return itertools.product(question.lengths, options.tasks)

    def asked(self, question: Question, place: Place) -> Mapping[str, Any]:
        """The question, and all that must be said."""
        _, _, asked = _of(place)
        return {"question": asked.question, "reference": ", ".join(asked.expected), "expected": list(asked.expected)}

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """A prompt that leaves room for the answer within the length."""
        options = RulerOptions.model_validate(question.options)
        if options.words not in (None, load_words().hash):
            raise PromptError(f"the word lists of {PACKAGE} are not those of task.words (their hash differs)")
        name, length, asked = _of(place)
        part = PARTS[name]
        sampling = {key: value for key, value in question.generation.items() if value is not None}
        sampling["max_tokens"] = options.answer_tokens or part.answer_tokens
        room = length - sampling["max_tokens"]
        wording = Prompt(messages=[Message(content=asked.wording)], prefill=asked.prefill)
        frame = writer.frame(wording, asked.question)
        kept = options.model_copy(update={"words": load_words().hash}).model_dump(mode="json")
        if isinstance(part, InText):
            return request_of(
                writer,
                writer.haystack(question.source) if part.noise is None else writer.text(name, part.noise),
                frame,
                part.planned(place.seed),
                asked.question,
                room,
                sampling,
                seed=place.seed if part.noise is None else 0,
                boundary=question.boundary,
                options=kept,
            )
        writer.check_room(room, sampling["max_tokens"])

        def tokenized(count: int) -> tuple[Filled, Text]:
            filled = part.filled(place.seed, length, count)
            return filled, Text.of(filled.text, writer.prompts.tokenize)

        count = most_that_fit(lambda count: len(tokenized(count)[1].ids), part.fewest, room - len(frame))
        if count is None:
            least = len(frame) + len(tokenized(part.fewest)[1].ids) + sampling["max_tokens"]
            raise PromptError(
                f"a length of {length} tokens is too short for {name}: {part.fewest} {part.unit}, question and answer "
                f"take {least}"
            )
        filled, text = tokenized(count)
        ids = [*frame.head, *text.ids, *frame.tail]
        start = len(frame.head) + (0 if frame.question_in_head else len(text.ids))
        facts: dict[str, Any] = {
            "prompt_tokens": len(ids),
            "question_span": (start + frame.question_span[0], start + frame.question_span[1]),
            "recipe": {
                "haystack": f"package:{PACKAGE}",
                "hash": load_words().hash,
                "wording": frame.wording,
                "prefill": frame.prefill,
                "template_hash": frame.hash,
                "prompt_hash": hash_ids(ids),
                "options": kept,
            },
        }
        if filled.counted:
            facts |= _insertions(filled, text, len(frame.head))
        sent = writer.prompts.framed_text(frame, filled.text, asked.question) if writer.takes_text else None
        return Request(ids, sampling, facts, text=sent)

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The prompt of a record, drawn again."""
        return asked_again(self, record, writer)

    def judge(self, answer: str, asked: Mapping[str, Any], scoring: Scoring) -> Judgement:
        """How much of what is expected is said; see `retrieval_heads.scoring.matches`."""
        return judge_several(answer, asked["expected"], asked["question"], scoring)


RULER = RulerTask()


def most_that_fit(tokens_of: Callable[[int], int], fewest: int, room: int) -> int | None:
    """The greatest count of units whose text fits; `None` where the fewest do not.

    Texts are nearly as long as they have units, so that each next count is guessed from the slope: four or five texts
    are tokenized, however many units there are.

    Args:
        tokens_of: Tokens of the text of a count.
        fewest: The least count.
        room: Tokens.
    """
    low, taken = fewest, tokens_of(fewest)
    if taken > room:
        return None
    high, above = 2 * low, tokens_of(2 * low)
    while above <= room:
        low, taken, high = high, above, max(high + 1, high * room // max(above, 1) + 2)
        above = tokens_of(high)
    while high - low > 1:
        guess = low + (room - taken) * (high - low) // max(1, above - taken)
        guess = min(max(guess, low + 1), high - 1)
        count = tokens_of(guess)
        if count <= room:
            low, taken = guess, count
        else:
            high, above = guess, count
    return low


def _of(place: Place) -> tuple[str, int, Asked]:
    """A place's task, its length and its question."""
    name, length = place.get("task"), place.get(LENGTH)
    assert isinstance(name, str)
    assert isinstance(length, int)
    return name, length, PARTS[name].asked(place.seed, length)


def _insertions(filled: Filled, text: Text, before: int) -> dict[str, Any]:
    """Where what is asked for stands in the prompt."""
    spans = [text.span(start, end) for start, end in filled.counted]
    made: list[dict[str, Any]] = []
    for (start, end), (first, last) in zip(filled.counted, spans, strict=True):
        depth = round(100 * first / len(text.ids), 4)
        said = filled.text[start:end]
        made.append(
            {
                "role": "asked",
                "text": said,
                "depth": depth,
                "achieved_depth": depth,
                "place": first,
                "span": [before + first, before + last],
            }
        )
    return {
        "achieved_depth": made[0]["achieved_depth"],
        "needle_span": tuple(made[0]["span"]),
        "insertions": made,
    }
