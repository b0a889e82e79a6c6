"""The server of `forks`: a process without threads that has imported what others need, and forks for each of them.

usage: python fork_server.py SOCKET MODULE...
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
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from forks import FORK_PATIENCE, IGNORED_BY_PYTHON, LENGTH, Order, Popen


@dataclass
class _Copy:
    """One that runs, and who asked for it."""

    process: int
    asker: socket.socket | None
    is_told: bool = False


class _Forks:
    """The server's loop: takes orders, tells who asked when a copy has ended, and holds its process id until then."""

    def __init__(self, address: str, filters: Sequence[Any], environment: Mapping[str, str]) -> None:
        own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        self._path = [path for path in sys.path[1:] if path not in own]
        self._searched = {*self._path, *own}
        self._known = {name.partition(".")[0] for name in sys.modules} - {"__main__"}
        self._read = _read_at_start(environment)
        self._cores = sorted(os.sched_getaffinity(0))
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
                    asker.settimeout(FORK_PATIENCE)  # one that was stopped in the middle keeps nobody else waiting
                    if (order := self._take(asker)) is not None:
                        return order
                else:
                    self._hung_up(key.fileobj)
            self._look_after()

    def _take(self, asker: socket.socket) -> Order | None:
        """Fork, if the order can be honoured; the order in the copy, `None` in the server."""
        try:
            head, files, _, _ = socket.recv_fds(asker, LENGTH.size, 3)
            content = b""
            while len(content) < LENGTH.unpack(head)[0]:
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
        # By their cores libraries choose how many threads they have.
        if list(order.cores) != self._cores or _read_at_start(order.environment) != self._read:
            return False
        paths = {Path(order.folder, path) for path in order.import_path if path not in self._searched}
        return not any(name in self._known for path in paths for name in _modules_in(path))

    def _become(self, order: Order, files: Sequence[int], asker: socket.socket) -> None:
        """In a copy: take over what was asked for, leave everything of the server, and tell that it is done."""
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, *IGNORED_BY_PYTHON}:
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
        sys.path[:] = [*order.import_path, *self._path]
        sys.argv = [order.kind or order.program, *order.arguments]
        tempfile.tempdir = None
        warnings.filters[:] = self._filters  # libraries add theirs as they are imported
        warnings._filters_mutated()  # type: ignore[attr-defined]
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed()
        if "torch._dynamo.config" in sys.modules:
            sys.modules["torch._dynamo.config"].disable = order.environment.get("TORCH_COMPILE_DISABLE") == "1"
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


_INTERPRETER = ("PYTHON", "LANG", "LC_", "LD_", "MALLOC_", "GLIBC_", "GOMP_", "KMP_", "MKL_", "OMP_")
_LIBRARIES = {
    "huggingface_hub": ("HF_",),
    "nnsight": ("NNSIGHT_",),
    "torch": ("CUDA", "TORCH", "TRITON_"),
    "transformers": ("TRANSFORMERS_",),
    "vllm": ("VLLM_",),
}
"""How names of variables begin that are read as a library is imported."""
_READ_LATE = {"PYTHONPATH", "TORCH_COMPILE_DISABLE", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_ENABLE_V1_MULTIPROCESSING"}
"""Of those, what a copy is told of, and what vLLM 0.32 reads where it makes an engine."""


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """What the interpreter and libraries that are loaded read at their start: a copy has it from the server."""
    names = (
        *_INTERPRETER,
        *(name for library, names in _LIBRARIES.items() if library in sys.modules for name in names),
    )
    return {key: value for key, value in environment.items() if key.startswith(names) and key not in _READ_LATE}


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
        if order.kind == "-m":
            runpy.run_module(order.program, run_name="__main__", alter_sys=True)
        elif order.kind == "-c":
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(order.program, vars(main))
        else:
            runpy.run_path(order.program, run_name="__main__")
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


def _load(modules: Iterable[str]) -> None:
    """Import what others need; pytest's plugins by pytest, which rewrites their assertions."""
    import pytest

    import installed  # noqa: F401

    path = list(sys.path)
    with tempfile.TemporaryDirectory() as folder:
        here = Path.cwd()
        os.chdir(folder)
        with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
            pytest.main(["--co", "-q", "-p", "no:cacheprovider", "-c", os.devnull, folder])
        os.chdir(here)
    for name in modules:
        importlib.import_module(name)
    from retrieval_heads.scoring import score_answer

    needle = "The ferry to Oslo leaves at dawn."
    score_answer(needle, needle, "When does the ferry leave?")  # reads its tables of words
    sys.path[:] = path
    gc.collect()
    gc.freeze()


def main(address: str, *modules: str) -> None:
    """Serve."""
    filters, environment = list(warnings.filters), dict(os.environ)
    _load(modules)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:  # a copy would lack them, and what they hold stay locked
        print(f"{threads} threads run: something that it imports starts them")
        sys.exit(1)
    subprocess.Popen = Popen  # type: ignore[misc]
    forks = _Forks(address, filters, environment)
    print("ready", flush=True)
    order = forks.serve()
    if order is not None:
        _live(order)
    os._exit(0)  # libraries count what an orderly end leaves behind, and say so


if __name__ == "__main__":
    main(*sys.argv[1:])
