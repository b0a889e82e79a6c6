"""`r2`: attention on the needle, as far as it is among a row's greatest (HeadKV, arXiv 2410.19258)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval_heads.heads.copy_reference import steps_a_token
from retrieval_heads.heads.looks import Look, Rows, Seen
from retrieval_heads.heads.score import HeadScore
from retrieval_heads.runs.record import Record

if TYPE_CHECKING:
    from torch import Tensor


class R2(HeadScore):
    """Attention weight on needle tokens that are among the row's top n, summed over the answer's steps, over n.

    HeadKV's code multiplies it by 10 and divides it by the tokens of the expected answer as well, which leaves the
    order of a sample's heads as it is; it counts samples whose answer has an F1 above 50, this project those that pass.
    """

    name = "r2"
    definition = (
        "attention weight on needle tokens that are among the row's n greatest, n being the needle's tokens, summed "
        "over the answer's steps, over n (HeadKV, arXiv 2410.19258)"
    )
    label = "r2 (needle among the top n)"
    is_share = False
    is_default = False
    is_in_table = False
    needs = frozenset({"top_weight"})

    def greatest(self, record: Record) -> float:
        """That of a head which has all its weight there at each step of the answer."""
        return steps_a_token(record)

    def looks(self, rows: Rows) -> Sequence[Look]:
        """The answer's rows, at the needle, and at each other one that is asked for."""
        return [Look(rows.answer_rows, span) for span in rows.spans]

    def figure(self, seen: Seen) -> Tensor:
        """The weight of all rows, over the needles' tokens."""
        looked = seen.ints([[len(rows.answer) * len(rows.spans)] for rows in seen.requests])
        return seen.mean(seen.top_weight) * looked / seen.ints([[len(rows.needle)] for rows in seen.requests])


SCORE = R2()
