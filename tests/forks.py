"""Python processes as copies of one that has imported everything: an import costs once what every start would pay.

A server (`python -m forks`, started by `Server`) imports what sessions, workers and stand-in engines need, and forks
for each that somebody asks for. What is asked for is told as to `subprocess.Popen`, which `Popen` here stands in for:
where the variable `ADDRESS` names a server, and arguments and options are ones that a copy can honour, it returns a
`Forked`; else it starts a process as ever. So without the variable everything is a real process, and tests of what a
kill does to a process group, of replicas (which share one) and of starting itself take it away or are refused a copy.

A copy has what a new process would have: the files, folder, environment, arguments, import path, limits, signals and
process group of whoever asked, modules imported and nothing else. It ends as an interpreter does (`_live`).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

ADDRESS = "RH_TEST_FORKS"
"""The environment variable that names a server's socket."""
_LOADED = (
    "execnet.gateway_bootstrap",
    "numpy.random",
    "pytest_retrieval_heads.plugin",
    "pytest_retrieval_heads.run",
    "retrieval_heads.cli",
    "retrieval_heads.engine.loop",
    "retrieval_heads.engine.replicas",
    "retrieval_heads.engine.server",
    "retrieval_heads.engine.stored_answers",
    "retrieval_heads.plots",
    "retrieval_heads.prompts.requests",
    "retrieval_heads.report",
    "retrieval_heads.suites.soundness",
    "retrieval_heads.tasks.builder",
    "rouge_score.rouge_scorer",
    "seaborn",
    "stand_in_engine",
    "xdist.dsession",
    "xdist.remote",
)
"""What most of the processes import."""
_FOLDERS = (".", "plugin", "faults")
"""Where modules of the tests lie that are imported."""
_LIMITS = [value for name, value in vars(resource).items() if name.startswith("RLIMIT_")]
_LENGTH = struct.Struct("!I")
_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


@dataclass(frozen=True)
class Order:
    """A process to make.

    Args:
        module: What `-m` names; `None` where there is `code`.
        code: What `-c` holds.
        arguments: Behind it.
        folder: Where it runs.
        environment: All of it.
        has_session: Whether it leads a session, and so a process group, of its own; else it joins `group`.
        session: Of whoever asks.
        group: Of whoever asks.
        limits: Its `RLIMIT_...`, soft and hard, by number.
        ignored: Signals that whoever asks ignores; all others do what they do by default.
    """

    module: str | None
    code: str | None
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
            for number in signal.valid_signals() - _IGNORED_BY_PYTHON
            if signal.getsignal(number) is signal.SIG_IGN
        ]
    )

    @classmethod
    def of(cls, command: Any, options: Mapping[str, Any]) -> Order | None:
        """What is meant by the arguments of a `Popen`; `None` where only a real process will do."""
        known = {"stdin", "stdout", "stderr", "cwd", "env", "start_new_session"}
        if not isinstance(command, list | tuple) or not known.issuperset(options):
            return None
        program, *rest = [os.fspath(part) for part in command]
        if rest[:1] == ["-u"]:  # what a copy prints is never kept back
            del rest[0]
        if program != sys.executable or not rest or rest[0][:2] not in ("-m", "-c"):
            return None
        if len(rest[0]) > 2:
            rest[:1] = [rest[0][:2], rest[0][2:]]
        if len(rest) < 2:
            return None
        return cls(
            module=rest[1] if rest[0] == "-m" else None,
            code=rest[1] if rest[0] == "-c" else None,
            arguments=rest[2:],
            folder=str(Path(options.get("cwd") or "").absolute()),
            environment=dict(os.environ if options.get("env") is None else options["env"]),
            has_session=bool(options.get("start_new_session")),
        )


class Refused(Exception):
    """The server makes no copy for this order."""


