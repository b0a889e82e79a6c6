"""What every file of heads is held to: whole numbers of layers and heads, and scores that heads can have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from retrieval_heads.heads.score import SCORES, head_score
from retrieval_heads.heads.table import Estimate, Head, HeadTable, Ranked
from retrieval_heads.runs.layers import MOST, Layer

_SLACK = 1e-6


class Nonsense(ValueError):
    """A file of heads in one of the forms, whose figures cannot be those of heads."""


def is_known_share(name: str) -> bool:
    """Whether a score's figures lie between 0 and 1; those of a score that is not known here may have any size."""
    return name in SCORES.names and head_score(name).is_share


def checked_score(value: Any, where: str, *, is_share: bool) -> float:
    """A head's score, which is a number from 0, and up to 1 where it is a share.

    Args:
        value: What a file says.
        where: Names the place in errors.
        is_share: Whether it is one.

    Raises:
        ValueError: It is none, in one sentence.
    """
    most = 1 + _SLACK if is_share else float(MOST)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -_SLACK <= value <= most:
        raise Nonsense(f"{where}: a score of {'0 to 1' if is_share else '0 or more'} is expected, found {value!r}")
    return float(value)


def checked_means(heads: Iterable[tuple[Head, Any]], score: str) -> Iterator[Ranked]:
    """The mean of every head, of one figure or a list of them for each.

    Args:
        heads: Each head of a file with what is said of it.
        score: Of which score that is.

    Raises:
        ValueError: A head is given twice, has a number that no model has, or no figure.
    """
    seen: set[Head] = set()
    is_share = is_known_share(score)
    for head, figures in heads:
        name = "-".join(map(str, head))
        if head in seen:
            raise Nonsense(f"head {name} is given twice")
        seen.add(head)
        if not all(0 <= number < MOST for number in head):
            raise Nonsense(f"head {name}: numbers of layers and heads are below {MOST}")
        each = figures if isinstance(figures, list) else [figures]
        values = [checked_score(value, f"head {name}", is_share=is_share) for value in each]
        if not values:
            raise ValueError(f"head {name}: holds no score")
        yield head, math.fsum(values) / len(values)


def table_of(heads: Iterable[Ranked], score: str) -> HeadTable:
    """A table of one mean a head and nothing else."""
    import numpy as np

    means = dict(heads)
    numbers = sorted({layer for layer, _ in means})
    most = 1 + max(head for _, head in means)
    mean = np.full((len(numbers), most), math.nan)
    row_of = {number: row for row, number in enumerate(numbers)}
    for (layer, head), value in means.items():
        mean[row_of[layer], head] = value
    unknown = np.full(mean.shape, math.nan)
    layers = tuple(Layer("", number, most) for number in numbers)
    return HeadTable("", layers, {score: Estimate(mean, unknown, unknown)})
