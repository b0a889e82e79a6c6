"""Python processes as copies of one that has imported everything: an import costs once what every start would pay.

A server (`fork_server.py`, started by `Server`) imports what sessions, workers and engines need, and forks for each
that somebody asks for. What is asked for is told as to `subprocess.Popen`, which `Popen` here stands in for:
where the variable `ADDRESS` names a server, and arguments and options are ones that a copy can honour, it returns a
`Forked`; else it starts a process as ever. So without the variable everything is a real process, and tests of what a
kill does to a process group, of replicas (which share one) and of starting itself take it away or are refused a copy.

A copy has what a new process would have: the files, folder, environment, arguments, import path, limits, signals and
process group of whoever asked, modules imported and nothing else. It ends as an interpreter does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

ADDRESS = "RH_TEST_FORKS"
"""The environment variable that names a server's socket."""
SESSIONS = (
    "execnet.gateway_bootstrap",
    "fault_process",
    "filelock",
    "matplotlib.backends.backend_svg",
    "numpy.random",
    "openai",
    "pytest_retrieval_heads.plugin",
    "pytest_retrieval_heads.run",
    "retrieval_heads.cli",
    "retrieval_heads.engine.backends.endpoint_calls",
    "retrieval_heads.engine.loop",
    "retrieval_heads.engine.server",
    "retrieval_heads.engine.stored_answers",
    "retrieval_heads.plots",
    "retrieval_heads.prompts.requests",
    "retrieval_heads.prompts.tokenizer",
    "retrieval_heads.report",
    "retrieval_heads.suites.soundness",
    "retrieval_heads.tasks.builder",
    "retrieval_heads.tasks.needle",
    "scipy.stats",
    "seaborn",
    "simplemma",
    "stand_in_engine",
    "tqdm.auto",
    "tyro.extras",
    "xdist.dsession",
    "xdist.remote",
)
"""What sessions, workers, stand-in engines and malformed inputs import."""
ENGINES = (
    "nnsight.modeling.vllm",
    "nnsight.modeling.vllm.engines.engine",
    "retrieval_heads.commands.models",
    "retrieval_heads.engine.backends.scheduler",
    "retrieval_heads.engine.backends.vllm",
    "retrieval_heads.tracing.traced",
    "safetensors.torch",
    "torch",
    "transformers",
    "vllm",
    "vllm.v1.engine.llm_engine",
)
"""What real engines import beside that, and what tests run that step them by hand."""
THREADLESS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Keeps libraries from starting threads as they are imported, which a copy would not have."""
LENGTH = struct.Struct("!I")
"""Of an order, in front of it."""
LOAD_PATIENCE = 300.0
"""Seconds in which a server imports everything; it takes 2 to 8 of a processor."""
FORK_PATIENCE = 120.0
"""Seconds in which it answers; it takes some hundredths of one."""
IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
_FOLDERS = (".", "plugin", "faults")
"""Where modules of the tests lie that are imported."""
_LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]


@dataclass(frozen=True)
class Order:
    """A process to make.

    Args:
        kind: `-m` for a module, `-c` for code; empty for a script.
        program: Its name, the code itself, or its path.
        arguments: Behind it.
        folder: Where it runs.
        environment: All of it.
        has_session: Whether it leads a session, and so a process group, of its own; else it joins `group`.
        session: Of whoever asks.
        group: Of whoever asks.
        limits: Its `RLIMIT_...`, soft and hard, by number.
        ignored: Signals that whoever asks ignores; all others do what they do by default.
        cores: Those that whoever asks may use.
    """

    kind: str
    program: str
    arguments: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    has_session: bool
    session: int = field(default_factory=lambda: os.getsid(0))
    group: int = field(default_factory=os.getpgrp)
    limits: Sequence[tuple[int, tuple[int, int]]] = field(
        default_factory=lambda: [(number, resource.getrlimit(number)) for number in _LIMITS]
    )
    ignored: Sequence[int] = field(
        default_factory=lambda: [
            number
            for number in signal.valid_signals() - IGNORED_BY_PYTHON
            if signal.getsignal(number) is signal.SIG_IGN
        ]
    )
    cores: Sequence[int] = field(default_factory=lambda: sorted(os.sched_getaffinity(0)))

    @classmethod
    def of(cls, command: Any, options: Mapping[str, Any]) -> Order | None:
        """What is meant by the arguments of a `Popen`; `None` where only a real process will do."""
        known = {"stdin", "stdout", "stderr", "cwd", "env", "start_new_session"}
        if not isinstance(command, list | tuple) or not known.issuperset(options):
            return None
        python, *rest = [os.fspath(part) for part in command]
        if rest[:1] == ["-u"]:  # what a copy prints is never kept back
            del rest[0]
        if python != sys.executable or not rest:
            return None
        kind, word = ("", rest.pop(0)) if rest[0][0] != "-" else (rest[0][:2], rest.pop(0)[2:])
        if kind not in ("", "-m", "-c") or not (word or rest):
            return None
        return cls(
            kind=kind,
            program=word or rest.pop(0),
            arguments=rest,
            folder=str(Path(options.get("cwd") or "").absolute()),
            environment=dict(os.environ if options.get("env") is None else options["env"]),
            has_session=bool(options.get("start_new_session")),
        )

    @property
    def import_path(self) -> list[str]:
        """What comes before the interpreter's own paths."""
        own = {"-m": self.folder, "-c": "", "": str(Path(self.folder, self.program).parent)}[self.kind]
        given = self.environment.get("PYTHONPATH", "").split(os.pathsep)
        return [own, *(str(Path(self.folder, path)) for path in given if path)]