class Forked:
    """As much of `subprocess.Popen` as is needed, of a copy.

    Args:
        order: What to run.
        options: Those of `Popen`.

    Raises:
        Refused: A copy would differ from a real process.
        OSError: There is no server, or it could make no process.
    """

    def __init__(self, order: Order, options: Mapping[str, Any]) -> None:
        self.args = [order.module or order.code, *order.arguments]
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self._lock = threading.Lock()
        self._heard = b""
        self._theirs: list[int] = []
        """Files to close once the copy has them."""
        self._server = socket.socket(socket.AF_UNIX)
        try:
            self._server.connect(order.environment[ADDRESS])
            content = json.dumps(asdict(order)).encode()
            socket.send_fds(self._server, [_LENGTH.pack(len(content))], self._files(options))
            self._server.sendall(content)
            told, number = self._reply()
            if told == "refused":
                raise Refused
            if told != "started":
                raise OSError(number, os.strerror(number))
        except BaseException:
            for file in (self._server, self.stdin, self.stdout, self.stderr):
                if file is not None:
                    file.close()
            raise
        finally:
            for number_of_file in self._theirs:
                os.close(number_of_file)
        self.pid = number

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
    """Starts a server, and ends it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forks-")  # a short name: that of a socket may not be long
        self.address = str(Path(self._folder.name, "socket"))
        here = Path(__file__).resolve()
        paths = [*(str(here.parent / name) for name in _FOLDERS), os.environ.get("PYTHONPATH", "")]
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OPENBLAS_NUM_THREADS": "1",  # a process with threads had better not fork
        }
        self._process = subprocess.Popen(
            [sys.executable, "-u", str(here), self.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the server of forks did not start: exit status {self._process.wait()}")

    def end(self) -> None:
        """End it; copies that still run are left to those who asked for them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()


@dataclass
class _Copy:
    """One that runs, and who asked for it."""

    process: int
    asker: socket.socket | None
    is_told: bool = False


