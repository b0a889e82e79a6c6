"""`copy_by_value`: `copy` where weights have a sign and it counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval_heads.heads.copy import copied, hits_at
from retrieval_heads.heads.looks import Look, Rows, Seen
from retrieval_heads.heads.score import HeadScore

if TYPE_CHECKING:
    from torch import Tensor


class CopyByValue(HeadScore):
    """Distinct tokens of the needle that had a head's greatest weight, rather than the one farthest from 0."""

    name = "copy_by_value"
    definition = (
        "copy where the greatest weight counts and not the greatest magnitude; only in models with layers "
        "whose weights have a sign, such as gated delta layers"
    )
    label = "copy_by_value"
    needs_sign = True
    is_in_table = False

    def looks(self, rows: Rows) -> Sequence[Look]:
        """The answer's rows, at the needle."""
        return [Look(rows.answer_rows, rows.needle_span)]

    def figure(self, seen: Seen) -> Tensor:
        """The share of the needle's tokens."""
        return copied(hits_at(seen.argmax_by_value, seen))


SCORE = CopyByValue()
