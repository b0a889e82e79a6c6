"""`mass_distractors`: how much of its attention a head has on what is like the needle and not asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval_heads.heads.looks import Look, Rows, Seen
from retrieval_heads.heads.mass import over_spans
from retrieval_heads.heads.score import HeadScore

if TYPE_CHECKING:
    from torch import Tensor


class MassDistractors(HeadScore):
    """Attention weight on all distractors, mean over the answer's steps."""

    name = "mass_distractors"
    definition = (
        "attention weight on texts like the needle that are not asked for, mean over the answer's steps: beside "
        "`mass` it tells a head that finds the asked text from one that finds any such text"
    )
    label = "mass_distractors (attention to what is not asked for)"

    def looks(self, rows: Rows) -> Sequence[Look]:
        """The answer's rows, at each distractor; none where the prompt has none."""
        return [Look(rows.answer_rows, span) for span in rows.distractor_spans]

    def figure(self, seen: Seen) -> Tensor:
        """The mean weight on all of them."""
        return over_spans(seen, [len(rows.distractor_spans) for rows in seen.requests])


SCORE = MassDistractors()
