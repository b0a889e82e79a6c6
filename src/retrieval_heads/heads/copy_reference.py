"""`copy_reference`: `copy` as the paper's code counts it, an answer that repeats the needle again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval_heads.heads.copy import hits
from retrieval_heads.heads.looks import Look, Rows, Seen
from retrieval_heads.heads.score import HeadScore
from retrieval_heads.runs.record import Record

if TYPE_CHECKING:
    from torch import Tensor


def needle_tokens(record: Record) -> int:
    """Tokens of all needles that a sample asks for: what shares of the needle are of."""
    spans = [each.span for each in record.insertions or () if each.role == "asked"] or [record.needle_span]
    return sum(span[1] - span[0] for span in spans if span is not None)


def steps_a_token(record: Record) -> float:
    """Steps of a sample's answer for each token of what is asked for: what a head comes to that has 1 at each step."""
    count = needle_tokens(record)
    return record.answer_tokens / count if count else 1.0


class CopyReference(HeadScore):
    """Steps at which a head copied, over the needle's length."""

    name = "copy_reference"
    definition = "the same counted at each step, as the paper's code does: a repeated answer counts again"
    label = "copy_reference (counted per step)"
    is_share = False
    is_in_table = False

    def greatest(self, record: Record) -> float:
        """That of a head which copies at each step of the answer."""
        return max(1.0, steps_a_token(record))

    def looks(self, rows: Rows) -> Sequence[Look]:
        """The answer's rows, at the needle."""
        return [Look(rows.answer_rows, rows.needle_span)]

    def figure(self, seen: Seen) -> Tensor:
        """Hits over the needle's tokens."""
        found = seen.once(hits)
        return found.steps.float().sum(2) / found.needle_tokens


SCORE = CopyReference()
