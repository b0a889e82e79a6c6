"""What is known of a cell beside its answer: fields of `Record` of the same names."""

from __future__ import annotations

from dataclasses import dataclass, fields

from retrieval_heads.plain import Plain
from retrieval_heads.runs.record import Insertion, Recipe, Span, sayings_of


class OfRecord(Plain):
    """Fields of `Record`, some of which may say nothing."""

    __slots__ = ()

    def fields(self) -> dict[str, object]:
        """Those that say something, by name."""
        told = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Expectation(OfRecord):
    """A question in words, and what its answer must say.

    Args:
        question: What is asked.
        reference: The expected answer.
        alternatives: Further answers that are accepted; a score is that of the best one.
        expected: All that the answer must say, of a task that asks for several things; `reference` is them as one text.
        others: What would be a wrong answer of the same kind, of a task whose answer is one of several names.
        answer_prefix: The letters that the answer must begin with, of a task that asks for some; `reference` begins so.
        needle: The inserted text as the suite gives it, where there is one.
        answer_span: The part of the needle that must be said, where the suite gives one.
    """

    question: str
    reference: str
    alternatives: tuple[str, ...] = ()
    expected: tuple[str, ...] | None = None
    others: tuple[str, ...] | None = None
    answer_prefix: str | None = None
    needle: str = ""
    answer_span: str | None = None

    @property
    def references(self) -> tuple[str, ...]:
        """The answers that are accepted."""
        return (self.reference, *self.alternatives)

    @property
    def sayings(self) -> tuple[str, ...]:
        """Of what `key_words` must find one: the accepted answers; `answer_span` where the suite gives none."""
        return sayings_of(self.references, self.needle, self.answer_span)


@dataclass(frozen=True, slots=True)
class PromptFacts(OfRecord):
    """What is known of a prompt that was built.

    Positions are token positions in it; spans are half open, `[start, end)`.

    Args:
        prompt_tokens: Tokens of it, where they are known.
        recipe: How to build it again; every cell's prompt has one.
        needle_span: The tokens that head scores aim at; of a task that `has_spans`.
        question_span: The question's tokens.
        achieved_depth: 100 × needle start / haystack tokens, needle excluded.
        around: The haystack's text just before and just after the needle.
        insertions: What stands in the haystack, of a task that inserts several texts, those that are asked for first;
            `needle_span` is that of the first.
    """

    prompt_tokens: int | None = None
    recipe: Recipe | None = None
    needle_span: Span | None = None
    question_span: Span | None = None
    achieved_depth: float | None = None
    around: tuple[str, str] | None = None
    insertions: tuple[Insertion, ...] | None = None
