"""What every file of heads is held to: whole numbers of layers and heads, and scores that heads can have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from retrieval_heads.heads.formats.format import HeadFile, Samples
from retrieval_heads.heads.score import SCORES, head_score
from retrieval_heads.heads.table import Estimate, Head, HeadTable, Ranked
from retrieval_heads.runs.layers import MOST, Layer, written_number

_SLACK = 1e-6


class Nonsense(ValueError):
    """A file of heads in one of the forms, whose figures cannot be those of heads."""


def is_known_share(name: str) -> bool:
    """Whether a score's figures lie between 0 and 1; those of a score that is not known here may have any size."""
    return name in SCORES.names and head_score(name).is_share


def may_be_signed(name: str) -> bool:
    """Whether a score's figures may lie below 0; those of a score that is not known here may."""
    return name not in SCORES.names or head_score(name).is_signed


def checked_score(value: Any, where: str, *, is_share: bool, is_signed: bool = False) -> float:
    """A head's score, which is a number from 0, and up to 1 where it is a share.

    Args:
        value: What a file says.
        where: Names the place in errors.
        is_share: Whether it is one.
        is_signed: Whether it may lie below 0.

    Raises:
        ValueError: It is none, in one sentence.
    """
    most = 1 + _SLACK if is_share else float(MOST)
    least = -most if is_signed else -_SLACK
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        expected = "of 0 to 1" if is_share else "of 0 or more"
        if is_signed:
            expected = "of -1 to 1" if is_share else f"of -{MOST} to {MOST}"
        raise Nonsense(f"{where}: a score {expected} is expected, found {value!r}")
    return float(value)


def check_counts(data: Mapping[str, Any]) -> None:
    """See that what a file counted is numbers, where it says so.

    Raises:
        ValueError: One is none.
    """
    for key, most in (("counted", math.inf), ("measured", math.inf), ("stability_top_10", 1)):
        value = data.get(key)
        if value is not None and (isinstance(value, bool) or not 0 <= value <= most):
            raise Nonsense(f"{key}: a number is expected, found {value!r}")


def named_score(value: Any, where: str, score: str) -> float:
    """A head's score of that name.

    Raises:
        ValueError: See `checked_score`.
    """
    return checked_score(value, where, is_share=is_known_share(score), is_signed=may_be_signed(score))


def checked_figures(heads: Iterable[tuple[Head, Any]], score: str) -> Iterator[tuple[Head, list[float]]]:
    """The figures of every head, of one figure or a list of them for each.

    Args:
        heads: Each head of a file with what is said of it.
        score: Of which score that is.

    Raises:
        ValueError: A head is given twice, has a number that no model has, or no figure.
    """
    seen: set[Head] = set()
    for head, figures in heads:
        name = "-".join(map(str, head))
        if head in seen:
            raise Nonsense(f"head {name} is given twice")
        seen.add(head)
        if not all(0 <= number < MOST for number in head):
            raise Nonsense(f"head {name}: numbers of layers and heads are below {MOST}")
        each = figures if isinstance(figures, list) else [figures]
        values = [named_score(value, f"head {name}", score) for value in each]
        if not values:
            raise ValueError(f"head {name}: holds no score")
        yield head, values


def named_heads(data: Any) -> Iterator[tuple[Head, Any]]:
    """The heads of an object, or of pairs, that call them `layer-head`.

    Raises:
        ValueError: A name is none.
    """
    for name, figures in data.items() if isinstance(data, dict) else data:
        layer, head = name.split("-")
        yield (written_number(layer), written_number(head)), figures


def table_of(heads: Iterable[tuple[Head, Any]], score: str) -> HeadTable:
    """A table of one mean a head and nothing else.

    Raises:
        ValueError: See `checked_figures`.
    """
    import numpy as np

    means = {head: math.fsum(values) / len(values) for head, values in checked_figures(heads, score)}
    numbers = sorted({layer for layer, _ in means})
    most = 1 + max(head for _, head in means)
    mean = np.full((len(numbers), most), math.nan)
    row_of = {number: row for row, number in enumerate(numbers)}
    for (layer, head), value in means.items():
        mean[row_of[layer], head] = value
    unknown = np.full(mean.shape, math.nan)
    layers = tuple(Layer("", number, most) for number in numbers)
    return HeadTable("", layers, {score: Estimate(mean, unknown, unknown)})


def samples_of(heads: Iterable[tuple[Head, Any]], score: str, table: HeadTable, cells: tuple[str, ...] = ()) -> Samples:
    """Each sample's figures, where every head has a list of as many; else none.

    Args:
        heads: Each head of a file with what is said of it.
        score: Of which score that is.
        table: The table of the same heads.
        cells: The samples' cells, where the file says them.
    """
    import numpy as np

    figures = dict(checked_figures(heads, score))
    counts = {len(values) for values in figures.values()}
    if len(counts) != 1 or counts == {1}:
        return Samples()
    count = counts.pop()
    row_of = {layer.number: row for row, layer in enumerate(table.layers)}
    values = np.full((count, *table.estimates[score].mean.shape), math.nan)
    for (layer, head), each in figures.items():
        values[:, row_of[layer], head] = each
    return Samples({score: values}, cells if len(cells) == count else ())


def figures_by_head(heads: HeadFile, score: str) -> dict[Head, list[float]]:
    """Each scored head's figures, a sample each or its mean alone, in the order of layer and head."""
    table, samples = heads.table, heads.samples.figures.get(score)
    mean = table.estimates[score].mean
    return {
        (layer.number, head): [float(mean[row, head])] if samples is None else samples[:, row, head].tolist()
        for row, layer in sorted(enumerate(table.layers), key=lambda pair: pair[1].number)
        for head in range(layer.heads)
        if not math.isnan(mean[row, head])
    }


def scored_heads(table: HeadTable, score: str) -> Iterator[Ranked]:
    """Every head that has a mean, in the order of the table."""
    mean = table.estimates[score].mean
    for row, layer in enumerate(table.layers):
        for head in range(layer.heads):
            if not math.isnan(mean[row, head]):
                yield (layer.number, head), float(mean[row, head])
