"""Curves: how few heads retrieve, and how scores fall with length and depth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike

from retrieval_heads.errors import ResultsError
from retrieval_heads.intervals import FEWEST, Interval, mean_interval
from retrieval_heads.plots.grid import MEASURED, Sample, measured_samples, metric_label
from retrieval_heads.plots.heads import checked_scores
from retrieval_heads.plots.layout import Page, arrange, new_figure, text_width
from retrieval_heads.plots.saving import save
from retrieval_heads.plots.style import HEADS, INK, PAPER, axis_title, counted, line_look, shorten, styled
from retrieval_heads.runs.place import DEPTH, axis_label
from retrieval_heads.runs.record import Record, finite_mean

# Whiskers up to this many points on an axis, a band beyond.
_MAX_WHISKERS = 24
_MAX_WHISKERED_RUNS = 4


def score_distribution(
    mean_scores: ArrayLike | Mapping[str, ArrayLike],
    path: Path,
    *,
    threshold: float = 0.1,
    colours: Sequence[str] = (),
    title: str = "",
) -> list[Path]:
    """Draw the heads' scores from highest to lowest, with the line that makes a retrieval head.

    Args:
        mean_scores: Mean scores `[layers, heads]`; NaN where a layer was not scored. Of several runs by name, which are
            overlaid.
        path: Where to write, with or without `.png` or `.svg`; both are written.
        threshold: A retrieval head scores at least this (0.1 in arXiv 2404.15574).
        colours: One for each of several runs, as matplotlib reads them; left out, ours.
        title: Heading, such as the model's name.

    Returns:
        The two paths written.

    Raises:
        ResultsError: Not `[layers, heads]`, no number in it, or a folder that cannot be written.
    """
    return save(distribution_figure(mean_scores, threshold=threshold, colours=colours, title=title), path)


def profiles(
    records: Sequence[Record] | Mapping[str, Sequence[Record]],
    path: Path,
    *,
    metric: str | None = None,
    colours: Sequence[str] = (),
    title: str = "",
) -> list[Path]:
    """Draw the mean score against context length and against needle depth, with 95 % intervals.

    Args:
        records: Of one run, or of several by name, which are overlaid.
        path: Where to write, with or without `.png` or `.svg`; both are written.
        metric: Name of a score; `None` takes each record's own metric.
        colours: One for each run, as matplotlib reads them; left out, ours.
        title: Heading, such as model and suite.

    Returns:
        The two paths written.

    Raises:
        ResultsError: A run without a measured record, a cell twice in one, scores of different names, a score
            that is absent or NaN, or an unwritable folder.
    """
    return save(profiles_figure(records, metric=metric, colours=colours, title=title), path)


@styled()
def distribution_figure(
    mean_scores: ArrayLike | Mapping[str, ArrayLike],
    *,
    threshold: float = 0.1,
    colours: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Build the figure of `score_distribution`."""
    runs = dict(mean_scores) if isinstance(mean_scores, Mapping) else {"": mean_scores}
    if not runs:
        raise ResultsError("there is nothing to plot: no run was given")
    arrays = {
        name: checked_scores(values, f"mean score of {name}" if name else "mean score") for name, values in runs.items()
    }
    ordered = {name: np.sort(array[~np.isnan(array)])[::-1] for name, array in arrays.items()}
    longest = max(map(len, ordered.values()))
    figure = new_figure()
    axes = figure.add_subplot()
    top = max(threshold, *(float(scores[0]) for scores in ordered.values())) * 1.12
    for index, scores in enumerate(ordered.values()):
        ranks = np.arange(1, len(scores) + 1)
        if len(ordered) > 1:
            look = line_look(index, colours)
            axes.plot(ranks, scores, **look, markersize=3.5, markevery=slice(0, 30), linewidth=1.6, zorder=3)
            continue
        axes.plot(ranks, scores, color=HEADS(0.72), linewidth=2, zorder=3, label="scores")
        axes.scatter(ranks[:30], scores[:30], s=14, color=HEADS(0.72), zorder=4)
        if above := int((scores >= threshold).sum()):
            axes.fill_between(ranks[:above], threshold, scores[:above], color=HEADS(0.3), alpha=0.55, linewidth=0)
    axes.axhline(threshold, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2, label="threshold")
    axes.set_xscale("log")
    axes.set_xlim(0.85, max(longest, 2) * 1.15)
    axes.set_ylim(min(0.0, *(float(scores[-1]) for scores in ordered.values())), top)
    ticks = [10**power for power in range(int(math.log10(longest)) + 1)]
    if longest / ticks[-1] > 2:
        ticks.append(longest)
    axes.minorticks_off()
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.grid(axis="y")
    axes.set_xlabel("Heads, from the highest score")
    axes.set_ylabel("Mean score")
    axes.annotate(
        f"retrieval head: {threshold:g} or more",
        (axes.get_xlim()[1], threshold),
        xytext=(-2, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8,
        color=INK,
        path_effects=[withStroke(linewidth=3, foreground=PAPER)],
        zorder=5,
    )
    subtitle = (
        _counted_heads(*next(zip(ordered.values(), arrays.values(), strict=True)), threshold)
        if len(ordered) == 1
        else ""
    )
    legend = [
        Line2D([], [], label=f"{shorten(name, 60)}: {_above(scores, threshold)}", **line_look(index, colours))
        for index, (name, scores) in enumerate(ordered.items())
        if len(ordered) > 1
    ]
    arrange(Page(figure, [[axes]], (5.8, 3.2), title or "How few heads retrieve", subtitle, legend))
    return figure


def _above(scores: Any, threshold: float) -> str:
    above = int((scores >= threshold).sum())
    share = f"{100 * above / len(scores):.1f} %"
    return f"{above:,} of {counted(len(scores), 'head')} ({share}) at or above {threshold:g}"


def _counted_heads(scores: Any, array: Any, threshold: float) -> str:
    told = _above(scores, threshold)
    unscored = array.size - len(scores)
    return f"{told} · {counted(unscored, 'head')} not scored" if unscored else told


@styled()
def profiles_figure(
    records: Sequence[Record] | Mapping[str, Sequence[Record]],
    *,
    metric: str | None = None,
    colours: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Build the figure of `profiles`."""
    runs = dict(records) if isinstance(records, Mapping) else {"": records}
    if not runs:
        raise ResultsError("there is nothing to plot: no run was given")
    samples = {name: measured(name, members, metric) for name, members in runs.items()}
    metrics = sorted({s.metric for members in samples.values() for s in members})
    if len(metrics) > 1:
        raise ResultsError(f"the records count by different scores ({', '.join(metrics)}); choose one as metric")
    everything = [s for members in samples.values() for s in members]
    sides = [side for side in everything[0].record.place.sides if _are_numbers(everything, side)]
    if not sides:
        raise ResultsError("no axis of this task is of numbers, so there is no curve over one")
    figure = new_figure()
    drawn = [figure.add_subplot() for _ in sides]
    width, height = 4.6, 3.2
    values = [s.value for s in everything]
    for side, axes in zip(sides, drawn, strict=True):
        for index, members in enumerate(samples.values()):
            curve(axes, [(_number_on(side, s), s.value) for s in members], index, len(samples), colours)
        if side == DEPTH:
            axes.set_xlim(-4, 104)
            axes.set_xticks([0, 25, 50, 75, 100])
            axes.set_xlabel(axis_title(side))
        else:
            number_axis(figure, axes, side, sorted({_number_on(side, s) for s in everything}), width)
        axes.set_ylim(min(-0.03, *values), max(1.03, *values))
        axes.grid(axis="y")
    drawn[0].set_ylabel(f"Mean {metric_label(metrics[0])}")
    facts = [counted(len(everything), "measured record")]
    left_out = sum(map(len, runs.values())) - len(everything)
    if left_out:
        facts.append(f"{left_out:,} skipped or in error left out")
    if len(everything) > 1:
        facts.append(f"mean with its 95 % interval, from {FEWEST} values on")
    legend = [
        Line2D([], [], label=shorten(name, 60), **line_look(index, colours))
        for index, name in enumerate(runs)
        if len(runs) > 1 or name
    ]
    title = title or f"Score by {' and '.join(map(_plain_name, sides))}"
    arrange(Page(figure, [drawn], (width, height), title, " · ".join(facts), legend))
    return figure


def measured(name: str, records: Sequence[Record], metric: str | None) -> list[Sample]:
    """The samples of a run that have a value.

    Raises:
        ResultsError: There is none.
    """
    try:
        found = [s for s in measured_samples(records, metric) if s.state == MEASURED]
    except ResultsError as error:
        raise ResultsError(f"run {name!r}: {error}" if name else str(error)) from None
    if not found:
        raise ResultsError(f"{f'run {name!r}' if name else 'the run'} has no measured record: nothing to plot")
    return found


def curve(
    axes: Axes, points: Sequence[tuple[float, float]], index: int, runs: int, colours: Sequence[str] = ()
) -> None:
    """Draw the means of the points at each x, with their intervals.

    Args:
        axes: Where.
        points: x and value.
        index: Of the run among `runs`: its look.
        runs: How many are overlaid.
        colours: Of each run, in place of the look's.
    """
    groups: dict[float, list[float]] = defaultdict(list)
    for x, value in points:
        groups[x].append(value)
    xs = sorted(groups)
    means = [finite_mean(groups[x]) for x in xs]
    # Without an interval (too few values) the whisker has no length: a point alone says "no interval".
    ends = [mean_interval(groups[x]) or Interval(mean, mean) for x, mean in zip(xs, means, strict=True)]
    low, high = [end.low for end in ends], [end.high for end in ends]
    look = line_look(index, colours)
    # Whiskers of neighbours stand side by side; of more runs or points they would be a thicket.
    whiskers = len(xs) == 1 or (len(xs) <= _MAX_WHISKERS and runs <= _MAX_WHISKERED_RUNS)
    figure: Any = axes.figure
    shift = (index - (runs - 1) / 2) * 2.5 if whiskers else 0.0
    beside = axes.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
    if whiskers:
        axes.vlines(xs, low, high, color=look["color"], linewidth=1.3, transform=beside, label="interval")
    else:
        axes.fill_between(
            xs, low, high, color=look["color"], alpha=0.2 / math.sqrt(runs), linewidth=0, label="interval"
        )
    axes.plot(
        xs,
        means,
        **{**look, "marker": look["marker"] if len(xs) <= _MAX_WHISKERS else None},
        markeredgecolor=PAPER,
        markeredgewidth=0.6,
        transform=beside,
        zorder=3,
        label="mean",
    )


def _are_numbers(samples: Iterable[Sample], side: str) -> bool:
    return all(isinstance(s.record.place.get(side), int | float) for s in samples)


def _number_on(side: str, sample: Sample) -> float:
    value = sample.record.place.get(side)
    assert isinstance(value, int | float)
    return value


def _plain_name(axis: str) -> str:
    """An axis without its unit."""
    return axis_label(axis).partition(" (")[0]


def number_axis(figure: Figure, axes: Axes, side: str, lengths: Sequence[float], width: float) -> None:
    """Lay out an axis of numbers, `width` inches wide: a log scale where they lie far apart, ticks with room."""
    low, high = lengths[0], lengths[-1]
    wide = high / max(low, 1) >= 8
    if wide:
        axes.set_xscale("log", base=2)
    position = np.log2(np.maximum(lengths, 1)) if wide else np.asarray(lengths, dtype=float)
    margin = 0.05 * (position[-1] - position[0]) or 1.0
    ends = position[0] - margin, position[-1] + margin
    axes.set_xlim(*(2.0 ** np.asarray(ends) if wide else ends))
    axes.minorticks_off()
    points = mpl.rcParams["xtick.labelsize"]
    pitch = max(text_width(figure, f"{length:,}", points) for length in lengths) + 0.1
    shown: list[int] = []
    inches = (position - ends[0]) / (ends[1] - ends[0]) * width
    # From the longest down: the far end is what the picture is about.
    for index in reversed(range(len(lengths))):
        if not shown or inches[shown[-1]] - inches[index] >= pitch:
            shown.append(index)
    axes.set_xticks([lengths[i] for i in shown], [f"{lengths[i]:,}" for i in shown])
    name = axis_title(side)
    if wide:
        name = f"{name[:-1]}, log scale)" if name.endswith(")") else f"{name} (log scale)"
    axes.set_xlabel(name)
