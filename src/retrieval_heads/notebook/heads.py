"""Heads and their scores, as a notebook has them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.table import HeadTable
from retrieval_heads.heads.top_heads import overlap
from retrieval_heads.notebook.frames import frame
from retrieval_heads.notebook.showing import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy import float64
    from numpy.typing import NDArray
    from pandas import DataFrame

COLUMNS = ("suite", "layer", "head", "score", "mean", "low", "high", "n")


class Heads(Mapping[str, "NDArray[float64]"]):
    """The heads of a detect suite: by score, an array of means `[layers, heads]`, NaN where there is none.

    Rows are the model's layers in their order; `layers` says which number each has.

    Args:
        tables: The heads of each detect suite, by its name.
        title: Heads pictures, such as the model's name.
    """

    def __init__(self, tables: Mapping[str, HeadTable], title: str = "") -> None:
        self._tables = dict(tables)
        self._title = title

    @property
    def suites(self) -> tuple[str, ...]:
        """The detect suites that these are the heads of."""
        return tuple(self._tables)

    def of(self, suite: str) -> Heads:
        """The heads of one suite, where a run has several.

        Raises:
            ResultsError: There is none of that name.
        """
        if suite not in self._tables:
            raise ResultsError(f"heads: no detect suite {suite!r}; there are: {', '.join(self._tables) or 'none'}")
        return Heads({suite: self._tables[suite]}, self._title)

    @property
    def table(self) -> HeadTable:
        """The figures with their intervals.

        Raises:
            ResultsError: The run scored no heads, or has several detect suites.
        """
        if len(self._tables) == 1:
            return next(iter(self._tables.values()))
        if not self._tables:
            raise ResultsError("heads: the run scored no heads; a suite of kind detect does")
        names = ", ".join(self._tables)
        raise ResultsError(
            f"heads: the run has several detect suites, {names}: take one, as in heads.of({names!r:.40})"
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The number of each row's layer."""
        return tuple(layer.number for layer in self.table.layers)

    def __getitem__(self, score: str) -> NDArray[float64]:
        estimates = self.table.estimates
        if score not in estimates:
            raise KeyError(f"no head score {score!r}; there are: {', '.join(estimates)}")
        return estimates[score].mean

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.estimates if self._tables else ())

    def __len__(self) -> int:
        return len(self.table.estimates) if self._tables else 0

    def __repr__(self) -> str:
        told = [
            f"{suite}: {sum(layer.heads for layer in table.layers)} heads in {len(table.layers)} layers, "
            f"{', '.join(table.estimates)} over {table.counted if table.counted is not None else '?'} samples"
            for suite, table in self._tables.items()
        ]
        return f"<Heads {'; '.join(told) or 'none'}>"

    def top(self, count: int = 10, score: str | None = None) -> list[tuple[int, int]]:
        """The best heads, each (layer number, head), best first.

        Args:
            count: How many.
            score: By which; left out, the one that the run ranks by.
        """
        table = self.table
        ranked = table.ranked(score or table.ranking)[:count]
        return [(table.layers[row].number, head) for row, head in ranked]

    @property
    def rows(self) -> list[dict[str, object]]:
        """One for each head and score: suite, layer, head, score, mean, low and high (95 %), n samples."""
        return [
            {
                "suite": suite,
                "layer": layer.number,
                "head": head,
                "score": name,
                "mean": float(estimate.mean[row, head]),
                "low": float(estimate.low[row, head]),
                "high": float(estimate.high[row, head]),
                "n": table.counted,
            }
            for suite, table in self._tables.items()
            for name, estimate in table.estimates.items()
            for row, layer in enumerate(table.layers)
            for head in range(layer.heads)
            if not math.isnan(estimate.mean[row, head])
        ]

    def to_pandas(self) -> DataFrame:
        """`rows` as a DataFrame.

        Raises:
            RetrievalHeadsError: There is no pandas.
        """
        return frame(self.rows, COLUMNS)

    def overlap(self, other: Heads, count: int = 10, score: str | None = None) -> float | None:
        """The share of the best heads of both that are the same, 0–1; `None` where none stands out from the rest."""
        by = score or self.table.ranking
        return overlap(self.table.top(by, count), other.table.top(by, count))

    def heatmap(self, *scores: str, top: int = 10) -> Figure:
        """Layers by heads, one panel for each score.

        Args:
            *scores: Which; all where none is named.
            top: How many of the best heads are ringed.
        """
        from retrieval_heads.plots.heads import head_figure
        from retrieval_heads.report.pictures import marked_layers

        table = self.table
        return shown(
            head_figure(
                {name: self[name] for name in scores or table.estimates},
                title=self._title,
                top=table.ranked(table.ranking)[:top],
                marked_layers=marked_layers(table.layers),
                layer_labels=[str(layer.number) for layer in table.layers],
            )
        )

    def distribution(self, score: str | None = None) -> Figure:
        """The heads' scores from highest to lowest."""
        from retrieval_heads.plots.curves import distribution_figure

        return shown(distribution_figure(self[score or self.table.ranking], title=self._title))
