"""Heads with their mean scores, whichever file or run they come from.

A head is (layer, head): the layer's number in the model and the query head's in it. Scores are `[layers, heads]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from retrieval_heads.heads.score import ranking_of
from retrieval_heads.heads.top_heads import TopHeads, top_heads
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.layers import Layer

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

DIGITS = 6
"""What is stored: sums of rounded shares would put a mean of 0.1 below the threshold."""

Head = tuple[int, int]
Ranked = tuple[Head, float]


@dataclass(frozen=True)
class Estimate:
    """A score of every head over the counted samples, each `[layers, heads]`; NaN beyond a layer's heads."""

    mean: NDArray[float64]
    low: NDArray[float64]
    """Lower end of the 95 % interval of the mean (`retrieval_heads.intervals`); NaN for too few samples."""
    high: NDArray[float64]
    """Its upper end."""


@dataclass(frozen=True)
class HeadTable:
    """Mean head scores as any head file tells them.

    Args:
        suite: The detect suite's name; empty where the file does not say.
        layers: The layers, in the order of the scores' rows; those that cannot be scored have no heads.
        estimates: By score; NaN where a head has no score, and for the ends of intervals that the file lacks.
        counted: Samples that were averaged.
        measured: Samples with head scores.
        stability: See `Detection.stability`.
        facts: What the file says of the run: model, dtype and so on.
    """

    suite: str
    layers: tuple[Layer, ...]
    estimates: Mapping[str, Estimate]
    counted: int | None = None
    measured: int | None = None
    stability: float | None = None
    facts: Facts = field(default_factory=dict)

    @property
    def ranking(self) -> str:
        """The score that its heads are ranked by: the usual one, or what the file has in its place."""
        return ranking_of(self.estimates)

    def ranked(self, score: str) -> list[tuple[int, int]]:
        """Every scored head as (row, head), best first; ties in the order of layer, then head."""
        mean = self.estimates[score].mean
        heads = [
            ((row, head), float(mean[row, head]))
            for row, layer in enumerate(self.layers)
            for head in range(layer.heads)
            if not math.isnan(mean[row, head])
        ]
        return [head for head, _ in rank(heads)]

    def top(self, score: str, count: int) -> TopHeads:
        """The best heads, each (layer number, head), as far as their scores tell them from the rest."""
        mean = self.estimates[score].mean
        heads = self.ranked(score)
        return top_heads((((self.layers[row].number, head), float(mean[row, head])) for row, head in heads), count)


def rank(heads: Iterable[Ranked]) -> list[Ranked]:
    """Best first; ties in the order of layer, then head."""
    return sorted(heads, key=lambda ranked: (-ranked[1], ranked[0]))


def rectangle(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """As many heads for every layer, NaN beyond its own."""
    most = max(map(len, rows))
    return [[*row, *[math.nan] * (most - len(row))] for row in rows]
