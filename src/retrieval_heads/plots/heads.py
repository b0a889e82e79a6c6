"""Pictures of head scores: layers down and heads across, a panel a score; and definitions by definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import blended_transform_factory
from numpy.typing import ArrayLike

from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.score import SCORES, head_score
from retrieval_heads.plots.hatching import Look, hatch_cells, legend_patch
from retrieval_heads.plots.layout import Page, arrange, new_figure, spread, text_width
from retrieval_heads.plots.rings import MAX_NAMED_HEADS, ring_heads
from retrieval_heads.plots.saving import save
from retrieval_heads.plots.style import DIFFERENCES, FAINT, HEADS, INK, PAPER, counted, printable, shorten, styled

_NOT_SCORED = Look("#e3e5e9", "////", "#a8adb7", "not scored")
_NOT_DEFINED = Look("#e3e5e9", "////", "#a8adb7", "not defined")
# Marks beside the layer axis; told apart by hatch as well as by colour.
_LAYER_MARKS = [("#3f83bb", ""), ("#c9971c", "////"), ("#7a8794", "...."), ("#2a9d8f", "xxxx")]


def head_heatmap(
    scores: Mapping[str, ArrayLike],
    path: Path,
    *,
    title: str = "",
    top: Sequence[tuple[int, int]] = (),
    marked_layers: Mapping[int, str] | None = None,
    layer_labels: Sequence[str] | None = None,
) -> list[Path]:
    """Draw head scores as layers × heads, one panel for each score.

    Args:
        scores: Score name to mean scores `[layers, heads]`; a layer of NaN was not scored.
        path: Where to write, with or without `.png` or `.svg`; both are written.
        title: Heading, such as the model's name.
        top: Heads to ring, each (layer row, head); named as `18-6` while they are few.
        marked_layers: Layer row to its kind, such as `sliding window`, for layers that cannot retrieve.
        layer_labels: What the rows are called, `[layers]`; `None` counts them from 0.

    Returns:
        The two paths written.

    Raises:
        ResultsError: No score, one that is not `[layers, heads]` or has no number in it, a head or layer
            that does not exist, or an unwritable folder.
    """
    figure = head_figure(scores, title=title, top=top, marked_layers=marked_layers, layer_labels=layer_labels)
    return save(figure, path)


@styled()
def head_figure(
    scores: Mapping[str, ArrayLike],
    *,
    title: str = "",
    top: Sequence[tuple[int, int]] = (),
    marked_layers: Mapping[int, str] | None = None,
    layer_labels: Sequence[str] | None = None,
) -> Figure:
    """Build the figure of `head_heatmap`."""
    arrays = {name: checked_scores(values, name) for name, values in scores.items()}
    if not arrays:
        raise ResultsError("there is nothing to plot: no head score was given")
    marked = dict(marked_layers or {})
    layers, heads = next(iter(arrays.values())).shape
    _check_places(arrays, top, marked, layer_labels)
    labels = [shorten(label, 18) for label in layer_labels] if layer_labels else [str(n) for n in range(layers)]

    figure = new_figure()
    across, width, height = _panel_size(len(arrays), layers, heads)
    kinds = list(dict.fromkeys(marked.values()))
    bars: dict[Axes, Axes] = {}
    for name, values in arrays.items():
        axes = figure.add_subplot()
        bars[axes] = figure.add_subplot()
        _draw(figure, axes, bars[axes], name, values)
        _label_axes(axes, labels, heads, width, height, figure)
        _mark_layers(axes, marked, kinds, width)
        axes.set_visible(False)
        bars[axes].set_visible(False)
    for axes in (*bars, *bars.values()):
        axes.set_visible(True)
    panels = list(bars)
    for index, axes in enumerate(panels):
        if index % across:
            axes.set_ylabel("")
        if index + across < len(panels):
            axes.set_xlabel("")
    grid = [panels[start : start + across] for start in range(0, len(panels), across)]
    unscored = any(bool(np.isnan(values).any()) for values in arrays.values())
    facts = [f"{counted(layers, 'layer')} × {counted(heads, 'head')}"]
    if top:
        facts.append(f"{counted(len(top), 'top head')} ringed")
    named = len(top) <= MAX_NAMED_HEADS
    ring_words = ("top head (layer-head)" if named else "top head") if top else ""
    legend = _legend(ring_words, unscored, kinds)
    arrange(Page(figure, grid, (width, height), title or "Retrieval heads", " · ".join(facts), legend, beside=bars))
    # A long row name (a module path) would cover the heads: the row's number stands for it.
    rows = [label if len(label) <= 4 else str(row) for row, label in enumerate(labels)]
    names = [f"{rows[layer]}-{head}" for layer, head in top] if named else []
    for index, axes in enumerate(panels):
        # The rings stand at the same places in every panel; names in one of them hide less.
        ring_heads(figure, axes, top, names if index == 0 else [])
    return figure


def agreement_heatmap(
    names: Sequence[str],
    panels: Mapping[str, Mapping[tuple[int, int], float | None]],
    path: Path,
    *,
    title: str = "",
) -> list[Path]:
    """Draw how far definitions of a retrieval head agree, definitions × definitions, a panel for each measure.

    Args:
        names: The definitions.
        panels: A measure's name to its figure of each pair (first, second), −1 to 1; `None` where it is not defined.
        path: Where to write, with or without `.png` or `.svg`; both are written.
        title: Heading.

    Returns:
        The two paths written.
    """
    return save(agreement_figure(names, panels, title=title), path)


@styled()
def agreement_figure(
    names: Sequence[str], panels: Mapping[str, Mapping[tuple[int, int], float | None]], *, title: str = ""
) -> Figure:
    """Build the figure of `agreement_heatmap`."""
    figure, count = new_figure(), len(names)
    size = max(2.4, 0.62 * count)
    labels = [shorten(name, 24) for name in names]
    bars: dict[Axes, Axes] = {}
    for measure, pairs in panels.items():
        axes, bar = figure.add_subplot(), figure.add_subplot()
        bars[axes] = bar
        values = np.full((count, count), np.nan)
        for (one, other), value in pairs.items():
            values[one, other] = values[other, one] = np.nan if value is None else value
        is_signed = bool((values < 0).any())
        colours, least = (DIFFERENCES, -1.0) if is_signed else (HEADS, 0.0)
        sns.heatmap(
            values,
            ax=axes,
            cmap=colours,
            vmin=least,
            vmax=1.0,
            cbar=False,
            annot=True,
            fmt=".2f",
            annot_kws={"size": 8},
            xticklabels=labels,
            yticklabels=labels,
            linewidths=0.6,
            linecolor=PAPER,
        )
        axes.set_title(printable(measure))
        axes.tick_params(axis="x", rotation=45)
        axes.tick_params(axis="y", rotation=0)
        for text in axes.get_xticklabels():
            text.set_horizontalalignment("right")
        colour_bar = figure.colorbar(axes.collections[0], cax=bar)
        colour_bar.outline.set_edgecolor(FAINT)
        undefined = np.isnan(values) & ~np.eye(count, dtype=bool)
        hatch_cells(axes, undefined, _NOT_DEFINED, "not defined")
    legend = [legend_patch(_NOT_DEFINED)] if any(None in pairs.values() for pairs in panels.values()) else []
    arrange(
        Page(
            figure,
            [list(bars)],
            (size, size),
            title or "Agreement of definitions",
            f"{count} definitions",
            legend,
            beside=bars,
        )
    )
    return figure


def checked_scores(values: ArrayLike, name: str) -> Any:
    """The scores as a float array `[layers, heads]`, or a ResultsError that says what is wrong with them."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ResultsError(f"head score {name!r} is not a table of numbers [layers, heads]") from None
    if array.ndim != 2 or not array.size:
        raise ResultsError(f"head score {name!r} has shape {list(array.shape)}, not [layers, heads]")
    if np.isinf(array).any():
        raise ResultsError(f"head score {name!r} holds an infinite value; detect the heads again")
    if np.isnan(array).all():
        raise ResultsError(f"head score {name!r} holds no number: no layer was scored")
    return array


