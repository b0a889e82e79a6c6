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
        """The answer's rows, at the needle, and at each other one that is asked for."""
        return [Look(rows.answer_rows, span) for span in rows.spans]

    def figure(self, seen: Seen) -> Tensor:
        """The mean weight on all needles that are asked for."""
        return on_all_spans(seen)


def on_all_spans(seen: Seen) -> Tensor:
    """The mean over rows of their weight on all needles that are asked for, `[layers, requests, heads]`."""
    mean = seen.mean(seen.weight)
    if not any(rows.more_spans for rows in seen.requests):
        return mean
    # Each row stands there once for each needle, and the mean is over all of them.
    return mean * seen.ints([[len(rows.spans)] for rows in seen.requests])


SCORE = Mass()