class _Forks:
    """The server's loop: takes orders, tells who asked when a copy has ended, and holds its process id until then."""

    def __init__(self, address: str, filters: Sequence[Any]) -> None:
        own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        self._path = [path for path in sys.path[1:] if path not in own]
        self._searched = {*self._path, *own}
        self._known = {name.partition(".")[0] for name in sys.modules} - {"__main__"}
        self._python = _interpreter_settings(os.environ)
        self._filters = filters
        self._session = os.getsid(0)
        self._copies: list[_Copy] = []
        self._waking, self._wake = os.pipe()
        os.set_blocking(self._waking, False)
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a developer's Ctrl-C is for the tests, which end this
        signal.set_wakeup_fd(self._wake)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(address)
        self._listening.listen(64)
        self._events = selectors.DefaultSelector()
        for file in (0, self._waking, self._listening):
            self._events.register(file, selectors.EVENT_READ)

    def serve(self) -> Order | None:
        """Serve until standard input ends, in the server, which gets `None`; in a copy, return what it is to run."""
        while True:
            for key, _ in self._events.select():
                if key.fileobj == 0:
                    return None
                if key.fileobj == self._waking:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._waking, 4096)
                elif key.fileobj is self._listening:
                    asker, _ = self._listening.accept()
                    if (order := self._take(asker)) is not None:
                        return order
                else:
                    self._hung_up(key.fileobj)
            self._look_after()

    def _take(self, asker: socket.socket) -> Order | None:
        """Fork, if the order can be honoured; the order in the copy, `None` in the server."""
        try:
            head, files, _, _ = socket.recv_fds(asker, _LENGTH.size, 3)
            content = b""
            while len(content) < _LENGTH.unpack(head)[0]:
                content += asker.recv(1 << 16) or _gone()
        except (OSError, EOFError, struct.error):  # whoever asked was killed meanwhile
            asker.close()
            return None
        order = Order(**json.loads(content))
        if not self._can(order):
            asker.sendall(b"refused 0\n")
            asker.close()
        else:
            try:
                process = os.fork()
            except OSError as error:
                asker.sendall(f"failed {error.errno}\n".encode())
                asker.close()
            else:
                if not process:
                    self._become(order, files, asker)
                    return order
                self._copies.append(_Copy(process, asker))
                self._events.register(asker, selectors.EVENT_READ)
        for file in files:
            os.close(file)
        return None

    def _can(self, order: Order) -> bool:
        """Whether a copy would be what a new process is."""
        if not order.has_session and order.session != self._session:
            return False  # it could not join that one's process group
        if _interpreter_settings(order.environment) != self._python:
            return False
        paths = {Path(order.folder, path) for path in _import_path(order) if path not in self._searched}
        return not any(name in self._known for path in paths for name in _modules_in(path))

    def _become(self, order: Order, files: Sequence[int], asker: socket.socket) -> None:
        """In a copy: take over what was asked for, leave everything of the server, and tell that it is done."""
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, *_IGNORED_BY_PYTHON}:
            with contextlib.suppress(OSError):  # those that the C library keeps
                signal.signal(number, signal.SIG_IGN if number in order.ignored else signal.SIG_DFL)
        if signal.SIGINT not in order.ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if order.has_session:
            os.setsid()
        else:
            os.setpgid(0, order.group)
        os.chdir(order.folder)
        os.environ.clear()
        os.environ.update(order.environment)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        for number, limit in order.limits:
            resource.setrlimit(number, limit)
        sys.path[:] = [*_import_path(order), *self._path]
        sys.argv = ["-c" if order.module is None else "-m", *order.arguments]
        tempfile.tempdir = None
        warnings.filters[:] = self._filters  # libraries add theirs as they are imported
        warnings._filters_mutated()  # type: ignore[attr-defined]
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed()
        for copy in self._copies:
            if copy.asker is not None:
                copy.asker.close()
        self._events.close()
        self._listening.close()
        os.close(self._waking)
        os.close(self._wake)
        asker.sendall(f"started {os.getpid()}\n".encode())
        asker.close()

    def _hung_up(self, asker: Any) -> None:
        """Nobody asks for the status of this one any more."""
        self._events.unregister(asker)
        asker.close()
        for copy in self._copies:
            if copy.asker is asker:
                copy.asker = None

    def _look_after(self) -> None:
        """Tell of those that have ended, and let go of those of which nobody wants to know."""
        for copy in list(self._copies):
            if copy.asker is None:
                if os.waitpid(copy.process, os.WNOHANG)[0]:
                    self._copies.remove(copy)
            elif not copy.is_told:
                ended = os.waitid(os.P_PID, copy.process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is not None:
                    copy.is_told = True
                    status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
                    with contextlib.suppress(OSError):
                        copy.asker.sendall(f"ended {status}\n".encode())


def _gone() -> bytes:
    raise EOFError


def _interpreter_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter reads at its start and a copy therefore has from the server."""
    names = ("PYTHON", "LANG", "LC_", "LD_", "MALLOC_")
    return {key: value for key, value in environment.items() if key.startswith(names) and key != "PYTHONPATH"}


def _import_path(order: Order) -> list[str]:
    """What comes before the interpreter's own paths."""
    given = order.environment.get("PYTHONPATH", "").split(os.pathsep)
    return [order.folder if order.module else "", *(str(Path(order.folder, path)) for path in given if path)]


def _modules_in(folder: Path) -> Iterable[str]:
    """Names that an import would find there."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.suffix == ".py" or (path / "__init__.py").exists():
                yield path.stem


def _live(order: Order) -> NoReturn:
    """In a copy: run what was asked for, and end as an interpreter does, but for clearing away its modules.

    That would touch, and so copy, every page that is shared with the server: it takes longer than most sessions.
    """
    status: int | None = 1
    try:
        if order.module is not None:
            runpy.run_module(order.module, run_name="__main__", alter_sys=True)
        else:
            assert order.code is not None
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(order.code, vars(main))
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            status = 0 if end.code is None else int(end.code)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = None if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if status is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status or 0)


def _load() -> None:
    """Import what others need; pytest's plugins by pytest, which rewrites their assertions."""
    import pytest

    path = list(sys.path)
    with tempfile.TemporaryDirectory() as folder:
        here = Path.cwd()
        os.chdir(folder)
        with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
            pytest.main(["--co", "-q", "-p", "no:cacheprovider", "-c", os.devnull, folder])
        os.chdir(here)
    for name in _LOADED:
        importlib.import_module(name)
    from retrieval_heads.scoring import score_answer

    score_answer("dawn", "dawn", "?")  # reads its tables of words
    sys.path[:] = path
    gc.collect()
    gc.freeze()


def main() -> None:
    """Serve."""
    filters = list(warnings.filters)
    _load()
    subprocess.Popen = Popen  # type: ignore[misc]
    forks = _Forks(sys.argv[1], filters)
    print("ready", flush=True)
    order = forks.serve()
    if order is not None:
        _live(order)


if __name__ == "__main__":
    main()
