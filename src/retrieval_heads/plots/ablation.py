"""The ablation picture: accuracy against how many heads are masked, the best ones against others like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from retrieval_heads.ablation.effect import Effect, Group
from retrieval_heads.errors import ResultsError
from retrieval_heads.plots.layout import Page, arrange, new_figure
from retrieval_heads.plots.saving import save
from retrieval_heads.plots.style import FAINT, INK, PAPER, counted, line_look, styled

_BEST, _OTHERS = 1, 0  # of the line looks: orange, and those after it for more rankings, and blue


def ablation_curve(effect: Effect, path: Path, *, title: str = "") -> list[Path]:
    """Draw accuracy against the number of masked heads.

    Args:
        effect: An ablation's figures.
        path: Where to write, with or without `.png` or `.svg`; both are written.
        title: Heading, such as model and suite.

    Returns:
        The two paths written.

    Raises:
        ResultsError: No arm masks a head, or a folder that cannot be written.
    """
    return save(ablation_figure(effect, title=title), path)


@styled()
def ablation_figure(effect: Effect, *, title: str = "") -> Figure:
    """Build the figure of `ablation_curve`."""
    counts = sorted({group.count for group in effect.groups})
    if len(counts) < 2:
        raise ResultsError("there is nothing to plot: no arm masks a head")
    # Counts stand side by side: 0 has no place on a logarithmic axis, and 1 and 50 none on a plain one.
    places = {count: place for place, count in enumerate(counts)}
    figure = new_figure()
    axes = figure.add_subplot()
    unmasked = next(group for group in effect.groups if not group.count)
    others = [unmasked, *(group for group in effect.groups if group.draws)]
    rankings = list(effect.reached)
    _band(axes, others, places)
    for index, by in enumerate(rankings):
        best = [group for group in effect.groups if group.count and not group.draws and group.by == by]
        # Side by side, since rankings share many of their best heads.
        aside = 0.5 / len(rankings) * (index - (len(rankings) - 1) / 2)
        own = {count: place + aside * (count > 0) for count, place in places.items()}
        _whiskers(axes, [unmasked, *best], own, line_look(_BEST + index))
    for group in others:
        spots, color = list(group.draws.values()), line_look(_OTHERS)["color"]
        # Side by side, since most draws have the same accuracy.
        xs = [places[group.count] + 0.04 * (place - (len(spots) - 1) / 2) for place in range(len(spots))]
        axes.scatter(xs, spots, s=16, facecolor=PAPER, edgecolor=color, linewidth=0.9, zorder=6)
    axes.axhline(effect.until * unmasked.accuracy.value, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"{100 * effect.until:g} % of the unmasked",
        (len(counts) - 1, effect.until * unmasked.accuracy.value),
        xytext=(14, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8,
        color=FAINT,
    )
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlim(-0.3, len(counts) - 0.7)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="y")
    axes.set_xlabel("Masked heads")
    axes.set_ylabel("Accuracy")
    draws = max((len(group.draws) for group in effect.groups), default=0)
    facts = [f"mode {effect.mode}", counted(unmasked.cells, "cell"), "95 % intervals"]
    if draws:
        facts.append(f"{counted(draws, 'draw')} of others, each a ring")
    legend = [
        Line2D([], [], label=f"the best by {by}" if by else "the best heads", **line_look(_BEST + index))
        for index, by in enumerate(rankings)
    ]
    legend.append(Line2D([], [], label="others of the same layers", **line_look(_OTHERS)))
    width = 2.6 + (0.7 + 0.08 * (len(rankings) - 1)) * len(counts)
    arrange(Page(figure, [[axes]], (width, 3.2), title or "Masked heads", " · ".join(facts), legend))
    return figure


def _band(axes: Axes, groups: Sequence[Group], places: Mapping[int, float]) -> None:
    xs, look = [places[group.count] for group in groups], line_look(_OTHERS)
    low, high = [group.accuracy.low for group in groups], [group.accuracy.high for group in groups]
    axes.fill_between(xs, low, high, color=look["color"], alpha=0.18, linewidth=0, label="interval")
    _line(axes, groups, places, look)


def _whiskers(axes: Axes, groups: Sequence[Group], places: Mapping[int, float], look: dict[str, Any]) -> None:
    masked = groups[1:]
    axes.vlines(
        [places[group.count] for group in masked],
        [group.accuracy.low for group in masked],
        [group.accuracy.high for group in masked],
        color=look["color"],
        linewidth=1.3,
        zorder=3,
    )
    _line(axes, groups, places, look)


def _line(axes: Axes, groups: Sequence[Group], places: Mapping[int, float], look: dict[str, Any]) -> None:
    axes.plot(
        [places[group.count] for group in groups],
        [group.accuracy.value for group in groups],
        **look,
        markeredgecolor=PAPER,
        markeredgewidth=0.6,
        zorder=5,
    )
