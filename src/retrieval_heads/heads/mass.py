"""`mass`: how much of its attention a head has on the needle while the model answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval_heads.heads.looks import Look, Rows, Seen
from retrieval_heads.heads.score import HeadScore

if TYPE_CHECKING:
    from torch import Tensor


class Mass(HeadScore):
    """Attention weight on the needle, mean over the answer's steps."""

    name = "mass"
    definition = "attention weight on the needle, mean over the answer's steps"
    label = "mass (attention to the needle)"

    def looks(self, rows: Rows) -> Sequence[Look]:
        """The answer's rows, at the needle."""
        return [Look(rows.answer_rows, rows.needle_span)]

    def figure(self, seen: Seen) -> Tensor:
        """The mean weight."""
        return seen.mean(seen.weight)


SCORE = Mass()
