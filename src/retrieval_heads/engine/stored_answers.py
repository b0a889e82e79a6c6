"""Answers of an earlier run in place of new ones: reused in the engine process, or given out without any engine.

Imports neither torch nor vllm.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from retrieval_heads.engine.client import EngineProcess
from retrieval_heads.engine.jobs import FreeQuestion
from retrieval_heads.engine.messages import Hello
from retrieval_heads.engine.results import Answered, Result, Unanswered
from retrieval_heads.engine.server import Server
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.facts import PromptFacts
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.record import Record, read_records


def key_of(record: Record) -> str:
    """Names a record's cell to the engine."""
    return f"{record.suite}::{record.cell}"


def answer_in(record: Record) -> Answer:
    """The answer that a record holds."""
    return Answer(
        text=record.text,
        token_ids=record.token_ids,
        finish_reason=record.finish_reason,
        prompt_tokens=record.prompt_tokens or 0,
        cached_tokens=record.cached_tokens or 0,
        seconds=record.seconds or 0.0,
        thoughts=record.thoughts,
        thought_tokens=record.thought_tokens,
    )


def result_of(record: Record) -> Result:
    """What the engine said of a cell, as its record holds it."""
    if record.status in ("skipped", "error"):
        return Unanswered(record.status, record.reason)
    facts = PromptFacts(
        prompt_tokens=record.prompt_tokens,
        recipe=record.recipe,
        needle_span=record.needle_span,
        question_span=record.question_span,
        achieved_depth=record.achieved_depth,
        around=record.around,
        insertions=None if record.insertions is None else tuple(record.insertions),
    )
    return Answered(
        answer=answer_in(record),
        facts=facts,
        request=record.request,
        answered_by=record.answered_by,
        mask=record.mask,
        heads=record.heads,
        replay=record.replay,
    )


def complete_answers(path: Path) -> dict[str, Record]:
    """The records of an earlier run's results that hold an answer, by the name of their cell."""
    if not path.exists() or not path.read_bytes().strip():
        return {}
    return {key_of(record): record for record in read_records(path) if record.status in ("pass", "low")}


class StoredAnswers(EngineProcess):
    """In place of an engine: every cell's answer is its stored one. Answers from a thread of this process.

    Args:
        records: The earlier run's.
        facts: What that run's `run.json` says.
    """

    def __init__(self, records: Iterable[Record], facts: Facts) -> None:
        super().__init__()
        self._stored = {key_of(record): record for record in records}
        self._facts = facts
        self._server: Server | None = None

    @property
    def is_launched(self) -> bool:
        """Whether it answers."""
        return self._server is not None

    def launch(self, hello: Hello, log: Path) -> None:
        """Answer from now on; there is nothing to load."""
        self._server = Server(self.address.key)
        self._server.listen(self.address.path)
        self._server.started(dict(self._facts))
        threading.Thread(target=self._serve, args=[self._server], daemon=True).start()

    def obituary(self, *, patience: float = 0) -> str | None:
        """It does not end before the session does."""
        return None

    def _serve(self, server: Server) -> None:
        while True:
            key = server.waiting.get()
            if isinstance(server.jobs[key].ask, FreeQuestion):
                server.finish(key, Unanswered("error", "with --rh-rescore there is no engine that could be asked"))
            elif (record := self._stored.get(key)) is None:
                server.finish(key, Unanswered("error", "the run holds no answer of this cell"))
            else:
                server.finish(key, result_of(record))
