"""Which samples are not independent of each other: those that share a needle, and those that share a text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from retrieval_heads.intervals import FEWEST, FEWEST_OF_EACH, Grouping, enough, group_weights, varied
from retrieval_heads.runs.record import Record

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

_OF_A_NEEDLE: Final = re.compile(r"(?P<haystack>.*)/(?P<needle>[^/]+-[0-9a-f]{8})/(?P<seed>seed_\d+)(?:/|$)")
_OF_A_TASK: Final = re.compile(r"(?P<task>.*)/(?P<seed>seed_\d+)(?:/|$)")

Cluster = tuple[str, str]
"""What a sample shares with others: its needle and its text, by names that mean the same in every run."""


@dataclass(frozen=True)
class Clusters:
    """The clusters of a run's samples.

    Args:
        of: Of each sample its needle and its text.
    """

    of: tuple[Cluster, ...]

    @property
    def groupings(self) -> tuple[Grouping, ...]:
        """What an interval over these samples goes by: of each sample its group, by needle and by text."""
        return varied(tuple(zip(*self.of, strict=True)))

    @property
    def note(self) -> str:
        """What intervals are over; where there are none, why."""
        needles, texts = (len({each[part] for each in self.of}) for part in (0, 1))
        what = f"{_counted(needles, 'needle')} and {_counted(texts, 'text')}"
        if enough(self.groupings, len(self.of)):
            return f"intervals are over {what}"
        return (
            f"no intervals: the samples are of {what}, which are not independent; {FEWEST} needles or {FEWEST} texts "
            f"are needed, and where both differ {FEWEST_OF_EACH} of each"
        )


@dataclass(frozen=True)
class Drawn:
    """Mean scores under other weights of the samples' needles and texts, of which figures are computed anew.

    Args:
        means: `[draws, layers, heads]`.
        groups: Needles or texts, the fewer of the two of which there are several.
    """

    means: NDArray[float64]
    groups: int


def drawn(figures: NDArray[float64], clusters: Clusters) -> Drawn | None:
    """Means of samples' figures, `[samples, layers, heads]`, under other weights; `None` for too few clusters."""
    if not enough(clusters.groupings, len(figures)):
        return None
    weights = group_weights(clusters.groupings)
    weights /= weights.sum(1, keepdims=True)
    means = (weights @ figures.reshape(len(figures), -1)).reshape(-1, *figures.shape[1:])
    return Drawn(means, min(len(set(grouping)) for grouping in clusters.groupings))


def cluster_of(record: Record) -> Cluster:
    """The needle and the text of a sample.

    The needle is what was inserted and asked for, whatever else was asked of it; of a task that inserts nothing the
    question and its answer. The text is a haystack from a seed's place on: longer contexts hold the shorter ones. A
    task that makes its own texts makes them from the seed.
    """
    inserted = record.insertions[0].text if record.insertions else record.needle
    needle = _digest(inserted.strip() or f"{record.task} {record.question} {record.reference}")
    if record.recipe is not None and record.recipe.hash:
        return needle, f"{record.recipe.hash[:12]}/seed_{record.seed}"
    named = cluster_of_cell(record.cell)
    return needle, named[1] if named else f"{record.task or ''}/seed_{record.seed}"


def cluster_of_cell(cell: str) -> Cluster | None:
    """The same as a cell's name tells it; `None` where it does not."""
    if found := _OF_A_NEEDLE.match(cell):
        return found["needle"], f"{found['haystack']}/{found['seed']}"
    if found := _OF_A_TASK.match(cell):
        return found["task"], f"{found['task']}/{found['seed']}"
    return None


def clusters_of_cells(cells: Iterable[str]) -> tuple[Cluster, ...]:
    """Those of a file's samples; empty where one of the names does not tell."""
    found = [cluster_of_cell(cell) for cell in cells]
    return tuple(each for each in found if each is not None) if None not in found else ()


def clusters_of(records: Sequence[Record]) -> Clusters:
    """The clusters of a detection's samples."""
    return Clusters(tuple(map(cluster_of, records)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
