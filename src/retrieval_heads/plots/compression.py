"""The pictures of a compression: accuracy against the share of KV heads kept, and which heads these are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from retrieval_heads.ablation.compression import RANDOM
from retrieval_heads.ablation.sparsity import Sparsity
from retrieval_heads.errors import ResultsError
from retrieval_heads.plots.layout import Page, arrange, new_figure, spread
from retrieval_heads.plots.saving import save
from retrieval_heads.plots.style import FAINT, HEADS, INK, PAPER, counted, line_look, printable, styled

_STREAMS = "#e3e5e9"
_CELL = 0.2  # inches


def compression_curve(sparsity: Sparsity, path: Path, *, title: str = "") -> list[Path]:
    """Draw accuracy against the share of KV heads that keep a whole context, a line for each ranking.

    Args:
        sparsity: A compression's figures.
        path: Where to write, with or without `.png` or `.svg`; both are written.
        title: Heading, such as model and suite.

    Returns:
        The two paths written.

    Raises:
        ResultsError: A folder that cannot be written.
    """
    return save(curve_figure(sparsity, title=title), path)


def kept_heads_map(sparsity: Sparsity, path: Path, *, title: str = "") -> list[Path]:
    """Draw which KV heads each ranking keeps: the smallest share at which each is among them.

    Raises:
        ResultsError: The KV heads are not known, or a folder that cannot be written.
    """
    return save(map_figure(sparsity, title=title), path)


@styled()
def curve_figure(sparsity: Sparsity, *, title: str = "") -> Figure:
    """Build the figure of `compression_curve`."""
    shares = sorted({point.keep for point in sparsity.points})
    places = {share: place for place, share in enumerate(shares)}
    figure = new_figure()
    axes = figure.add_subplot()
    legend = []
    rankings = sparsity.rankings
    for number, ranking in enumerate(rankings):
        line, look = sparsity.line(ranking), line_look(number)
        aside = 0.06 * (number - (len(rankings) - 1) / 2)  # so that lines which run together can be told apart
        xs = [places[point.keep] + aside for point in line]
        axes.plot(xs, [point.accuracy.value for point in line], **look, markeredgecolor=PAPER, markeredgewidth=0.6)
        for x, point in zip(xs, line, strict=True):
            axes.vlines(x, point.accuracy.low, point.accuracy.high, color=look["color"], linewidth=1.1, zorder=3)
            spots = list(point.draws.values())
            axes.scatter([x] * len(spots), spots, s=16, facecolor=PAPER, edgecolor=look["color"], zorder=6)
        legend.append(Line2D([], [], label=printable(ranking), **look))
    whole = sparsity.points[0]
    axes.axhline(sparsity.until * whole.accuracy.value, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"{100 * sparsity.until:g} % of everything kept",
        (0, sparsity.until * whole.accuracy.value),
        xytext=(-12, 3),
        textcoords="offset points",
        va="bottom",
        fontsize=8,
        color=FAINT,
    )
    axes.set_xticks(range(len(shares)), [f"{share:g}" for share in shares])
    axes.set_xlim(-0.4, len(shares) - 0.6)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="y")
    axes.set_xlabel("Share of KV heads that keep the whole context")
    axes.set_ylabel("Accuracy")
    facts = [_window(sparsity), counted(whole.cells, "cell"), "95 % intervals", "quality, not memory saved"]
    if draws := max((len(point.draws) for point in sparsity.points), default=0):
        facts.insert(3, f"{counted(draws, 'draw')} of {RANDOM}, each a ring")
    size = (2.6 + 0.8 * len(shares), 3.2)
    arrange(Page(figure, [[axes]], size, title or "Compressed", " · ".join(facts), legend))
    return figure


@styled()
def map_figure(sparsity: Sparsity, *, title: str = "") -> Figure:
    """Build the figure of `kept_heads_map`."""
    everything = sparsity.points[0].kept.get("none", ())
    if not everything:
        raise ResultsError("there is nothing to plot: which KV heads the model has is not known")
    layers = sorted({layer for layer, _ in everything})
    rows, width = {layer: row for row, layer in enumerate(layers)}, 1 + max(head for _, head in everything)
    shares = sorted({point.keep for point in sparsity.points if 0 < point.keep < 1})
    colours = [HEADS(0.25 + 0.7 * (1 - place / max(1, len(shares)))) for place in range(len(shares))]
    figure = new_figure()
    panels: list[Axes] = []
    size = (max(1.1, _CELL * width), max(1.1, _CELL * len(layers)))
    for ranking in sparsity.rankings:
        image = np.ones((len(layers), width, 4))
        for layer, head in everything:
            image[rows[layer], head] = mpl.colors.to_rgba(_STREAMS)
        arm = next((arm for point in sparsity.line(ranking) if point.ranking for arm in sorted(point.kept)), "")
        draw = arm.partition("_draw_")[2]
        for share, colour in sorted(zip(shares, colours, strict=True), reverse=True):
            for layer, head in _kept(sparsity, ranking, share, draw):
                image[rows[layer], head] = colour
        axes = figure.add_subplot()
        axes.imshow(image, aspect="auto", interpolation="nearest")
        axes.set_title(printable(f"{ranking}, draw {draw}" if draw else ranking), fontsize=9)
        axes.set_xticks(range(width))
        shown = spread(len(layers), size[1], 0.2)
        axes.set_yticks(shown, [str(layers[place]) for place in shown])
        axes.set_xlabel("KV head")
        if not panels:
            axes.set_ylabel("Layer")
        panels.append(axes)
    legend = [
        Patch(facecolor=colour, label=f"kept at {share:g}") for share, colour in zip(shares, colours, strict=True)
    ]
    legend.append(Patch(facecolor=_STREAMS, label="at none of these"))
    arrange(Page(figure, [panels], size, title or "Kept KV heads", _window(sparsity), legend))
    return figure


def _kept(sparsity: Sparsity, ranking: str, share: float, draw: str) -> Sequence[tuple[int, int]]:
    """What a ranking keeps at a share, in its first draw where it is drawn."""
    for point in sparsity.points:
        if point.ranking == ranking and point.keep == share:
            return next((kept for arm, kept in point.kept.items() if arm.partition("_draw_")[2] == draw), ())
    return ()


def _window(sparsity: Sparsity) -> str:
    seen = sparsity.stream
    if not seen:
        return "nothing streams"
    return f"others see {seen['sink']} first tokens and {seen['recent']} last ones"
