"""How far definitions of a retrieval head agree: overlap of the best, rank correlation, intervals over samples.

A definition is one score of one file. Heads that it does not count, those with a score of 0, are never among its best
and never ranked: most heads of a model tie there, and two definitions would agree on what neither measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.clusters import Cluster, Clusters, clusters_of_cells
from retrieval_heads.heads.groups import group_maximum
from retrieval_heads.heads.table import Head, HeadTable
from retrieval_heads.heads.top_heads import SAME, TopHeads, top_heads
from retrieval_heads.intervals import Interval, drawn_interval, enough, group_weights

if TYPE_CHECKING:
    from numpy import bool_, float64
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Definition:
    """One score of one file.

    Args:
        name: As people are told.
        table: The file's means.
        score: Which of them.
        figures: Each sample's, `[samples, layers, heads]`; `None` where the file has none.
        cells: The samples' cells; empty where the file does not say.
        group: Query heads of a KV head, the greatest of which counts; 1 leaves heads as they are.
        clusters: The samples' needles and texts; empty where the file does not say, and cells' names tell them.
    """

    name: str
    table: HeadTable
    score: str
    figures: NDArray[float64] | None = None
    cells: tuple[str, ...] = ()
    group: int = 1
    clusters: tuple[Cluster, ...] = ()

    def scores(self) -> Mapping[Head, float]:
        """The mean of every scored head, or KV head."""
        mean = group_maximum(self.table.estimates[self.score].mean, self.group)
        return {
            (layer.number, head): float(mean[row, head])
            for row, layer in enumerate(self.table.layers)
            for head in range(layer.heads // self.group)
            if not math.isnan(mean[row, head])
        }

    def drawn(self, heads: Sequence[Head], weights: NDArray[float64] | None) -> NDArray[float64]:
        """Means of those heads under other weights of the samples, `[draws, heads]` of `[draws, samples]`; of a file
        without samples, and for no weights, the means themselves, `[1, heads]`.
        """
        row_of = {layer.number: row for row, layer in enumerate(self.table.layers)}
        rows, columns = [row_of[layer] for layer, _ in heads], [head for _, head in heads]
        if weights is None or self.figures is None:
            means = self.table.estimates[self.score].mean[None]
        else:
            samples, layers, width = self.figures.shape
            means = (weights @ self.figures.reshape(samples, -1)).reshape(-1, layers, width)
        grouped: NDArray[float64] = group_maximum(means, self.group)[:, rows, columns]
        return grouped


@dataclass(frozen=True)
class Agreement:
    """How far two definitions agree.

    Args:
        overlap: Share of the best heads that both name, 0–1; `None` where no head of either stands out.
        overlap_interval: Over samples; `None` where there is none.
        spearman: Rank correlation over heads that both score above 0, −1 to 1; `None` below three of them, and where
            one scores them all the same.
        spearman_interval: Over samples.
        heads: Heads that both score.
        ranked: Those above 0 by both.
        notes: What must be known before the figures.
    """

    overlap: float | None
    overlap_interval: Interval | None
    spearman: float | None
    spearman_interval: Interval | None
    heads: int
    ranked: int
    notes: tuple[str, ...] = field(default_factory=tuple)


def agreement(first: Definition, second: Definition, top: int) -> Agreement:
    """Compare two definitions of one model's heads.

    The overlap is that of `retrieval_heads.heads.top_heads`, the correlation Spearman's (ties share their mean rank).

    Raises:
        ResultsError: They score no head in common.
    """
    import numpy as np

    one, other = first.scores(), second.scores()
    heads = sorted(one.keys() & other.keys())
    if not heads:
        raise ResultsError(f"{first.name} and {second.name} score no head in common")
    notes = [f"{count} heads are scored by one alone" for count in [len(one.keys() ^ other.keys())] if count]
    models = [str(each.table.facts.get("model") or "") for each in (first, second)]
    if all(models) and models[0] != models[1]:
        notes.append(f"the heads are of two models, {models[0]} and {models[1]}")
    for definition, scores in ((first, one), (second, other)):
        best: TopHeads = top_heads(((head, scores[head]) for head in heads), top)
        notes += [note] if (note := best.note(definition.name)) else []
    ranked = np.array([one[head] > SAME and other[head] > SAME for head in heads])
    one_mean, other_mean = first.drawn(heads, None), second.drawn(heads, None)
    overlap = float(overlaps(one_mean, other_mean, top)[0])
    spearman = float(spearmans(one_mean[:, ranked], other_mean[:, ranked])[0])
    overlap_interval = spearman_interval = None
    weights = _weights(first, second)
    if isinstance(weights, str):
        notes.append(weights)
    else:
        one_drawn, other_drawn = first.drawn(heads, weights.first), second.drawn(heads, weights.second)
        overlap_interval = drawn_interval(overlap, overlaps(one_drawn, other_drawn, top), weights.groups, (0, 1))
        drawn = spearmans(one_drawn[:, ranked], other_drawn[:, ranked])
        spearman_interval = drawn_interval(spearman, drawn, weights.groups, (-1, 1))
    return Agreement(
        *(_known(overlap), overlap_interval, _known(spearman), spearman_interval),
        *(len(heads), int(ranked.sum()), tuple(notes)),
    )


@dataclass(frozen=True)
class _Weights:
    """Weights of both sides' samples, `[draws, samples]`; `None` for a side without samples.

    What both sides share, a needle or a text, has the same weight on both.
    """

    first: NDArray[float64] | None
    second: NDArray[float64] | None
    groups: int
    """Needles or texts, the fewer of the two of which there are several."""


def _weights(first: Definition, second: Definition) -> _Weights | str:
    """The weights, or why there are none."""
    sides = [side for side in (first, second) if side.figures is not None]
    if not sides:
        return "no intervals: neither file holds samples"
    # By one way of naming them: what both sides share has one weight.
    is_said = all(side.clusters for side in sides)
    of = [side.clusters if is_said else clusters_of_cells(side.cells) for side in sides]
    pairs = Clusters(tuple(itertools.chain.from_iterable(of)))
    if len(pairs.of) < sum(len(side.figures) for side in sides if side.figures is not None):
        return "no intervals: the samples do not say which needle and text they are of"
    if not enough(pairs.groupings, len(pairs.of)):
        return pairs.note
    groups = min(len(set(grouping)) for grouping in pairs.groupings)
    drawn, start = group_weights(pairs.groupings), 0
    split: list[NDArray[float64] | None] = []
    for side in (first, second):
        if side.figures is None:
            split.append(None)
            continue
        part = drawn[:, start : start + len(side.figures)]
        split.append(part / part.sum(1, keepdims=True))
        start += len(side.figures)
    return _Weights(split[0], split[1], groups)


def overlaps(first: NDArray[float64], second: NDArray[float64], top: int) -> NDArray[float64]:
    """The overlap of the best heads, `[draws]` of `[draws, heads]` each; NaN where none stands out."""
    import numpy as np

    one, other = (_best(means, top) for means in (first, second))
    shared, most = (one & other).sum(1), np.maximum(one.sum(1), other.sum(1))
    return np.where(most > 0, shared / np.maximum(most, 1), np.nan)


def _best(means: NDArray[float64], top: int) -> NDArray[bool_]:
    """Which heads are among the best, as `top_heads` has it, bool `[draws, heads]`."""
    import numpy as np

    heads = means.shape[1]
    first_out = (
        np.partition(means, heads - top - 1, axis=1)[:, heads - top - 1] if heads > top else np.zeros(len(means))
    )
    best: NDArray[bool_] = means >= np.maximum(0.0, first_out)[:, None] + SAME
    return best


def spearmans(first: NDArray[float64], second: NDArray[float64]) -> NDArray[float64]:
    """Spearman's rank correlation, `[draws]` of `[draws, heads]` each; NaN where it is not defined."""
    import numpy as np
    from scipy.stats import rankdata

    if first.shape[1] < 3:
        return np.full(max(len(first), len(second)), np.nan)
    one, other = (rankdata(means.round(9), axis=1) for means in (first, second))
    one, other = (ranks - ranks.mean(1, keepdims=True) for ranks in (one, other))
    scale = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    return np.where(scale > 0, (one * other).sum(1) / np.maximum(scale, 1e-300), np.nan)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
