"""The clients' side of the engine process: a thread for each client takes its jobs in and waits for their results."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from retrieval_heads.engine.earlier_answers import complete_answers
from retrieval_heads.engine.jobs import CellQuestion, Counters, FreeQuestion, Job, Run, SettingState, Use
from retrieval_heads.engine.messages import OPENING, Message, receive, send
from retrieval_heads.engine.phase import phase_now
from retrieval_heads.engine.results import Result, Unanswered
from retrieval_heads.engine.turns import Turns
from retrieval_heads.plain import Json
from retrieval_heads.redaction import without_secrets
from retrieval_heads.tasks.task import Cell, Question

_OPENING_SECONDS = 120.0
"""How long a client may take to show the key: on a busy machine one that has connected may have to wait."""


@dataclass
class Server:
    """Clients' side of the engine process: takes jobs in, gives results out.

    A job belongs to a run, which each client names as it opens; none reads or meets another's. The connection that
    begins a run owns it: when it closes, the run is over, and what it asked is dropped. One that nobody began, as those
    of an engine of a session's own need not be, ends with the engine.

    Messages, by their `do`:

    - `ready`: replies when the model is loaded, with `info`, or with `error`.
    - `begin`: begins the run; `earlier` names results whose answers are used again.
    - `submit`: `question` and `cells`, each with a `key`; known keys are left as they are. `more` says whether further
      cells of the suite are to come; once it was denied they are not.
      Cells that find the heads of an ablation come before those that mask them.
    - `result`: waits for the `result` of a `key`.
    - `finished`: waits for results of more cells than `after`; replies with those beyond.
    - `ask`: a free `question`; waits for the `answer`.
    - `counters`: how much was done.
    - `use`: who uses a warm engine.
    - `retire`: takes no more runs; where some last, only if `always` says so. Replies whether it `is_retired`.
    """

    key: str
    awaits_begin: bool = False
    """Whether a run's jobs wait until it has begun, and its earlier answers are known: a worker of xdist may submit
    cells before the session's first process begins.
    """
    runs: dict[str, Run] = field(default_factory=dict)
    """By their names."""
    jobs: dict[str, Job] = field(default_factory=dict)
    """Of all runs, by the names that the engine knows them by."""
    waiting: Turns = field(default_factory=Turns)
    over: list[Run] = field(default_factory=list)
    """Runs that are gone, and whose jobs have not been dropped yet."""
    begun: int = 0
    """How many runs have begun: each may ask of files that have changed since."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    is_retired: bool = False
    """Whether it takes no more runs."""
    asleep: str = ""
    """What a sleeping engine has given back; see `Use`."""
    idle_since: float = field(default_factory=time.monotonic)
    info: Message | None = None
    failure: str | None = None
    settings: dict[str, SettingState] = field(default_factory=dict)
    """Of engines that take turns, what is known of each."""
    unfinished: dict[str, bool] = field(default_factory=dict)
    """By suite, whether more of its cells are to come."""
    _ended: dict[str, Run] = field(default_factory=dict)
    """Runs that are over, without their jobs: a client of one that is left may still ask."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

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
            self.info, self.idle_since = info, time.monotonic()
            self.changed.notify_all()

    def failed(self, reason: str) -> None:
        """The engine can do no more: everything that waits, and everything yet to come, is told why."""
        with self.changed:
            self.failure = without_secrets(reason)
            self.changed.notify_all()

    def finish(self, name: str, result: Result) -> None:
        """A job's result; whoever waits for it gets it. Of a job whose run is gone it is dropped."""
        if isinstance(result, Unanswered):
            result = replace(result, reason=without_secrets(result.reason))
        with self.changed:
            job = self.jobs.get(name)
            if job is None:
                return
            job.result = result
            if isinstance(job.ask, CellQuestion):
                job.run.answered.append(job.key)
            self.changed.notify_all()

    def dropped(self) -> list[Run]:
        """The runs that are gone since this was last asked; their jobs are here no more.

        For the thread that works on jobs: none vanishes while it has one in its hands.
        """
        with self.changed:
            gone, self.over = self.over, []
            for run in gone:
                for job in run.jobs.values():
                    self.jobs.pop(job.name, None)
        return gone

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        owned: list[Run] = []
        with connection:
            try:
                connection.settimeout(_OPENING_SECONDS)
                opening = receive(connection, OPENING)
                if opening is None or not secrets.compare_digest(str(opening.get("key")).encode(), self.key.encode()):
                    return
                connection.settimeout(None)
                with self.changed:
                    name = str(opening.get("run", ""))
                    run = self._ended.get(name) or self.runs.setdefault(name, Run(name))
                while (message := receive(connection)) is not None:
                    if message.get("do") == "begin":
                        owned = [run]
                    send(connection, self._reply(run, message))
            except OSError:
                pass  # a client that left; what it asked for stays readable while its run lasts
            finally:
                for run in owned:
                    self._end(run)

    def _reply(self, run: Run, message: Message) -> Message:
        actions: Mapping[str, Callable[[Run, Message], Message]] = {
            "ready": self._ready,
            "begin": self._begin,
            "submit": self._submit,
            "result": self._result,
            "finished": self._finished,
            "ask": self._ask,
            "counters": self._counters,
            "use": self._use,
            "retire": self._retire,
        }
        action = actions.get(str(message.get("do")))
        if action is None:
            return {"error": f"the engine cannot do {message.get('do')!r}"}
        if run.is_over:
            return self._fatal(run)
        try:
            return action(run, message)
        except (
            Exception
        ) as error:  # of this question alone: its client would take a closed connection for a dead engine
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"}

    def _ready(self, _run: Run, _: Message) -> Message:
        with self.changed:
            self.changed.wait_for(lambda: self.info is not None or self.failure is not None)
            return {"error": self.failure} if self.failure else {"info": self.info}

    def _begin(self, run: Run, message: Message) -> Message:
        run.earlier_file = message.get("earlier")
        # Read before whoever begins goes on, and may write there.
        run.earlier = complete_answers(Path(run.earlier_file)) if run.earlier_file else {}
        with self.changed:
            if self.is_retired:
                return {"error": "it takes no more runs", "is_fatal": True}
            is_first, run.who = not run.who, str(message.get("who") or f"run {run.name}")
            self.begun += 1
            if self.awaits_begin and is_first:
                for job in run.jobs.values():
                    self.waiting.put(job.name, run.name)
        return {}

    def _end(self, run: Run) -> None:
        with self.changed:
            run.is_over = True
            self.runs.pop(run.name, None)
            self._ended[run.name] = Run(run.name, is_over=True)
            self.over.append(run)
            self.waiting.drop(run.name)
            self.idle_since = time.monotonic()
            self.changed.notify_all()

    def _submit(self, run: Run, message: Message) -> Message:
        question = Question.of_json(message["question"])
        if question.ablate is not None and question.ablate.awaits:
            awaits = tuple(map(run.name_of, question.ablate.awaits))
            question = replace(question, ablate=replace(question.ablate, awaits=awaits))
        with self.changed:
            if run.is_over:
                return self._fatal(run)
            # Each process of a session says so by itself: the first that denies it knows.
            self.unfinished[question.suite] = bool(message.get("more")) and self.unfinished.get(question.suite, True)
            for cell in message["cells"]:
                payload = json.dumps([message["question"], cell], sort_keys=True)
                known = run.jobs.get(cell["key"])
                if known is None:
                    self._take_in(run, cell["key"], payload, CellQuestion(question, Cell.of_json(cell)))
                elif known.payload != payload:
                    return {"error": f"cell {cell['key']} was submitted before with other contents"}
        return {}

    def _result(self, run: Run, message: Message) -> Message:
        job = run.jobs.get(message["key"])
        if job is None:
            return {"error": f"cell {message['key']} was never submitted"}
        result = self._wait(job)
        return self._fatal(run) if result is None else {"result": result.to_json()}

    def _finished(self, run: Run, message: Message) -> Message:
        after = message["after"]
        with self.changed:
            self.changed.wait_for(lambda: len(run.answered) > after or self._is_at_end(run))
            found = [(key, run.jobs[key].result) for key in run.answered[after:]]
        results: list[Json] = [[key, result.to_json()] for key, result in found if result is not None]
        return {"results": results, "done": run.done.to_json()} if results else self._fatal(run)

    def _ask(self, run: Run, message: Message) -> Message:
        with self.changed:
            if run.is_over:
                return self._fatal(run)
            job = self._take_in(run, f"ask {next(self._numbers)}", "", FreeQuestion.of_json(message["question"]))
        result = self._wait(job)
        if result is None:
            return self._fatal(run)
        return {"error": result.reason} if isinstance(result, Unanswered) else {"answered": result.to_json()}

    def _counters(self, run: Run, _: Message) -> Message:
        with self.changed:
            finished = sum(job.result is not None for job in run.jobs.values())
            phase = "" if self.info is not None else phase_now()
            return Counters(len(run.jobs), finished, os.getpid(), run.done, dict(self.settings), phase).to_json()

    @property
    def idle_seconds(self) -> float:
        """Since when no run lasts that was begun; 0 where one does."""
        return 0.0 if self._who() else time.monotonic() - self.idle_since

    def _who(self) -> tuple[str, ...]:
        return tuple(run.who for run in self.runs.copy().values() if run.who)

    def _use(self, _run: Run, _: Message) -> Message:
        with self.changed:
            return Use(self._who(), self.idle_seconds, self.asleep, self.failure or "").to_json()

    def _retire(self, _run: Run, message: Message) -> Message:
        with self.changed:
            self.is_retired |= bool(message.get("always")) or not self._who()
            return {"is_retired": self.is_retired}

    def _is_at_end(self, run: Run) -> bool:
        return self.failure is not None or run.is_over

    def _fatal(self, run: Run) -> Message:
        return {"error": self.failure or f"the run {run.name} is over", "is_fatal": True}

    def _take_in(self, run: Run, key: str, payload: str, ask: FreeQuestion | CellQuestion) -> Job:
        job = run.jobs[key] = Job(run, key, payload, ask)
        self.jobs[job.name] = job
        if run.who or not self.awaits_begin:
            self.waiting.put(job.name, run.name)
        return job

    def _wait(self, job: Job) -> Result | None:
        with self.changed:
            self.changed.wait_for(lambda: job.result is not None or self._is_at_end(job.run))
            return job.result
