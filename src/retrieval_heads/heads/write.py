"""`write`: what a head writes towards the tokens that spell the answer, from the needle against the rest (LOCOS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval_heads.heads.looks import Look, Rows, Seen
from retrieval_heads.heads.score import HeadScore

if TYPE_CHECKING:
    from torch import Tensor


class Write(HeadScore):
    """φ_j = α_j · u_yᵀ W_O v_j is what key j adds to the logit of the emitted token y through a head; per step
    Σ_needle φ − (n / m) Σ_others φ, of n needle keys and m others that the row sees (arXiv 2607.01002).

    u_y is the raw row of the unembedding, as published: no final norm, scale or cap, and no norm between the projection
    and the residual, which Gemma 2 and 3 have.
    """

    name = "write"
    definition = (
        "what the head adds to the logit of each emitted token from the needle's values, less what it adds from as "
        "many of the other values it sees, mean over the steps that spell the reference (LOCOS, arXiv 2607.01002)"
    )
    label = "write (needle to logit)"
    is_share = False
    is_signed = True
    needs = frozenset({"written"})

    def looks(self, rows: Rows) -> Sequence[Look]:
        """The answer's rows that spell the reference, at the needle; all needles that are asked for count there."""
        start, end = rows.spelled_rows
        return [Look((start, end), rows.needle_span)] if start < end else []

    def figure(self, seen: Seen) -> Tensor:
        """The mean over steps."""
        return seen.mean(seen.written)


SCORE = Write()
