"""How the samples of a detection become one figure a head and score."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.clusters import Clusters, Drawn, clusters_of, drawn
from retrieval_heads.heads.score import RANKING, HeadScore, head_scores, ranking_of
from retrieval_heads.heads.table import DIGITS, Estimate, HeadTable, Ranked, rank, rectangle
from retrieval_heads.heads.texts import MeasuredText
from retrieval_heads.heads.top_heads import TopHeads, overlap, top_heads
from retrieval_heads.intervals import mean_intervals
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import HeadScores, Record

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

RETRIEVAL_THRESHOLD = 0.1
"""A retrieval head is one with a mean `copy` of at least this (arXiv 2404.15574)."""

_SPLITS = 100


@dataclass(frozen=True)
class Detection:
    """The heads of one detection run.

    Args:
        layers: The layers, in the order of the scores' rows; those that cannot be scored have no heads.
        counted: Records whose answer retrieved the needle; they alone are averaged.
        samples: Every record with head scores.
        texts: Random texts that heads were measured on, and their scores: each is a sample of its own kind.
        estimates: By score; a score that some counted sample lacks is not among them.
    """

    layers: tuple[Layer, ...]
    counted: tuple[Record, ...]
    samples: tuple[Record, ...]
    estimates: Mapping[str, Estimate]
    texts: tuple[MeasuredText, ...] = ()

    @property
    def means(self) -> Mapping[str, NDArray[float64]]:
        """The mean of every head, by score."""
        return {name: estimate.mean for name, estimate in self.estimates.items()}

    @property
    def clusters(self) -> Clusters:
        """Which of the counted samples share a needle or a text: what intervals go by."""
        return clusters_of(self.counted)

    @property
    def ranking(self) -> str:
        """The score that its heads are ranked by."""
        return ranking_of(self.estimates)

    def ranked(self, score: str | None = None) -> list[Ranked]:
        """Every head that has the score, with its mean, best first; ties in the order of layer, then head."""
        mean = self.estimates[score or self.ranking].mean
        heads = [
            ((layer.number, head), float(mean[row, head]))
            for row, layer in enumerate(self.layers)
            for head in range(layer.heads)
        ]
        return rank(one for one in heads if not math.isnan(one[1]))

    def stability(self, top: int = 10) -> float | None:
        """How far the ranking depends on the samples: the overlap of the `top` heads, by `ranking`, of two random
        halves of the counted samples (`retrieval_heads.heads.top_heads`), mean over 100 seeded splits; `None` below two
        samples, and where no head has a score above 0. A half in which no head stands out agrees with nothing.
        """
        import numpy as np

        if len(self.counted) < 2:
            return None
        values = _stacked(self.counted, self.ranking).reshape(len(self.counted), -1)
        if not (values > 0).any():
            return None
        random = np.random.default_rng(0)
        overlaps = []
        for _ in range(_SPLITS):
            order = random.permutation(len(values))
            halves = (order[: len(order) // 2], order[len(order) // 2 :])
            first, second = (top_heads(enumerate(values[half].mean(0).tolist()), top) for half in halves)
            overlaps.append(overlap(first, second) or 0.0)
        return float(np.mean(overlaps))

    def drawn(self, score: str | None = None) -> Drawn | None:
        """The means of a score under other weights of needles and texts; `None` where there are too few of those."""
        return drawn(_stacked(self.counted, score or self.ranking), self.clusters)

    def top(self, count: int, score: str | None = None) -> TopHeads:
        """The best heads, as far as their scores tell them from the rest."""
        return top_heads(self.ranked(score), count)

    def table(self, suite: str, facts: Facts) -> HeadTable:
        """The means as `heads.json` tells them, rounded as there, with what else is said of the suite."""
        estimates = {
            name: Estimate(*(getattr(estimate, part).round(DIGITS) for part in ("mean", "low", "high")))
            for name, estimate in self.estimates.items()
        }
        facts = {"intervals": self.clusters.note, **facts}
        return HeadTable(suite, self.layers, estimates, len(self.counted), len(self.samples), self.stability(), facts)

    def retrieval_heads(self) -> int | None:
        """How many heads have a mean `copy` of at least `RETRIEVAL_THRESHOLD`; `None` where it was not measured."""
        if RANKING not in self.estimates:
            return None
        return int((self.estimates[RANKING].mean.round(DIGITS) >= RETRIEVAL_THRESHOLD).sum())


def _place_in_grid(record: Record) -> list[tuple[bool, float, str]]:
    """What samples are put in order by, however they came: an interval's draws go by it. Numbers count as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?)", record.cell)
    return [(at % 2 == 0, 0.0 if at % 2 == 0 else float(part), part) for at, part in enumerate(parts)]


