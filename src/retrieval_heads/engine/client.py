"""What pytest talks to: launching the engine process, and asking it.

Imports neither torch nor vllm. The process that launches the engine holds a pipe to it; the engine ends when that
pipe closes, so that no kill of the launcher, however hard, leaves it behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from retrieval_heads.engine.jobs import Counters, Done, FreeQuestion, Use
from retrieval_heads.engine.log import EngineLog, shown_lines
from retrieval_heads.engine.messages import Hello, Message, receive, send
from retrieval_heads.engine.private_folder import PrivateFolder
from retrieval_heads.engine.questions import Spans, aimed_at, free_question
from retrieval_heads.engine.results import Answered, Result, result_of_json
from retrieval_heads.engine.watchdog import Limits, Watchdog, descendants
from retrieval_heads.errors import EngineError, FileError
from retrieval_heads.files import write_whole
from retrieval_heads.plain import Json, Plain
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.mask import Mask
from retrieval_heads.tasks.task import Cell, Question

Said = TypeVar("Said")

_SERVER = "retrieval_heads.engine.process"
_REFUSED = 1.0  # seconds that a socket may refuse: before it first listens, and while an engine ends
_LOOK = 1.0  # seconds between two looks whether a silent engine was given up
_LAST = 10.0  # seconds that a killed process may take to go


class EngineDied(EngineError):
    """The engine process is gone, or can do no more."""


class EngineLost(EngineDied):
    """It is gone with the node that it ran on, and of what it was asked nothing is at fault."""


@dataclass(frozen=True)
class Address(Plain):
    """Where an engine listens; plain builtins, so that it crosses to workers.

    Args:
        path: Its socket.
        key: What it asks for.
        run: Tells the session's questions from those of others that it answers; empty where it answers no others.
    """

    path: str
    key: str
    run: str = ""


def said_now(address: Address, ask: Callable[[EngineClient], Said]) -> Said | None:
    """What an engine says, if it can be asked at once; `None` where it is still at its start, or at its end.

    Args:
        address: Where it listens.
        ask: The question.
    """
    client = EngineClient(address)  # one that found nobody there asks no more
    try:
        client.connect(patience=0)
        return ask(client)
    except EngineError:
        return None
    finally:
        client.close()


class EngineClient:
    """What one process asks the engine through, from any of its threads.

    A connection carries one question at a time. A call takes one that is idle, or makes a new one, and puts it back
    once its whole reply was read: no other thread, and no later call after an interrupt, can read a reply that is not
    its own. A process that was forked makes its own.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: deque[socket.socket] = deque()
        self._process = os.getpid()
        self._is_gone = False
        self._joined: Address | None = None
        """Where a warm engine listens that the session has joined in place of one of its own."""

    def connect(self, *, patience: float = 60.0) -> None:
        """Connect, waiting for the engine's socket to appear.

        Args:
            patience: Seconds to wait.

        Raises:
            EngineDied: Nothing listens there.
        """
        self._idle.append(self._taken(patience))

    def wait_ready(self) -> Facts:
        """Wait until the model is loaded; what the engine says of itself (model, dtype, device, versions).

        Raises:
            EngineError: It could not be loaded.
        """
        info: Facts = self.call({"do": "ready"})["info"]
        return info

    def begin(self, earlier: str | None = None) -> None:
        """Begin a run, which lasts until this client closes or its process ends.

        Args:
            earlier: Results of an earlier run whose answers are used again.

        Raises:
            EngineDied: The engine is gone, or takes no more runs.
            EngineError: The results cannot be read.
        """
        who = f"process {os.getpid()} in {Path.cwd()}"
        self.call({"do": "begin", "earlier": earlier, "who": who})

    def use(self) -> Use:
        """Who uses a warm engine."""
        return Use.of_json(self.call({"do": "use"}))

    def retire(self, *, always: bool = False) -> bool:
        """Have a warm engine take no more runs; whether it does, which it does not while it is used.

        Args:
            always: Even then.
        """
        return bool(self.call({"do": "retire", "always": always})["is_retired"])

    def submit(self, question: Question, cells: Mapping[str, Cell], *, are_more_to_come: bool = False) -> None:
        """Hand cells to the engine; cells that it knows already are left as they are.

        Args:
            question: What they have in common.
            cells: By their keys.
            are_more_to_come: Whether what these come to tells which further cells of the suite are asked: until that
                is denied once, an engine that takes turns with others waits for them.

        Raises:
            EngineError: A cell of that key is known with other contents.
        """
        each = [{**cell.to_json(), "key": key} for key, cell in cells.items()]
        self.call({"do": "submit", "question": question.to_json(), "cells": each, "more": are_more_to_come})

    def result(self, key: str) -> Result:
        """Wait for the result of a submitted cell."""
        return result_of_json(self.call({"do": "result", "key": key})["result"])

    def finished(self, after: int) -> tuple[list[tuple[str, Result]], Done]:
        """Wait for results, whichever come first.

        Args:
            after: How many are known already.

        Returns:
            Those beyond these, each with its key, as they came; and what the engine has done.
        """
        reply = self.call({"do": "finished", "after": after})
        return [(key, result_of_json(result)) for key, result in reply["results"]], Done.of_json(reply["done"])

    def ask(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 64,
        chat: bool = True,
        mask: Mask | Mapping[str, object] | None = None,
        **sampling: Json,
    ) -> Answer:
        """Ask the shared engine anything.

        Args:
            prompt: A user's message, or a list of messages with `role` and `content`.
            max_tokens: The answer's budget.
            chat: Put the prompt into the model's chat template; `False` sends the text as it is.
            mask: Heads that have no say in it, such as `{"mode": "zero", "heads": [[18, 7]]}`; in a session with a
                suite of kind detect or ablate, whose engine can mask.
            **sampling: More of vLLM's `SamplingParams`; greedy where nothing is said.

        Raises:
            EngineError: The engine refused the prompt or a sampling parameter, or they cannot be sent to it.
        """
        return self.answer(free_question(prompt, {"max_tokens": max_tokens, **sampling}, mask, chat=chat)).answer

    def head_scores(
        self,
        prompt: str,
        *,
        spans: Spans,
        answer: str | None = None,
        question: str | tuple[int, int] | None = None,
        scores: Sequence[str] = (),
        max_tokens: int = 64,
        chat: bool = True,
    ) -> Answered:
        """Score every head on a text of one's own.

        Args:
            prompt: A user's message; with `chat` off the text as it is.
            spans: What an answer must find, as texts that stand in the prompt once, or their characters `(start, end)`;
                of several all are asked for.
            answer: What heads are scored on as it is said; left out, what the model says, greedily.
            question: The part of the prompt that asks, for scores that read its rows.
            scores: Names of head scores; left out, the usual ones.
            max_tokens: The answer's budget, where none is given.
            chat: Put the prompt into the model's chat template.

        Raises:
            EngineError: A span does not stand in the prompt, or the engine scores no heads.
        """
        aim = aimed_at(prompt, spans, answer, question, scores)
        return self.answer(free_question(prompt, {"max_tokens": max_tokens}, None, chat=chat, aim=aim))

    def answer(self, question: FreeQuestion) -> Answered:
        """Wait for the answer to a question that no suite asks, or for what heads are on a text.

        Raises:
            EngineError: The engine refused it.
        """
        return Answered.of_json(self.call({"do": "ask", "question": question.to_json()})["answered"])

    def counters(self) -> Counters:
        """How much the engine has done."""
        return Counters.of_json(self.call({"do": "counters"}))

    def close(self) -> None:
        """Hang up. A call that is under way in another thread ends as it would have."""
        while self._idle:
            self._idle.pop().close()

    def call(self, message: Message) -> Message:
        """Send a message; the reply.

        Raises:
            EngineDied: The engine is gone, or can do no more.
            EngineError: It refused.
        """
        reply = self.exchanged(message)
        if "error" in reply:
            raise (EngineDied if reply.get("is_fatal") else EngineError)(reply["error"])
        return reply

    def exchanged(self, message: Message) -> Message:
        """Send a message; the reply, which may be an error's.

        Raises:
            EngineDied: There is none.
        """
        connection = self._taken()
        try:
            send(connection, message)
            reply = self._reply(connection)
        except OSError:
            reply = None
        except BaseException:
            connection.close()  # between question and reply it is out of step
            raise
        if reply is None:
            connection.close()
            self._is_gone = True  # nobody will listen there again: the next question need not wait for it
            raise self._died()
        self._idle.append(connection)
        return reply

    def _reply(self, connection: socket.socket) -> Message | None:
        """Wait for the reply; `None` when the engine is gone, or was given up by who launched it.

        A process that cannot be killed, as one whose GPU hangs may be, does not hang up either.
        """
        connection.settimeout(_LOOK)
        while not self._graves():
            with contextlib.suppress(TimeoutError):
                connection.recv(1, socket.MSG_PEEK)
                if not self._graves():  # else it is what a stopped process went on with
                    connection.settimeout(None)
                    return receive(connection)
        return None

    def _died(self) -> EngineDied:
        for grave in self._graves():
            with contextlib.suppress(OSError):
                return EngineDied(f"the engine {grave.read_text(encoding='utf-8')}")
        return EngineDied("the engine process is gone")

    def _graves(self) -> list[Path]:
        """The files that say why the engine was ended, where it was."""
        places = [self._address, *([self._joined] if self._joined else [])]
        return [grave for grave in map(_grave, places) if grave.exists()]

    def _taken(self, patience: float = 60.0) -> socket.socket:
        """A connection that nobody else has."""
        if self._process != os.getpid():
            # Forked: both processes would read from the parent's connections. Closing them here leaves its own open.
            self._process = os.getpid()
            self.close()
        try:
            return self._idle.pop()
        except IndexError:
            return self._connected(patience)

    def _connected(self, patience: float) -> socket.socket:
        give_up = time.monotonic() + patience
        while True:
            self._joined = self._joined or joined_from(self._address)
            address = self._joined or self._address
            if self._is_gone or self._graves():
                raise self._died()
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(address.path)
                send(connection, {"key": address.key, "run": address.run})
            except OSError as error:
                connection.close()
                if isinstance(error, ConnectionRefusedError):  # its socket is there: it was, and is no more
                    give_up = min(give_up, time.monotonic() + _REFUSED)
                if time.monotonic() > give_up or not Path(address.path).parent.exists():
                    self._is_gone = True  # the next question need not wait for it
                    raise EngineDied(f"nothing listens for the engine ({error.strerror})") from None
                time.sleep(0.05)
            else:
                return connection


