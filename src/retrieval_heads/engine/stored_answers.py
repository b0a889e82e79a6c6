"""Answers of an earlier run in place of an engine's.

Imports neither torch nor vllm.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from retrieval_heads.engine.client import EngineProcess
from retrieval_heads.engine.earlier_answers import key_of, result_of
from retrieval_heads.engine.jobs import FreeQuestion
from retrieval_heads.engine.messages import Hello
from retrieval_heads.engine.results import Unanswered
from retrieval_heads.engine.server import Server
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.record import Record


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
