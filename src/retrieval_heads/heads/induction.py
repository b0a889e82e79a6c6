"""`induction`: how much of its attention a head has on what followed earlier copies of the token it reads.

RazorAttention (arXiv 2407.15891), after Olsson et al. 2022 (arXiv 2209.11895); see `echo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval_heads.heads.echo import behind, mean_of_rows
from retrieval_heads.heads.looks import Rows, Seen, WeighBehind
from retrieval_heads.heads.replays import REPEATED
from retrieval_heads.heads.score import HeadScore

if TYPE_CHECKING:
    from torch import Tensor


class Induction(HeadScore):
    """Attention weight from a random text's later copies to the token behind each earlier copy of the row's own."""

    name = "induction"
    definition = (
        "attention weight on the tokens behind all earlier copies of the row's token, mean over the rows of a random "
        "text's copies from the second on (RazorAttention, arXiv 2407.15891)"
    )
    label = "induction (behind the earlier copy)"
    is_default = False
    replays = (REPEATED,)

    def weighings(self, rows: Rows) -> Sequence[WeighBehind]:
        """Every row of the later copies, at the token behind that of each earlier copy."""
        return behind(rows, 1)

    def figure(self, seen: Seen) -> Tensor:
        """The mean over rows of their weight on all of these."""
        return mean_of_rows(seen)


SCORE = Induction()