def _check_places(
    arrays: Mapping[str, Any],
    top: Sequence[tuple[int, int]],
    marked: Mapping[int, str],
    layer_labels: Sequence[str] | None,
) -> None:
    first, *others = arrays
    layers, heads = arrays[first].shape
    for name in others:
        if arrays[name].shape != (layers, heads):
            raise ResultsError(
                f"head scores {first!r} and {name!r} differ in shape: {layers} × {heads} and "
                f"{arrays[name].shape[0]} × {arrays[name].shape[1]} layers × heads"
            )
    for layer, head in top:
        if not (0 <= layer < layers and 0 <= head < heads):
            raise ResultsError(f"top head {layer}-{head} is not among {layers} layers × {heads} heads")
    for layer in marked:
        if not 0 <= layer < layers:
            raise ResultsError(f"marked layer {layer} is not among {layers} layers")
    if layer_labels and len(layer_labels) != layers:
        raise ResultsError(f"{len(layer_labels)} layer labels for {layers} layers")


def _panel_size(count: int, layers: int, heads: int) -> tuple[int, float, float]:
    """Panels in a row of the page, and inches of one panel."""
    across = 1 if count == 1 else 2 if count in (2, 4) or heads > 16 else 3
    across = min(across, count)
    most_wide, most_high = (9.6, 7.2) if count == 1 else (6.2, 5.2)
    width = min(max(heads * 0.24, 2.4), most_wide)
    height = min(max(layers * 0.17, 1.5), most_high)
    return across, width, height


