"""Head scores: the contract of one, and all that there are. Imports no torch.

A score is one object in a file of its own. To add one, write the file and name it below, or name it in another
distribution's entry points: `[project.entry-points."retrieval_heads.head_scores"]`, `NAME = "module:OBJECT"`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.looks import NEEDS, Look, Rows, Seen, Weighing
from retrieval_heads.heads.replays import ANSWERED, REPEATED, Replayed
from retrieval_heads.registry import Registry
from retrieval_heads.runs.record import Record

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray
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
    """Whether figures lie between 0 and 1, or between -1 and 1 where they are signed. Others begin at 0 too and end at
    `greatest`, unless they are signed.
    """
    is_signed: bool = False
    """Whether figures may lie below 0. Those that are no share have no limits on either side then: `greatest` is not
    asked, and intervals are Student's.
    """
    needs_sign: bool = False
    """Whether it is measured only in models with layers whose weights have a sign."""
    is_default: bool = True
    """Whether suites measure it that name no scores."""
    is_in_table: bool = True
    """Whether it has a column in the terminal's table of the best heads."""
    needs: frozenset[str] = frozenset()
    """What it reads of rows beyond argmax and weights: some of `looks.NEEDS`. What no score needs is never computed."""

    replays: Sequence[Replayed] = (ANSWERED,)
    """What it reads. `looks`, `weighings` and `figure` are called for each of these replays, with rows of its own."""

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
            In any order; none where the sample lacks what the score is about, which is then not measured on it unless
            there are weighings.
        """
        return ()

    def weighings(self, rows: Rows) -> Sequence[Weighing]:
        """Which weights on single keys are added up over which rows, where that is what the score reads.

        Args:
            rows: What is replayed of a sample.
        """
        return ()

    def parts(self, rows: Rows) -> int:
        """How many figures a head hand over from the worker, for `combined`; more than one where replays have to be set
        against each other place by place. Never as many as the context is long.

        Args:
            rows: What is replayed of a sample.
        """
        return 1

    def figure(self, seen: Seen) -> Tensor:
        """What these looks and weighings come to, float32 `[layers, requests, heads]`.

        Args:
            seen: What the rows saw, of several samples. Of one without looks and weighings no row counts, and whatever
                is made of it is left out.

        Returns:
            On the device that `seen` is on, without waiting for it; NaN only where a row's weights are NaN. Where a
            request has other than one of `parts`, `[parts, layers, requests, heads]`, as many as the most of a request.
        """

    def combined(self, handed: Sequence[NDArray[float64]], rows: Rows) -> NDArray[float64]:
        """The score of a sample, `[layers, heads]`.

        Args:
            handed: What each of `replays` handed over, `[parts, layers, heads]`.
            rows: What was replayed of the sample.
        """
        return handed[0][0]


GROUP: Final = "retrieval_heads.head_scores"
"""Of entry points."""

BUILT_IN: Final = {
    name: f"retrieval_heads.heads.{name}:SCORE"
    for name in (
        "copy",
        "copy_reference",
        "mass",
        "query",
        "mass_distractors",
        "write",
        "r2",
        "copy_by_value",
        "qr",
        "induction",
        "echo",
    )
}
"""Our own, each in the file of its name, in the order in which they are told."""

SCORES: Final = Registry[HeadScore](GROUP, "head score", BUILT_IN)

RANKING: Final = next(iter(BUILT_IN))
"""The score that heads are ranked by where none is named: the first."""


def ranking_of(names: Collection[str]) -> str:
    """The score that heads are ranked by where these are measured: the usual one, else the first of them as scores are
    told, those of random texts last.
    """
    return RANKING if RANKING in names else next(iter(sorted(names, key=_order)))


def _order(name: str) -> tuple[bool, int]:
    if name not in SCORES.names:
        return False, len(SCORES.names)
    return is_of_texts(head_score(name)), SCORES.names.index(name)


def is_of_texts(score: HeadScore) -> bool:
    """Whether a score is measured on random texts, once for a model, and not on samples."""
    return REPEATED in score.replays


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
    replays = getattr(score, "replays", ())
    if REPEATED in replays and len(replays) > 1:
        raise ConfigError(f"the head score {name!r} reads random texts and samples; it can read either")
    if unknown:
        known = ", ".join(sorted(NEEDS))
        raise ConfigError(f"the head score {name!r} needs {', '.join(unknown)}; rows give {known} on request")
    return score


def is_measured(score: HeadScore, rows: Rows) -> bool:
    """Whether a replay has what the score is about."""
    return bool(score.looks(rows) or score.weighings(rows))


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
