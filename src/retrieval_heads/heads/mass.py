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
    return over_spans(seen, [len(rows.spans) for rows in seen.requests])


def over_spans(seen: Seen, counts: Sequence[int]) -> Tensor:
    """The mean over rows of their weight on several spans together, `[layers, requests, heads]`.

    Args:
        seen: What the rows saw, each row once for each span.
        counts: Of each request, how many spans it looks at.
    """
    mean = seen.mean(seen.weight)
    if all(count == 1 for count in counts):
        return mean
    # Each row stands there once for each span, and the mean is over all of them.
    return mean * seen.ints([[count] for count in counts])


SCORE = Mass()
