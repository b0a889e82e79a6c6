"""Head scores: the contract of one, and all that there are. Imports no torch.

A score is one object in a file of its own. To add one, write the file and name it below, or name it in another
distribution's entry points: `[project.entry-points."retrieval_heads.head_scores"]`, `NAME = "module:OBJECT"`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.looks import NEEDS, Look, Rows, Seen
from retrieval_heads.registry import Registry
from retrieval_heads.runs.record import Record

if TYPE_CHECKING:
    from torch import Tensor


class HeadScore(Protocol):
    """One figure for every head of a sample, made of the rows of its replay; a detection averages them over samples.

    `looks` and `figure` are called in the engine's workers, all else anywhere: torch is imported in `figure` alone.
    """

    name: str
    """As suites, gates, records and files call it: the name that it is registered by."""
    definition: str
    """What is counted, in one sentence, with its source: for `heads.json` and the report."""
    label: str
    """Heads its panel in pictures."""
    is_share: bool = True
    """Whether figures lie between 0 and 1. All others begin at 0 too; `greatest` says where they end."""
    needs_sign: bool = False
    """Whether it is measured only in models with layers whose weights have a sign."""
    is_default: bool = True
    """Whether suites measure it that name no scores."""
    is_in_table: bool = True
    """Whether it has a column in the terminal's table of the best heads."""
    needs: frozenset[str] = frozenset()
    """What it reads of rows beyond argmax and weights: some of `looks.NEEDS`. What no score needs is never computed."""

    def greatest(self, record: Record) -> float:
        """The greatest figure that a head could have on a sample: the end of the scale that intervals are on.

        Args:
            record: The sample, its answer and spans among it.
        """
        return 1.0

    def looks(self, rows: Rows) -> Sequence[Look]:
        """Which rows look at which span; every row may look at another.

        Args:
            rows: What is replayed of a sample.

        Returns:
            In any order; none where the sample lacks what the score is about, which is then not measured on it.
        """

    def figure(self, seen: Seen) -> Tensor:
        """What these looks come to, float32 `[layers, requests, heads]`.

        Args:
            seen: What the rows of the looks saw, of several samples. Of one without looks no row counts, and whatever
                is made of it is left out.

        Returns:
            On the device that `seen` is on, without waiting for it; NaN only where a row's weights are NaN.
        """


GROUP: Final = "retrieval_heads.head_scores"
"""Of entry points."""

BUILT_IN: Final = {
    name: f"retrieval_heads.heads.{name}:SCORE"
    for name in ("copy", "copy_reference", "mass", "query", "mass_distractors", "copy_by_value")
}
"""Our own, each in the file of its name, in the order in which they are told."""

SCORES: Final = Registry[HeadScore](GROUP, "head score", BUILT_IN)

RANKING: Final = next(iter(BUILT_IN))
"""The score that heads are ranked by where none is named: the first."""


def ranking_of(names: Collection[str]) -> str:
    """The score that heads are ranked by where these are measured: the usual one, else the first of them as scores are
    told.
    """
    return RANKING if RANKING in names else next(iter(sorted(names, key=_order)))


def _order(name: str) -> int:
    return SCORES.names.index(name) if name in SCORES.names else len(SCORES.names)


def head_score(name: str) -> HeadScore:
    """The score of a name.

    Raises:
        ConfigError: There is none, a name is taken twice, another distribution's cannot be used, or it needs what rows
            do not give.
    """
    score = SCORES.find(name)
    if getattr(score, "name", None) != name:
        raise ConfigError(f"the head score {name!r} is registered by another name than its own: {score!r}")
    unknown = sorted(getattr(score, "needs", frozenset()) - NEEDS)
    if unknown:
        known = ", ".join(sorted(NEEDS))
        raise ConfigError(f"the head score {name!r} needs {', '.join(unknown)}; rows give {known} on request")
    return score


def needs_of(scores: Iterable[HeadScore]) -> frozenset[str]:
    """All that some scores need."""
    return frozenset().union(*(score.needs for score in scores))


def is_wanted(score: HeadScore, names: Collection[str]) -> bool:
    """Whether a score is among those that a suite names; of a suite that names none, among the usual ones."""
    return score.name in names if names else score.is_default


def head_scores() -> Mapping[str, HeadScore]:
    """Every score by its name: ours, then those of other distributions.

    Raises:
        ConfigError: See `head_score`.
    """
    return {name: head_score(name) for name in SCORES.names}
