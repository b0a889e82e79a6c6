"""The clients' side of the engine process: a thread for each client takes its jobs in and waits for their results."""

from __future__ import annotations

import json
import os
import queue
import secrets
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from retrieval_heads.engine.jobs import CellQuestion, Counters, Done, FreeQuestion, Job
from retrieval_heads.engine.messages import OPENING, Message, receive, send
from retrieval_heads.engine.results import Result, Unanswered
from retrieval_heads.plain import Json
from retrieval_heads.redaction import without_secrets
from retrieval_heads.tasks.task import Cell, Question

_OPENING_SECONDS = 120.0
"""How long a client may take to show the key: on a busy machine one that has connected may have to wait."""


@dataclass
class Server:
    """Clients' side of the engine process: takes jobs in, gives results out.

    Messages, by their `do`:

    - `ready`: replies when the model is loaded, with `info`, or with `error`.
    - `submit`: `question` and `cells`, each with a `key`; known keys are left as they are.
      Cells that find the heads of an ablation come before those that mask them.
    - `result`: waits for the `result` of a `key`.
    - `finished`: waits for results of more cells than `after`; replies with those beyond.
    - `ask`: a free `question`; waits for the `answer`.
    - `counters`: how much was done.
    """

    key: str
    jobs: dict[str, Job] = field(default_factory=dict)
    waiting: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    answered: list[str] = field(default_factory=list)
    """Keys of the cells that have a result, as they came."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    info: Message | None = None
    failure: str | None = None
    done: Done = field(default_factory=Done)

    def listen(self, path: str) -> None:
        """Accept clients, each in a thread of its own."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)  # in a folder that nobody else can enter
        Path(path).chmod(0o600)
        listener.listen(128)
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()

    def started(self, info: Message) -> None:
        """The model is loaded."""
        with self.changed:
            self.info = info
            self.changed.notify_all()

    def failed(self, reason: str) -> None:
        """The engine can do no more: everything that waits, and everything yet to come, is told why."""
        with self.changed:
            self.failure = without_secrets(reason)
            self.changed.notify_all()

    def finish(self, key: str, result: Result) -> None:
        """A job's result; whoever waits for it gets it."""
        if isinstance(result, Unanswered):
            result = replace(result, reason=without_secrets(result.reason))
        with self.changed:
            self.jobs[key].result = result
            if isinstance(self.jobs[key].ask, CellQuestion):
                self.answered.append(key)
            self.changed.notify_all()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(_OPENING_SECONDS)
                opening = receive(connection, OPENING)
                if opening is None or not secrets.compare_digest(str(opening.get("key")).encode(), self.key.encode()):
                    return
                connection.settimeout(None)
                while (message := receive(connection)) is not None:
                    send(connection, self._reply(message))
            except OSError:
                return  # a client that left; what it asked for stays readable

    def _reply(self, message: Message) -> Message:
        actions: Mapping[str, Callable[[Message], Message]] = {
            "ready": self._ready,
            "submit": self._submit,
            "result": self._result,
            "finished": self._finished,
            "ask": self._ask,
            "counters": self._counters,
        }
        action = actions.get(str(message.get("do")))
        if action is None:
            return {"error": f"the engine cannot do {message.get('do')!r}"}
        try:
            return action(message)
        except (
            Exception
        ) as error:  # of this question alone: its client would take a closed connection for a dead engine
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"}

    def _ready(self, _: Message) -> Message:
        with self.changed:
            self.changed.wait_for(lambda: self.info is not None or self.failure is not None)
            return {"error": self.failure} if self.failure else {"info": self.info}

    def _submit(self, message: Message) -> Message:
        question = Question.of_json(message["question"])
        with self.changed:
            for cell in message["cells"]:
                payload = json.dumps([message["question"], cell], sort_keys=True)
                known = self.jobs.get(cell["key"])
                if known is None:
                    self._take_in(cell["key"], payload, CellQuestion(question, Cell.of_json(cell)))
                elif known.payload != payload:
                    return {"error": f"cell {cell['key']} was submitted before with other contents"}
        return {}

    def _result(self, message: Message) -> Message:
        if message["key"] not in self.jobs:
            return {"error": f"cell {message['key']} was never submitted"}
        result = self._wait(message["key"])
        return self._fatal() if result is None else {"result": result.to_json()}

    def _finished(self, message: Message) -> Message:
        after = message["after"]
        with self.changed:
            self.changed.wait_for(lambda: len(self.answered) > after or self.failure is not None)
            found = [(key, self.jobs[key].result) for key in self.answered[after:]]
        results: list[Json] = [[key, result.to_json()] for key, result in found if result is not None]
        return {"results": results, "done": self.done.to_json()} if results else self._fatal()

    def _ask(self, message: Message) -> Message:
        with self.changed:
            key = f"ask {len(self.jobs)}"
            self._take_in(key, "", FreeQuestion.of_json(message["question"]))
        result = self._wait(key)
        if result is None:
            return self._fatal()
        return {"error": result.reason} if isinstance(result, Unanswered) else {"answer": result.answer.to_json()}

    def _counters(self, _: Message) -> Message:
        with self.changed:
            finished = sum(job.result is not None for job in self.jobs.values())
            return Counters(len(self.jobs), finished, os.getpid(), self.done).to_json()

    def _fatal(self) -> Message:
        return {"error": self.failure, "is_fatal": True}

    def _take_in(self, key: str, payload: str, ask: FreeQuestion | CellQuestion) -> None:
        self.jobs[key] = Job(payload, ask)
        self.waiting.put(key)

    def _wait(self, key: str) -> Result | None:
        job = self.jobs[key]
        with self.changed:
            self.changed.wait_for(lambda: job.result is not None or self.failure is not None)
            return job.result
