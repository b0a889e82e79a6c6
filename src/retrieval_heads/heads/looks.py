"""What a head score asks of a replay's rows, and what it is given of them. Imports no torch.

A row is one query position of a replay, a request of prompt and answer in which the tokens are known: row p saw the
tokens up to p and predicted token p + 1. Positions are tokens of the request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from retrieval_heads.plain import Plain

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int]
"""Positions, half open."""

NEEDS: Final = frozenset({"written", "top_weight"})
"""What a score may need of rows beyond argmax and weights (`HeadScore.needs`): properties of `Seen`."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Rows(Plain):
    """What is replayed: the rows that predicted an answer, and those of the question before them.

    Args:
        prompt_tokens: Where the answer starts.
        answer: The answer's token ids; the replay's last token is the one before the last of these.
        needle_span: The needle.
        needle: The needle's token ids; of several needles that are asked for, those of all, in the order of `spans`.
        question_span: The question; empty where it is not known.
        more_spans: The other needles that are asked for, where there are several.
        distractor_spans: Texts that are like the needle and are not asked for.
        scores: Names of the scores that are wanted; none stands for the usual ones (`HeadScore.is_default`).
        query_span: From the context's end to the prompt's: instruction, question and what the template writes behind
            them; empty where no wanted score reads it, and where that place is not known.
        period: Of a random text that is repeated, the tokens of one copy; 0 of a sample.
        per_step: Hand back what each head does at each row of the answer as well.
        positions: Hand back each answer row's argmax as well: for tests, since that grows with the answer.
        spelled: The answer's tokens that spell what was expected, half open; `None` is all of them.
    """

    prompt_tokens: int
    answer: tuple[int, ...]
    needle_span: Span
    needle: tuple[int, ...]
    question_span: Span
    more_spans: tuple[Span, ...] = ()
    distractor_spans: tuple[Span, ...] = ()
    scores: tuple[str, ...] = ()
    query_span: Span = (0, 0)
    period: int = 0
    per_step: bool = False
    positions: bool = False
    spelled: Span | None = None

    @property
    def spans(self) -> tuple[Span, ...]:
        """Every needle that is asked for."""
        return (self.needle_span, *self.more_spans)

    @property
    def answer_rows(self) -> Span:
        """The rows that predicted the answer: of prompt length P and n answer ids, P−1 to P+n−2."""
        return self.prompt_tokens - 1, self.prompt_tokens - 1 + len(self.answer)

    @property
    def spelled_rows(self) -> Span:
        """The rows that predicted those of the answer's tokens that spell what was expected."""
        start, end = self.answer_rows
        first, last = (0, end - start) if self.spelled is None else self.spelled
        return start + first, start + last

    @property
    def repeated_rows(self) -> Span:
        """The rows of a repeated text's copies from the second on; none of a sample."""
        return (self.period, self.prompt_tokens) if self.period else (0, 0)

    @property
    def first(self) -> int:
        """The first row that is computed: nothing at or after it may come from the prefix cache."""
        spans = [span for span in (self.question_span, self.query_span, self.repeated_rows) if span[0] < span[1]]
        return min([self.answer_rows[0], *(start for start, _ in spans)])

    @property
    def end(self) -> int:
        """The row after the last."""
        return max(self.answer_rows[1], self.query_span[1], self.repeated_rows[1])


@dataclass(frozen=True)
class Look:
    """Rows that look at one span.

    Args:
        rows: Positions of the rows, among those that a replay computes: `Rows.first` to `Rows.end`.
        span: What they look at. The needle's costs nothing, since every row is scored against it; any other makes
            these rows be scored once more.
    """

    rows: Span
    span: Span


@dataclass(frozen=True)
class Weigh:
    """Rows whose weights on single keys are added up: one sum for each key of a span.

    Costs no other pass over the keys than that of all rows at the needle.

    Args:
        rows: As those of `Look`.
        keys: Positions. A row has no weight on a key that it does not see.
    """

    rows: Span
    keys: Span

    @property
    def sums(self) -> int:
        """How many sums come of it."""
        return self.keys[1] - self.keys[0]


@dataclass(frozen=True)
class WeighBehind:
    """Rows whose weights on the key that stands so far behind each of them are added up: one sum.

    Args:
        rows: As those of `Look`.
        distance: Tokens from a row back to its key.
    """

    rows: Span
    distance: int

    @property
    def sums(self) -> int:
        """One."""
        return 1


Weighing = Weigh | WeighBehind


class Seen(Protocol):
    """What the rows of a score's looks saw: of all requests of a step, in all layers that have as many heads.

    Requests stand beside each other as a rectangle, the rows of each in the order of its looks; shorter ones are filled
    up with rows that do not count. Nothing here waits for the device. What several scores read is computed once.
    """

    requests: Sequence[Rows]

    @property
    def counts(self) -> Tensor:
        """Whether a row counts, bool `[requests, rows]`."""

    @property
    def argmax(self) -> Tensor:
        """Position of the key with the greatest weight, int32 `[layers, requests, rows, heads]`; of equal ones the
        lowest, and -1 where weights are not defined. Of the greatest magnitude where weights have a sign.
        """

    @property
    def argmax_by_value(self) -> Tensor:
        """The same where the sign counts: `argmax` in layers whose weights have none."""

    @property
    def weight(self) -> Tensor:
        """Share of a row's weight that lies on its look's span, float32 `[layers, requests, rows, heads]`."""

    @property
    def sums(self) -> Tensor:
        """What the score's weighings came to, one after the other, float32 `[layers, requests, sums, heads]`; 0 beyond
        those of a request that has fewer.
        """

    @property
    def written(self) -> Tensor:
        """What the head adds to the logit of the token that the row predicted, from the needles against the rest,
        float32 `[layers, requests, rows, heads]`; see `heads.write`. Of the answer's rows that look at the needle for a
        score that needs it; NaN elsewhere, and in layers that have no such figure.
        """

    @property
    def top_weight(self) -> Tensor:
        """Share of a row's weight that lies on those keys of its look's span that are among the row's n greatest, n
        being the tokens of all needles that are asked for; of keys that tie across the last place all are. Float32
        `[layers, requests, rows, heads]`, of looks of scores that need it; NaN elsewhere.
        """

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the rows that count, `[layers, requests, heads]` of `[layers, requests, rows, heads]`."""

    def ints(self, numbers: Sequence[Sequence[int]], filler: int = -1) -> Tensor:
        """Whole numbers of the host on the device, `[len(numbers), longest]`; shorter ones end in the filler."""

    def once(self, work: Callable[[Seen], Result]) -> Result:
        """What a function makes of this; called once, however many scores ask."""
