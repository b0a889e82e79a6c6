"""Replays that need no forward, since the rows that they read were kept while their answers were written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.backends.reasons import worker_reason
from retrieval_heads.heads.looks import Rows


@dataclass(frozen=True)
class Replay:
    """What `Backend.replay` is asked for."""

    ids: Sequence[int]
    rows: Rows
    first_row: int
    of: str | None


class KeptReplays:
    """Has them scored before the next step: until then the keys of a request that has finished stand.

    Args:
        score: Given of each replay, by its name, the request whose answer it is and what is read of that, gives figures
            and errors as `TracedModel.score_kept`: without those whose rows were not kept.
        queue: Has such a replay computed.
        forget: Told a request that no queued replay will repeat any more.
    """

    def __init__(
        self,
        score: Callable[[Mapping[str, tuple[str, Rows]]], Mapping[str, tuple[Mapping[str, Any], Any]]],
        queue: Callable[[str, Replay], None],
        forget: Callable[[str], None],
    ) -> None:
        self._score, self._queue, self._forget = score, queue, forget
        self._keeping: set[str] = set()
        """Requests whose rows are kept, unfinished ones and those that the last step finished."""
        self._ended: set[str] = set()
        """Those of them that it finished."""
        self._waiting: dict[str, tuple[str, Replay]] = {}
        """By a replay's name, the request whose answer it is, and what is asked."""

    def keep(self, request: str) -> None:
        """A request is added whose rows are kept."""
        self._keeping.add(request)
        self._ended.discard(request)  # one of that name, before

    def end(self, finished: Iterable[str]) -> None:
        """A step has finished requests."""
        self._ended = self._keeping.intersection(finished)

    def take(self, name: str, asked: Replay) -> bool:
        """Take a replay; whether that is possible."""
        if asked.of is None or asked.of not in self._ended:
            return False
        self._waiting[name] = asked.of, asked
        return True

    def drop(self, requests: Iterable[str]) -> None:
        """Requests and replays that nobody waits for any more."""
        for name in requests:
            self._keeping.discard(name)
            self._ended.discard(name)
            if name in self._waiting:
                self._forget(self._waiting.pop(name)[0])

    @property
    def are_waiting(self) -> bool:
        """Whether a replay is to be scored."""
        return bool(self._waiting)

    def finish(self) -> list[Finished]:
        """Score what waits, before a step; that whose rows were not kept is queued."""
        waiting, self._waiting = self._waiting, {}
        self._keeping -= self._ended
        self._ended = set()
        if not waiting:
            return []
        began = time.perf_counter()
        found = self._score({name: (request, asked.rows) for name, (request, asked) in waiting.items()})
        seconds = time.perf_counter() - began
        work = {name: len(each.ids) * (each.rows.end - each.rows.first) for name, (_, each) in waiting.items()}
        total = sum(work[name] for name in found)
        done = []
        for name, (request, asked) in waiting.items():
            if name in found:
                self._forget(request)
                saves, error = found[name]
                done.append(_finished(name, asked, saves, error, seconds * work[name] / total))
            elif (refused := self._refusal(name, asked)) is not None:
                self._forget(request)
                done.append(Finished(name, "", [], "", len(asked.ids), 0, 0.0, error=refused))
        return done

    def _refusal(self, name: str, asked: Replay) -> str | None:
        try:
            self._queue(name, asked)
        except Exception as error:  # of this replay alone: the others go on
            return str(error) or type(error).__name__
        return None


def _finished(name: str, asked: Replay, saves: Mapping[str, Any], error: Any, seconds: float) -> Finished:
    return Finished(
        id=name,
        text="",
        token_ids=[],
        finish_reason="stop",
        prompt_tokens=len(asked.ids),
        cached_tokens=len(asked.ids),
        seconds=round(seconds, 4),
        own_seconds=round(seconds, 4),
        head_scores=saves.get("head_scores"),
        error=worker_reason(error),
    )