def _draw(figure: Figure, axes: Axes, scale: Axes, name: str, values: Any) -> None:
    colours, least, most = _scale(name, values)
    sns.heatmap(
        values,
        ax=axes,
        cmap=colours,
        vmin=least,
        vmax=most,
        cbar=False,
        xticklabels=False,
        yticklabels=False,
        linewidths=0.6 if values.size <= 600 else 0,
        linecolor=PAPER,
        rasterized=values.size > 2500,
    )
    axes.set_title(printable(head_score(name).label if name in SCORES.names else name))
    bar = figure.colorbar(axes.collections[0], cax=scale, extend="min" if np.nanmin(values) < least else "neither")
    bar.outline.set_edgecolor(FAINT)
    bar.outline.set_linewidth(0.6)
    hatch_cells(axes, np.isnan(values), _NOT_SCORED, "not scored")
    for spine in axes.spines.values():
        spine.set_visible(True)


def _scale(name: str, values: Any) -> tuple[Any, float, float]:
    """The colour map of a panel and its ends: of a score that may lie below 0 as far on either side."""
    highest = float(np.nanmax(values))
    if name in SCORES.names and head_score(name).is_signed:
        most = max(highest, -float(np.nanmin(values))) or 1.0
        return DIFFERENCES, -most, most
    return HEADS, 0.0, highest if highest > 0 else 1.0


def _label_axes(axes: Axes, labels: Sequence[str], heads: int, width: float, height: float, figure: Figure) -> None:
    points = mpl.rcParams["xtick.labelsize"]
    columns = spread(heads, width, text_width(figure, str(heads), points) + 0.09)
    axes.set_xticks([c + 0.5 for c in columns], [str(c) for c in columns])
    rows = spread(len(labels), height, points / 72 * 1.35)
    axes.set_yticks([r + 0.5 for r in rows], [labels[r] for r in rows])
    axes.tick_params(axis="y", labelrotation=0)
    axes.set_xlabel("Head")
    axes.set_ylabel("Layer")


def _mark_layers(axes: Axes, marked: Mapping[int, str], kinds: Sequence[str], width: float) -> None:
    """A strip between the panel and its layer numbers."""
    if not marked:
        return
    inch = 1 / width
    transform = blended_transform_factory(axes.transAxes, axes.transData)
    for layer, kind in marked.items():
        colour, hatch = _LAYER_MARKS[kinds.index(kind) % len(_LAYER_MARKS)]
        axes.add_patch(
            Rectangle(
                (-0.13 * inch, layer),
                0.09 * inch,
                1,
                transform=transform,
                clip_on=False,
                facecolor=colour,
                edgecolor=PAPER,
                hatch=hatch,
                linewidth=0.4,
                label=kind,
            )
        )
    axes.tick_params(axis="y", length=0, pad=12)


def _legend(ring_words: str, unscored: bool, kinds: Sequence[str]) -> list[Any]:
    entries: list[Any] = []
    if ring_words:
        entries.append(
            Line2D(
                [],
                [],
                linestyle="",
                marker="o",
                markersize=7,
                markerfacecolor="none",
                markeredgecolor=INK,
                markeredgewidth=1.2,
                label=ring_words,
            )
        )
    if unscored:
        entries.append(legend_patch(_NOT_SCORED))
    for index, kind in enumerate(kinds):
        colour, hatch = _LAYER_MARKS[index % len(_LAYER_MARKS)]
        entries.append(
            Patch(
                facecolor=colour,
                edgecolor=PAPER,
                hatch=hatch,
                linewidth=0.4,
                label=f"{shorten(kind, 40)} layer",
            )
        )
    return entries
