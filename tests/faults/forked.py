"""Sessions and stand-in engines as copies of one process that has loaded everything: a fifth of the time."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

CONFTEST = """
import os

if "PYTEST_XDIST_WORKER" not in os.environ:
    import forked

    import retrieval_heads.engine.client

    retrieval_heads.engine.client.subprocess = forked.Engines
"""


class Forked:
    """As much of `subprocess.Popen` as is needed, of a copy of this process.

    Args:
        run: What the copy does, in a session of its own; what it returns is the exit status.
        stdin: What it reads, a file descriptor; `None` for nothing.
        stdout: What it prints to.
    """

    def __init__(self, run: Callable[[], int], stdin: int | None, stdout: int) -> None:
        self.returncode: int | None = None
        self.stdin: Any = None
        self.stdout: Any = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        status = 70
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin, 0)
            os.dup2(stdout, 1)
            os.dup2(stdout, 2)
            os.closerange(3, 4096)
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            status = run()
        except BaseException:
            traceback.print_exc()
        finally:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(status)

    def poll(self) -> int | None:
        """The exit status, or `None` while it runs."""
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: It did not come.
        """
        give_up = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > give_up:
                raise subprocess.TimeoutExpired("pytest", timeout)
            time.sleep(0.005)
        return status


class Engines:
    """In place of the module `subprocess`, for whoever launches stand-in engines with it."""

    PIPE, STDOUT, TimeoutExpired = subprocess.PIPE, subprocess.STDOUT, subprocess.TimeoutExpired

    @staticmethod
    def Popen(*_: Any, **__: Any) -> Forked:  # noqa: N802 - as there
        """Launch one."""
        asked, printed = os.pipe(), os.pipe()
        made = Forked(_engine, asked[0], printed[1])
        os.close(asked[0])
        os.close(printed[1])
        made.stdin, made.stdout = os.fdopen(asked[1], "wb"), os.fdopen(printed[0], "rb")
        return made


def session(arguments: list[str], folder: Path, environment: Mapping[str, str], printed: int) -> Forked:
    """Start pytest."""

    def run() -> int:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None
        sys.path.insert(0, str(folder))
        return int(pytest.main(arguments))

    return Forked(run, None, printed)


def _engine() -> int:
    from retrieval_heads.engine import process

    process.main()
    return 0


def preload() -> None:
    """Import once what every session and engine needs."""
    sys.modules.setdefault("scipy", None)  # type: ignore[arg-type] # nltk takes a second for it

    from retrieval_heads.scoring import score_answer

    score_answer("dawn", "dawn", "?")
