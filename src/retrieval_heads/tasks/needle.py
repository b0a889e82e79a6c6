"""Needles in a haystack: a fact at some depth of a long text, and the question that asks for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from retrieval_heads.errors import ConfigError
from retrieval_heads.prompts.haystack import Haystack
from retrieval_heads.prompts.prompt import BuiltPrompt, Frame
from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.prompts.reuse import Prefix
from retrieval_heads.prompts.settings import Needle, Prompt
from retrieval_heads.runs.place import DEPTH, LENGTH, NEEDLE, Place, Value
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring import Judgement, judge
from retrieval_heads.scoring.settings import METRICS, Scoring
from retrieval_heads.settings.section import Section
from retrieval_heads.tasks.task import Question

_ANSWER_TOKENS = 4
"""For each of the needle's, where the suite sets no budget."""


class NeedleOptions(Section):
    """It has none: haystack, needles and sweep say all."""


class NeedleTask:
    """The task of a suite that names none."""

    axes = (LENGTH, DEPTH, NEEDLE)
    settings: type[Section] = NeedleOptions
    needs = frozenset({"haystack", "needles"})
    has_spans = True
    defaults: Mapping[str, Any] = {}

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """Every needle by every length by every depth."""
        if (metric := question.scoring.metric) not in METRICS:
            raise ConfigError(f"scoring.metric: needles have no score {metric}; accepted: {', '.join(METRICS)}")
        for needle, length, depth in itertools.product(question.needles, question.lengths, question.depths):
            yield length, depth, needle.name or ""

    def asked(self, question: Question, place: Place) -> Mapping[str, Any]:
        """The needle, its question and the answers that count."""
        needle = needle_of(question, place)
        return {
            "context_length": place.get(LENGTH),
            "document_depth": place.get(DEPTH),
            "needle": needle.needle,
            "needle_name": needle.name,
            "answer_span": needle.answer_span,
            "question": needle.question,
            "reference": needle.reference,
            "alternatives": needle.references[1:],
        }

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """A prompt of exactly the length, the needle at its depth."""
        needle = needle_of(question, place)
        needle = Needle.model_validate(needle.model_dump())
        sampling = {key: value for key, value in question.generation.items() if value is not None}
        inserted = tuple(writer.prompts.needle_tokens(needle)[0])
        sampling.setdefault("max_tokens", _ANSWER_TOKENS * len(inserted))
        length, depth = place.get(LENGTH), place.get(DEPTH)
        assert isinstance(length, int)
        assert isinstance(depth, int | float)
        assert question.prompt is not None
        writer.check_room(length, sampling["max_tokens"])
        haystack = writer.haystack(question.source)
        frame = writer.frame(question.prompt, needle.question)
        prompt = writer.prompts.build(
            haystack, frame, needle, length, depth, seed=place.seed, boundary=question.boundary
        )
        prefix = Prefix(
            head=frame.head,
            context=(haystack.hash, prompt.context.offset),
            insertion=prompt.context.insertion,
            needle=inserted,
            tail=frame.tail,
        )
        text = None
        if writer.takes_text:
            text = writer.prompts.prompt_text(prompt, haystack, frame, [needle.needle], needle.question)
        return Request(prompt.ids, sampling, _facts(prompt, haystack, frame), prefix=prefix, text=text)

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The prompt of a record; of the predecessor's, which hold its text, that text."""
        if record.recipe is None:
            return writer.stored(record.prompt, record.needle.strip())
        haystack = writer.haystack(record.recipe.haystack)
        wording = Prompt.model_validate({"messages": record.recipe.wording, "prefill": record.recipe.prefill})
        frame = writer.frame(wording, record.question)
        needle = Needle(needle=record.needle, question=record.question, answer_span=record.answer_span)
        prompt = writer.prompts.rebuild(haystack, frame, needle, record.context_length, record.recipe)
        recipe = {"recipe": record.recipe.model_dump(mode="json")}
        return Request(prompt.ids, {}, _facts(prompt, haystack, frame) | recipe)

    def judge(self, answer: str, asked: Mapping[str, Any], scoring: Scoring) -> Judgement:
        """Whether it says what only the needle knows; see `retrieval_heads.scoring`."""
        # Not validated again: stored answers of the predecessor's have needles without a question.
        needle = Needle.model_construct(
            needle=asked["needle"],
            question=asked["question"],
            answer=[asked["reference"], *asked["alternatives"]],
            answer_span=asked["answer_span"],
        )
        return judge(answer, needle, scoring)


TheNeedle = NeedleTask()


def needle_of(question: Question, place: Place) -> Needle:
    """The needle that stands at a place."""
    name = place.get(NEEDLE)
    return next(needle for needle in question.needles if (needle.name or "") == name)


def _facts(prompt: BuiltPrompt, haystack: Haystack, frame: Frame) -> dict[str, Any]:
    return {
        "prompt_tokens": len(prompt.ids),
        "achieved_depth": round(prompt.achieved_depth, 4),
        "needle_span": prompt.needle_span,
        "question_span": prompt.question_span,
        "around": prompt.context.around,
        "recipe": {
            "haystack": haystack.source,
            "hash": haystack.hash,
            "tokens": len(haystack.tokens.ids),
            "offset": prompt.context.offset,
            "insertion": prompt.context.insertion,
            "repeats": prompt.context.repeats,
            "wording": frame.wording,
            **({"prefill": frame.prefill} if frame.prefill else {}),
            "template_hash": frame.hash,
            "prompt_hash": prompt.hash,
        },
    }