def _grave(address: Address) -> Path:
    """The file that says why an engine was ended by who launched it, for the clients of every process."""
    return Path(address.path).with_name("ended")


_JOINED = "joined"
"""Beside a session's socket to be: where the warm engine listens that was joined."""


def join(address: Address, warm: Address) -> None:
    """Have whoever asks at an address, from any process of the session, ask a warm engine."""
    write_whole(Path(address.path).with_name(_JOINED), json.dumps(warm.to_json()).encode(), is_private=True)


def leave(address: Address) -> None:
    """Have them ask it no more."""
    Path(address.path).with_name(_JOINED).unlink(missing_ok=True)


def joined_from(address: Address) -> Address | None:
    """Where the warm engine listens that was joined; `None` where none was."""
    try:
        return Address.of_json(json.loads(Path(address.path).with_name(_JOINED).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


class EngineProcess:
    """Launches one engine process, watches it and ends it.

    The socket lies in a private folder of its own with a short name: UNIX socket paths hold 108 bytes at most.

    Args:
        within: The folder of an engine process, where that launches this one as a replica. It listens in there and
            stays in that one's process group: whatever ends the one ends both, and nothing else need.
        prefix: What the folder's name begins with, where it is no session's.
    """

    name = "the engine"
    """What errors call it."""

    def __init__(self, within: Path | None = None, prefix: str | None = None) -> None:
        self._is_replica = within is not None
        self._folder = PrivateFolder(within, prefix) if prefix else PrivateFolder(within)
        self.address = Address(str(self._folder.path / "engine.sock"), secrets.token_hex(16))
        self._process: subprocess.Popen[bytes] | None = None
        self._log: EngineLog | None = None
        self._ending = threading.Lock()
        self._is_ended = False
        self._run: EngineClient | None = None
        """Holds the session's run, once it has begun."""
        self._gave_up: str | None = None
        """Why it was ended while somebody still waited for it."""

    @property
    def is_launched(self) -> bool:
        """Whether the process was started, dead or alive."""
        return self._process is not None

    def launch(self, hello: Hello, log: Path) -> None:
        """Start the process; returns at once, before the model is loaded.

        Args:
            hello: What to load. A run's name, socket, key, pulse and log are given here.
            log: Where everything goes that the engine prints.

        Raises:
            EngineError: The system makes no process.
        """
        pulse = self._folder.path / "pulse"
        hello = replace(
            hello,
            run=hello.run or secrets.token_hex(4),
            socket=self.address.path,
            key=self.address.key,
            pulse=str(pulse),
            log=str(log),
        )
        limits = Limits(hello.silence, hello.start_limit)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # A session of its own: Ctrl-C reaches pytest, which then ends the engine in order.
                start_new_session=not self._is_replica,
            )
        except OSError as error:  # no more processes, no memory
            raise EngineError(f"{self.name} did not start: no process could be made ({error.strerror})") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._log = EngineLog(self._process.stdout, log)
        # A process that died at once is reported when somebody connects.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(hello.to_json()).encode() + b"\n")
            self._process.stdin.flush()
        self._watchdog = Watchdog(self._process.pid, pulse, limits, log)
        self._watchdog.watch(self._give_up)

    def wait_ready(self) -> Facts:
        """Wait until the model is loaded.

        Raises:
            EngineError: It was not, with the last lines of the log.
        """
        client = EngineClient(self.address)
        try:
            while not Path(self.address.path).exists() and self.obituary() is None:
                time.sleep(0.02)
            client.connect(patience=1.0)
            return client.wait_ready()
        except EngineDied:
            raise EngineError(f"{self.name} did not start: {self.obituary(patience=5)}{self.log_tail()}") from None
        except EngineError as error:
            raise EngineError(f"{self.name} did not start: {error}{self.log_tail()}") from None
        finally:
            client.close()

    @property
    def has_run(self) -> bool:
        """Whether the session's run has begun there."""
        return self._run is not None

    def begin(self, earlier: str | None = None) -> None:
        """Begin the session's run on an engine that is ready; see `EngineClient.begin`."""
        self._run = EngineClient(self.address)
        self._run.begin(earlier)

    def obituary(self, *, patience: float = 0) -> str | None:
        """How the process ended; `None` while it runs.

        Args:
            patience: Seconds to wait for its end: a process hangs up before it is gone.
        """
        if self._process is None:
            return "it was never launched"
        if self._gave_up is not None:
            with self._ending:  # until its stacks are in the log
                return self._gave_up  # dead or not: a process that waits for a GPU may outlive its kill
        try:
            code = self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            return None
        return f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"

    @property
    def log_failure(self) -> FileError | None:
        """Why the log lacks something that was printed; `None` where it does not."""
        return self._log.failure if self._log is not None else None

    def log_tail(self) -> str:
        """The log's last lines, indented, below a line that names the log."""
        if self._log is None:
            return ""
        return shown_lines(self._log.path, self._log.last_lines(patience=0.5))

    @property
    def own_log(self) -> Path:
        """Where the engine of a session without a run's folder may print; it goes with the session."""
        return self._folder.path / "engine.log"

    def dismiss(self, reason: str) -> None:
        """End a process that did not start, and tell every client, those yet to connect as well, why there is none.

        Args:
            reason: One line that goes on after "the engine".
        """
        with contextlib.suppress(OSError):  # a full disk: clients hear that nothing listens
            write_whole(_grave(self.address), reason.encode())
        self._kill()

    def end(self) -> None:
        """End the process and everything it started. Nothing in it is worth waiting for."""
        if self._run is not None:
            self._run.close()
        self._kill()
        self._folder.remove()

    def _kill(self) -> None:
        with self._ending:
            if self._process is not None and not self._is_ended:
                self._is_ended = True  # its process id may be another's from here on
                assert self._process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_LAST)
                if self._log is not None:
                    self._log.close(patience=2)

    def _give_up(self, reason: str) -> None:
        """End a process in which nothing moves, and tell everybody who waits for it why."""
        with self._ending:
            if self._is_ended:
                return
            assert self._process is not None
            self._gave_up = reason
            # First, for a process that was stopped goes on to write its stacks. A full disk keeps nobody waiting.
            with contextlib.suppress(OSError):
                write_whole(_grave(self.address), reason.encode())
            with contextlib.suppress(OSError):
                self._watchdog.write_stacks()
            # A replica shares its launcher's group.
            started = descendants(self._process.pid) if self._is_replica else []
            for process in [self._process.pid, *started]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if not self._is_replica:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
