"""`query`: how much of its attention a head has on the needle while the question is read.

QRHead (arXiv 2506.09944) starts from that; it takes off what an empty question gets, and weak tokens. Neither is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval_heads.heads.looks import Look, Rows, Seen
from retrieval_heads.heads.mass import on_all_spans
from retrieval_heads.heads.score import HeadScore

if TYPE_CHECKING:
    from torch import Tensor


class Query(HeadScore):
    """Attention weight from the question's tokens to the needle, mean over them."""

    name = "query"
    definition = (
        "attention weight from the question's tokens to the needle, mean over them: the first step of QRHead's score "
        "(arXiv 2506.09944), without its calibration and without its cut of weak tokens"
    )
    label = "query (question to needle)"

    def looks(self, rows: Rows) -> Sequence[Look]:
        """The question's rows, at the needle and at each other one that is asked for; none where the question is not
        known.
        """
        start, end = rows.question_span
        return [Look(rows.question_span, span) for span in rows.spans] if start < end else []

    def figure(self, seen: Seen) -> Tensor:
        """The mean weight on all needles that are asked for."""
        return on_all_spans(seen)


SCORE = Query()