class Refused(Exception):
    """The server makes no copy for this order."""


class Forked:
    """As much of `subprocess.Popen` as is needed, of a copy.

    Args:
        order: What to run.
        options: Those of `Popen`.

    Raises:
        Refused: A copy would differ from a real process.
        OSError: There is no server, it could make no process, or it does not answer.
    """

    def __init__(self, order: Order, options: Mapping[str, Any]) -> None:
        self.args = [order.kind, order.program, *order.arguments]
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._heard = b""
        self._theirs: list[int] = []
        """Files to close once the copy has them."""
        self._server = socket.socket(socket.AF_UNIX)
        self._server.settimeout(FORK_PATIENCE)
        try:
            self._server.connect(order.environment[ADDRESS])
            content = json.dumps(asdict(order)).encode()
            socket.send_fds(self._server, [LENGTH.pack(len(content))], self._files(options))
            self._server.sendall(content)
            told, number = self._reply()
            if told == "refused":
                raise Refused
            if told != "started":
                raise OSError(number, os.strerror(number))
            self._server.settimeout(None)
        except TimeoutError:
            self._close()
            raise TimeoutError(errno.ETIMEDOUT, f"the server of forks is silent for {FORK_PATIENCE:g} s") from None
        except BaseException:
            self._close()
            raise
        finally:
            for number_of_file in self._theirs:
                os.close(number_of_file)
        self.pid = number

    def _close(self) -> None:
        for file in (self._server, self.stdin, self.stdout, self.stderr):
            if file is not None:
                file.close()

    def _files(self, options: Mapping[str, Any]) -> list[int]:
        """The copy's standard input, output and error."""
        found: list[int] = []
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            asked = options.get(name)
            if asked is None:
                found.append(number)
            elif asked == subprocess.PIPE:
                read, write = os.pipe()
                theirs, mine = (read, write) if name == "stdin" else (write, read)
                setattr(self, name, os.fdopen(mine, "wb" if name == "stdin" else "rb"))
                self._theirs.append(theirs)
                found.append(theirs)
            elif asked == subprocess.DEVNULL:
                self._theirs.append(os.open(os.devnull, os.O_RDWR))
                found.append(self._theirs[-1])
            elif asked == subprocess.STDOUT:
                found.append(found[1])
            else:
                found.append(asked if isinstance(asked, int) else asked.fileno())
        return found

    def _reply(self) -> tuple[str, int]:
        """The next line that the server says, or the copy once it is one."""
        while b"\n" not in self._heard:
            self._heard += self._server.recv(64) or self._gone()
        line, _, self._heard = self._heard.partition(b"\n")
        told, number = line.decode().split()
        return told, int(number)

    def _gone(self) -> bytes:
        raise RuntimeError(f"the server of forks ended before {self.args} did")

    def poll(self) -> int | None:
        """The exit status, or `None` while it runs."""
        with self._lock:
            if self.returncode is None and (self._heard or select.select([self._server], [], [], 0)[0]):
                self.returncode = self._reply()[1]
                self._server.close()  # from here on its process id may be another's
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: It did not come.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            left = None if give_up is None else give_up - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            with contextlib.suppress(ValueError, OSError):  # another thread has heard the end, and closed it
                select.select([self._server], [], [], min(1.0, left or 1.0))
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, while it runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """In the place of `subprocess.Popen`: a copy where there can be one, else a process as ever."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        order = Order.of(arguments[0], options) if len(arguments) == 1 else None
        if order is not None and ADDRESS in order.environment:
            with contextlib.suppress(Refused):
                return Forked(order, options)
        return super().__new__(cls)


class Server:
    """Starts a server, and ends it.

    Args:
        modules: What it imports for everybody.
        environment: In which it does; this process's own where nothing is said.
    """

    def __init__(self, modules: Iterable[str] = SESSIONS, environment: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forks-")  # a short name: that of a socket may not be long
        self.address = str(Path(self._folder.name, "socket"))
        here = Path(__file__).resolve().parent
        given = os.environ if environment is None else environment
        paths = [*(str(here / name) for name in _FOLDERS), given.get("PYTHONPATH", "")]
        environment = {
            **{key: value for key, value in given.items() if not key.startswith("PYTEST_")},
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            **THREADLESS,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-u", str(here / "fork_server.py"), self.address, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], LOAD_PATIENCE)[0]:
            self._process.kill()
        if (said := self._process.stdout.readline()) != b"ready\n":
            self._process.kill()
            why = f"exit status {self._process.wait()} {said.decode()}".strip()
            raise RuntimeError(f"the server of forks did not start: {why}")

    @property
    def process(self) -> int:
        """Its process id."""
        return self._process.pid

    def end(self) -> None:
        """End it; copies that still run are left to those who asked for them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(FORK_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()
