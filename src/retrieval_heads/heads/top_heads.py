"""The best heads of a run as far as its scores tell them from the rest, and how far those of two runs agree."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Final

SAME: Final = 5e-7
"""Scores this close tie: head files keep six digits."""


@dataclass(frozen=True)
class TopHeads:
    """The heads that are among the best whatever order ties are put in.

    A head with a score of 0 did nothing that the score counts, and is never among them. Neither are heads that tie
    across the last place: which of them is in and which is out would be chance.
    """

    heads: frozenset[object]
    asked: int
    """How many best heads were asked for."""

    def note(self, side: str) -> str:
        """That some are left out, in a few words; empty where as many stand out as were asked for.

        Args:
            side: Whose heads they are, such as `this run`.
        """
        if len(self.heads) == self.asked:
            return ""
        return f"{len(self.heads)} of the top {self.asked} stand out in {side}, the others tie"


def top_heads(scores: Iterable[tuple[Hashable, float]], top: int) -> TopHeads:
    """The `top` best heads of a run.

    Args:
        scores: Heads with their mean scores, in any order; NaN is a head without one.
        top: How many to look for.
    """
    best = heapq.nlargest(top + 1, (head for head in scores if not math.isnan(head[1])), key=lambda head: head[1])
    first_out = best[top][1] if len(best) > top else 0.0
    least = max(0.0, first_out) + SAME
    return TopHeads(frozenset(head for head, score in best[:top] if score >= least), top)


def overlap(first: TopHeads, second: TopHeads) -> float | None:
    """The share of the larger set's heads that both hold; `None` where no head of either stands out."""
    most = max(len(first.heads), len(second.heads))
    return len(first.heads & second.heads) / most if most else None