def aggregate(records: Sequence[Record], layers: Sequence[Layer], texts: Sequence[MeasuredText] = ()) -> Detection:
    """Average the head scores of the samples whose answer retrieved the needle.

    Intervals are those of `intervals.mean_intervals` over the samples' needles and texts (`heads.clusters`). Of a score
    that is no share the scale ends at the greatest figure that any counted sample could have come to
    (`HeadScore.greatest`). Scores of random texts are means over these, which are independent of each other and of
    samples.

    Args:
        records: The samples.
        layers: The model's.
        texts: The random texts that heads were measured on.

    Raises:
        ResultsError: No head of the model can be scored, no sample counts, or samples are of other models.
    """
    if layers and not any(layer.heads for layer in layers):
        raise ResultsError("no head of this model can be scored; `retrieval-heads models --check` says why")
    ordered = sorted(records, key=_place_in_grid)
    samples = tuple(record for record in ordered if record.heads is not None)
    counted = tuple(record for record in samples if record.passed)
    if records and all(record.status == "error" for record in records):
        raise ResultsError(f"of {len(records)} samples all are in error, so that no head is scored")
    if not counted:
        raise ResultsError(
            f"none of the {len(records)} samples retrieved its needle, so no head can be scored; "
            "ask easier cells (shorter, or another needle)"
        )
    shapes = {name: [layer.heads * layer.has(score.needs) for layer in layers] for name, score in head_scores().items()}
    usual = [layer.heads for layer in layers]
    if any(
        [len(row) for row in heads] != shapes.get(name, usual)
        for record in counted
        for name, heads in (record.heads or {}).items()
    ):
        raise ResultsError("the samples' heads are not those of this model's layers: they are of other models")
    measured = [
        score
        for name, score in head_scores().items()
        if all(record.heads and name in record.heads for record in counted)
    ]
    if not measured:
        raise ResultsError("no head score was measured on all of the samples that retrieved their needle")
    return Detection(
        tuple(layers),
        counted,
        samples,
        {score.name: _estimate(score, counted) for score in measured}
        | {name: _of_texts(name, texts) for name in head_scores() if texts and all(name in one.heads for one in texts)},
        tuple(texts),
    )


def _stacked(records: Sequence[Record], score: str) -> NDArray[float64]:
    """`[samples, layers, heads]`, NaN beyond a layer's heads."""
    import numpy as np

    stacked: list[HeadScores] = [record.heads for record in records if record.heads is not None]
    return np.array([rectangle(heads[score]) for heads in stacked], dtype=np.float64)


def _estimate(score: HeadScore, counted: Sequence[Record]) -> Estimate:
    values, groupings = _stacked(counted, score.name), clusters_of(counted).groupings
    if score.is_share and score.is_signed:
        low, high = (end - 1 for end in mean_intervals(values + 1, 2.0, groupings))
    else:
        low, high = mean_intervals(values, _greatest(score, counted), groupings)
    return Estimate(values.mean(0), low, high)


def _of_texts(name: str, texts: Sequence[MeasuredText]) -> Estimate:
    import numpy as np

    values = np.array([rectangle(text.heads[name]) for text in texts], dtype=np.float64)
    return Estimate(values.mean(0), *mean_intervals(values))


def _greatest(score: HeadScore, records: Sequence[Record]) -> float | None:
    """The greatest figure that a score could have on any of these samples; `None` where it has no limits."""
    if score.is_signed:
        return None
    if score.is_share:
        return 1.0
    measured = [value for record in records for row in (record.heads or {})[score.name] for value in row]
    return max(*map(score.greatest, records), *measured)
