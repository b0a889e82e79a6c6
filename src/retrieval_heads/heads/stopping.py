"""When a detection has asked enough: its best heads would hardly be others if all of its cells were asked.

Cells are asked in an order drawn at random, so that those asked at any time are a random part of all. At looks that
are fixed beforehand, random parts of the samples are drawn, as large that their means stray from the mean of the
samples as far as that of the samples strays from that of all cells: half of them while most cells are left, more
towards the end (half-samples: McCarthy 1969, Review of the International Statistical Institute 37, 239-264). How often
the best heads of a part are not those of the samples tells how often those of the samples are not those of all cells.

Looking several times is paid for: each look may err with an equal share of the error (alpha spending: Lan & DeMets
1983, Biometrika 70, 659-663), so that together they err no more often than is allowed. `benchmarks/stopping.py`
measures how often they do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

from pydantic import Field

from retrieval_heads.heads.agreement import overlaps
from retrieval_heads.settings.section import Number, Section, Whole

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

_DRAWS: Final = 1_000
_FIRST: Final = 20
_GROWTH: Final = 1.5
_FEWEST: Final = 5
_SLACK: Final = 1e-9

Asked = TypeVar("Asked")


class UntilStable(Section):
    """Cells are asked in a random order until the best heads are settled."""

    top: Annotated[Whole, Field(ge=1)] = 10
    """How many best heads, by the score that the suite's heads are ranked by."""
    agreement: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """What share of them must be those that all cells would give."""
    at_most: Annotated[Whole, Field(ge=1)] | None = None
    """Cells that are asked at most; all where it is left out."""
    error: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    """How often it may stop although they are not."""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """Draws the order in which cells are asked."""

    def in_order(self, cells: Sequence[Asked]) -> list[Asked]:
        """The cells in the order in which they are asked: every order is as likely."""
        shuffled = list(cells)
        random.Random(self.seed).shuffle(shuffled)
        return shuffled

    def looks(self, cells: int) -> list[int]:
        """After how many cells it is looked whether they suffice, of so many; at the last nothing is left to ask."""
        most = cells if self.at_most is None else min(cells, self.at_most)
        found, at = [], max(_FIRST, 2 * self.top)
        while at < most:
            found.append(at)
            at = math.ceil(at * _GROWTH)
        return [*found, most]

    def is_settled(self, figures: NDArray[float64], asked: int, cells: int) -> bool:
        """Whether the best heads are settled at a look.

        Args:
            figures: The score of each sample that counts, `[samples, heads]`.
            asked: How many cells were asked for them.
            cells: How many there are.
        """
        if len(figures) < _FEWEST:
            return False
        allowed = self.error / max(1, len(self.looks(cells)) - 1)
        return _share_of_others(figures, asked / cells, self) <= allowed


def _share_of_others(figures: NDArray[float64], asked: float, rule: UntilStable) -> float:
    """In how many random parts of the samples the best heads are not those of all samples.

    Args:
        figures: `[samples, heads]`.
        asked: The share of cells that were asked.
        rule: How many best heads, and what share of them is the same.
    """
    import numpy as np

    samples = len(figures)
    # The mean of m of n strays from that of the n by 1/m - 1/n, that of n of N from that of all by 1/n - 1/N.
    part = min(samples - 1, round(samples / (2 - asked)))
    chosen = np.random.default_rng(rule.seed).random((_DRAWS, samples)).argsort(1)[:, :part]
    weights = np.zeros((_DRAWS, samples))
    np.put_along_axis(weights, chosen, 1 / part, axis=1)
    found = overlaps(weights @ figures, figures.mean(0)[None], rule.top)
    return float((~(found >= rule.agreement - _SLACK)).mean())
