"""A sample whose heads are being scored: the replays that its scores read, and what these hand over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from retrieval_heads.engine.answers import handed_over, heads_of, replay_of, steps_of
from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.packed import PackedHeads
from retrieval_heads.heads.looks import Rows
from retrieval_heads.heads.replays import ANSWERED, OtherQuery, Replayed
from retrieval_heads.heads.score import head_score, is_measured
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Replay
from retrieval_heads.runs.steps import Steps

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ToReplay:
    """A replay to be run.

    Args:
        replayed: What is replayed.
        ids: Its token ids.
        rows: What head scores read of it.
    """

    replayed: Replayed
    ids: Sequence[int]
    rows: Rows


@dataclass
class Sample:
    """The scores of one answer.

    Args:
        ids: The prompt with all that was said, without the last token of that.
        rows: What is replayed of it; `scores` names all that are wanted.
    """

    ids: Sequence[int]
    rows: Rows
    replays: dict[Replayed, Replay] = field(default_factory=dict)
    """How those that have finished were run."""
    steps: Steps | None = None
    """What heads did at each step of the answer, where that is wanted, once it was replayed."""
    _asked: list[Replayed] = field(default_factory=list)
    _handed: dict[Replayed, Mapping[str, NDArray[float64]]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The scores that are wanted and that the sample has what they are about."""
        return [name for name in self.rows.scores if is_measured(head_score(name), self.rows)]

    def to_replay(self, other: Callable[[OtherQuery], Sequence[int]]) -> list[ToReplay]:
        """What has to be replayed, each once, however many scores read it.

        Args:
            other: Gives the prompt with another query.
        """
        self._asked = list(dict.fromkeys(one for name in self.names for one in head_score(name).replays))
        return [self._replay(replayed, other) for replayed in self._asked]

    def _replay(self, replayed: Replayed, other: Callable[[OtherQuery], Sequence[int]]) -> ToReplay:
        scores = tuple(name for name in self.names if replayed in head_score(name).replays)
        rows = replace(self.rows, scores=scores)
        if not isinstance(replayed, OtherQuery):
            return ToReplay(replayed, self.ids, rows)
        ids = other(replayed)
        blank = replace(
            rows,
            prompt_tokens=len(ids),
            answer=(),
            per_step=False,
            question_span=(0, 0),
            query_span=(self.rows.query_span[0], len(ids)),
        )
        return ToReplay(replayed, ids, blank)

    def take(self, done: ToReplay, finished: Finished) -> bool:
        """Take in what a replay handed over; whether it was the last.

        Raises:
            EngineError: The probe failed.
        """
        self._handed[done.replayed] = handed_over(finished, done.rows, done.rows.scores)
        self.replays[done.replayed] = replay_of(finished)
        if done.replayed == ANSWERED:
            self.steps = steps_of(finished, done.rows)
        return len(self._handed) == len(self._asked)

    def heads(self, layers: Sequence[Layer]) -> PackedHeads:
        """Every head's scores, once all replays have finished.

        Raises:
            EngineError: A layer's queries, keys or decay hold NaN.
        """
        scores = {
            name: head_score(name).combined([self._handed[one][name] for one in head_score(name).replays], self.rows)
            for name in self.names
        }
        return heads_of(scores, layers)
