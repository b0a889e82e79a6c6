"""Needles in a haystack: a fact at some depth of a long text, and the question that asks for it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from retrieval_heads.errors import ConfigError
from retrieval_heads.plain import Fields
from retrieval_heads.prompts.haystack import Haystack
from retrieval_heads.prompts.prompt import BuiltPrompt, Frame, Insert
from retrieval_heads.prompts.requests import Request, Writer, recipe_of
from retrieval_heads.prompts.reuse import Prefix
from retrieval_heads.prompts.settings import Needle, Prompt
from retrieval_heads.runs.facts import Expectation, PromptFacts
from retrieval_heads.runs.place import DEPTH, LENGTH, NEEDLE, Place, Value
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring import Judgement, judge
from retrieval_heads.scoring.scorers import SCORERS, is_scorer
from retrieval_heads.scoring.settings import METRICS, Scoring
from retrieval_heads.settings.section import Number, Section
from retrieval_heads.tasks.insertions import Planned, drawn_away, request_of
from retrieval_heads.tasks.task import FILE_HASH, Question

_ANSWER_TOKENS = 4
"""For each of the needle's, where the suite sets no budget."""


class NeedleOptions(Section):
    """Where distractors stand; haystack, needles and sweep say all else."""

    apart: Annotated[Number, Field(ge=0, le=50)] = 5.0
    """Percent of the haystack, at least, between a distractor and the needle."""


class NeedleTask:
    """The task of a suite that names none."""

    axes = (LENGTH, DEPTH, NEEDLE)
    settings: type[Section] = NeedleOptions
    needs = frozenset({"haystack", "needles"})
    has_spans = True
    defaults: Mapping[str, object] = {}

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """Every needle by every length by every depth."""
        if (metric := question.scoring.metric) not in METRICS and not is_scorer(metric):
            accepted = ", ".join((*METRICS, *SCORERS.names))
            raise ConfigError(
                f"scoring.metric: needles have no score {metric}; accepted: {accepted}, or module:function"
            )
        for needle, length, depth in itertools.product(question.needles, question.lengths, question.depths):
            yield length, depth, needle.name or ""

    def asked(self, question: Question, place: Place) -> Expectation:
        """The needle, its question and the answers that count."""
        needle = needle_of(question, place)
        return Expectation(
            question=needle.question,
            reference=needle.reference,
            alternatives=needle.references[1:],
            needle=needle.needle,
            answer_span=needle.answer_span,
        )

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """A prompt of exactly the length, the needle at its depth, its distractors away from it."""
        needle = needle_of(question, place)
        needle = Needle.model_validate(needle.model_dump())
        sampling = {key: value for key, value in question.generation.items() if value is not None}
        inserted = tuple(writer.prompts.needle_tokens(needle)[0])
        sampling.setdefault("max_tokens", _ANSWER_TOKENS * len(inserted))
        length, depth = place.get(LENGTH), place.get(DEPTH)
        assert isinstance(length, int)
        assert isinstance(depth, int | float)
        assert question.prompt is not None
        haystack = writer.haystack(needle.haystack or question.source)
        frame = writer.frame(question.prompt, needle.question)
        options = _said_options(question, needle)
        if needle.distractors:
            planned = _planned(needle, depth, place.seed, options["apart"])
            return request_of(
                writer,
                haystack,
                frame,
                planned,
                needle.question,
                length,
                sampling,
                seed=place.seed,
                boundary=question.boundary,
                options=options,
            )
        writer.check_room(length, sampling["max_tokens"])
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
        facts = _facts(prompt, haystack, frame, options)
        return Request(prompt.ids, sampling, facts, prefix=prefix, text=text)

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The prompt of a record; of the predecessor's, which hold its text, that text."""
        recipe = record.recipe
        if recipe is None:
            return writer.stored(record.prompt, record.needle.strip())
        haystack = writer.haystack(recipe.haystack)
        wording = Prompt.model_validate({"messages": recipe.wording, "prefill": recipe.prefill})
        frame = writer.frame(wording, record.question)
        stood = record.insertions
        if stood is None:
            inserts, places = [Insert(record.needle, record.answer_span, record.document_depth)], [recipe.insertion]
        else:
            inserts = [Insert(each.text, each.counted, each.depth) for each in stood]
            places = [each.place for each in stood]
        prompt = writer.prompts.rebuild(haystack, frame, inserts, places, record.context_length, recipe)
        facts = replace(_facts(prompt, haystack, frame, {}), recipe=recipe)
        if stood is not None:
            insertions = (
                each.model_copy(update={"span": span}) for each, span in zip(stood, prompt.spans, strict=True)
            )
            facts = replace(facts, insertions=tuple(insertions))
        return Request(prompt.ids, {}, facts)

    def judge(self, answer: str, expected: Expectation, scoring: Scoring) -> Judgement:
        """Whether it says what only the needle knows; see `retrieval_heads.scoring`."""
        return judge(answer, expected, scoring)


TheNeedle = NeedleTask()


def needle_of(question: Question, place: Place) -> Needle:
    """The needle that stands at a place."""
    return question.by_name[str(place.get(NEEDLE))]


def _said_options(question: Question, needle: Needle) -> Fields:
    """What the recipe says beside haystack and wording; nothing of a needle alone that a suite itself holds."""
    said = {"apart": question.options.get("apart", NeedleOptions().apart)} if needle.distractors else {}
    return said | {name: value for name, value in question.options.items() if name == FILE_HASH}


def _planned(needle: Needle, depth: float, seed: int, apart: float) -> list[Planned]:
    """The needle at its depth; its distractors where the seed puts them, at one depth of the needle always there."""
    draw = random.Random(f"retrieval-heads distractors {seed} {needle.name}")
    return [
        Planned("asked", needle.needle, needle.answer_span, depth),
        *(Planned("distractor", text, None, drawn_away(draw, [depth], apart)) for text in needle.distractors),
    ]


def _facts(prompt: BuiltPrompt, haystack: Haystack, frame: Frame, options: Fields) -> PromptFacts:
    return PromptFacts(
        prompt_tokens=len(prompt.ids),
        recipe=recipe_of(prompt, haystack, frame, options or None),
        needle_span=prompt.needle_span,
        question_span=prompt.question_span,
        achieved_depth=round(prompt.achieved_depth, 4),
        around=prompt.context.around,
    )
