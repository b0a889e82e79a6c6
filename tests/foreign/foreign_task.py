"""A task of another distribution, in one file: sums of small numbers, with neither a haystack nor a needle."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from pydantic import Field

from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.place import Place, Value
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring import Judgement
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.settings.section import Section, Whole
from retrieval_heads.tasks.task import Question


class SumOptions(Section):
    """Which sums are asked."""

    terms: list[Whole] = Field(min_length=1)
    digits: list[Whole] = Field(default=[1])


class Sums:
    """How many terms a model can add, by how many digits they have."""

    axes = ("terms", "digits")
    settings = SumOptions
    needs: frozenset[str] = frozenset()
    has_spans = False
    defaults: Mapping[str, object] = {}

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """Every count of terms by every count of digits."""
        return [(terms, digits) for terms in question.options["terms"] for digits in question.options["digits"]]

    def asked(self, question: Question, place: Place) -> Expectation:
        """The sum, and its value."""
        terms, digits = (place.get(axis) for axis in self.axes)
        draw = random.Random(f"{terms} {digits} {place.seed}")
        numbers = [draw.randrange(10 ** (int(digits) - 1), 10 ** int(digits)) for _ in range(int(terms))]
        return Expectation(question=f"What is {' + '.join(map(str, numbers))}?", reference=str(sum(numbers)))

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """One message; eight tokens are enough for a number."""
        sampling = {key: value for key, value in question.generation.items() if value is not None}
        return writer.message(self.asked(question, place).question, {"max_tokens": 8, **sampling})

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The same message again."""
        return writer.message(record.question, {"max_tokens": 8})

    def judge(self, answer: str, expected: Expectation, scoring: Scoring) -> Judgement:
        """Whether the number is among the answer's words."""
        is_said = expected.reference in answer.replace(".", " ").split()
        reason = "" if is_said else f"{expected.reference} is not said"
        return Judgement({scoring.metric: float(is_said)}, is_said, reason)


SUMS = Sums()
