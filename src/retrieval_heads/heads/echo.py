"""`echo`: how much of its attention a head has on earlier copies of the token it reads (arXiv 2407.15891).

That paper, RazorAttention, repeats 2,500 random tokens four times, and keeps the whole cache of the best 14 % of heads
by `induction` and 1 % by `echo`. It has published no code; which copies and rows count is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval_heads.heads.looks import Rows, Seen, WeighBehind
from retrieval_heads.heads.replays import REPEATED
from retrieval_heads.heads.score import HeadScore

if TYPE_CHECKING:
    from torch import Tensor


class Echo(HeadScore):
    """Attention weight from a random text's later copies to the same token of all earlier ones."""

    name = "echo"
    definition = (
        "attention weight on the same token of all earlier copies, mean over the rows of a random text's copies from "
        "the second on (RazorAttention, arXiv 2407.15891)"
    )
    label = "echo (earlier copy)"
    is_default = False
    replays = (REPEATED,)

    def weighings(self, rows: Rows) -> Sequence[WeighBehind]:
        """Every row of the later copies, at the token of each earlier copy."""
        return behind(rows, 0)

    def figure(self, seen: Seen) -> Tensor:
        """The mean over rows of their weight on all earlier copies."""
        return mean_of_rows(seen)


def behind(rows: Rows, further: int) -> list[WeighBehind]:
    """Every row that has a copy of its token so many periods before it, at the token `further` behind that copy.

    With a period of L and row p, the earlier copies of its token are at p − L, p − 2L and so on, as far as there are.
    """
    start, end = rows.repeated_rows
    return [
        WeighBehind((distance, end), distance - further) for distance in range(start, end, start or 1) if distance < end
    ]


def mean_of_rows(seen: Seen) -> Tensor:
    """All sums over the number of rows from the second copy on, `[layers, requests, heads]`."""
    spans = [rows.repeated_rows for rows in seen.requests]
    return seen.sums.sum(2) / seen.ints([[max(1, end - start)] for start, end in spans])


SCORE = Echo()
