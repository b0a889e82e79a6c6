"""Ends an engine process in which nothing moves any more, with the stacks of its threads in its log.

The engine's loop counts its signs of life in a file: a step that computed something, a prompt that was built, a second
in which there was nothing to do. Whoever launched the process reads it. So a GPU that hangs, a rank that waits for
another for ever, a thread that keeps the interpreter to itself and a process that was stopped are all noticed. A step
may take long; what is limited is how long nothing is heard.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

STACKS = signal.SIGUSR2
"""Has a process of the engine write the stacks of all its threads to its standard error, which is the log."""

_BYTES = 8
_OFTEN = 1.0  # seconds between two looks, or between two signs of an engine that has nothing to do
_WRITING = 5.0  # seconds that a process gets to write its stacks
_WRITTEN = 0.5  # seconds without another line after which they are complete; a busy machine makes pauses


@dataclass(frozen=True)
class Limits:
    """How long an engine may be silent.

    Args:
        silence: Seconds without a sign of life, once it is ready; `None` is for ever.
        start: Seconds until it is ready.
    """

    silence: float | None = None
    start: float | None = None


class Pulse:
    """An engine process's signs of life.

    Args:
        path: The file that counts them.
    """

    def __init__(self, path: Path) -> None:
        self._count = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def beat(self) -> None:
        """Give one. The first says that the engine is ready."""
        self._count += 1
        os.pwrite(self._file, self._count.to_bytes(_BYTES, "little"), 0)

    def rest(self) -> None:
        """Give one every second, for ever."""
        while True:
            self.beat()
            time.sleep(_OFTEN)


class Watchdog:
    """Watches an engine process from outside.

    Args:
        process: Its number.
        pulse: The file that a `Pulse` writes.
        limits: How long it may be silent.
        log: Where its standard error goes.
    """

    def __init__(self, process: int, pulse: Path, limits: Limits, log: Path) -> None:
        self._process = process
        self._pulse = pulse
        self._limits = limits
        self._log = log

    def watch(self, end: Callable[[str], None]) -> None:
        """Watch from a thread of its own for as long as this process runs.

        Args:
            end: Called once when a limit is passed, with why, as the second half of a sentence; it ends the process.
        """
        if self._limits != Limits():
            threading.Thread(target=self._watch, args=[end], daemon=True).start()

    def _watch(self, end: Callable[[str], None]) -> None:
        known, quiet, looked = 0, 0.0, time.monotonic()
        while state_of(self._process) not in (None, "Z"):
            limit = self._limits.silence if known else self._limits.start
            often = _OFTEN if limit is None else min(_OFTEN, limit / 4)
            time.sleep(often)
            now = time.monotonic()
            # While this process was itself stopped, nobody listened.
            quiet += min(now - looked, 2 * often)
            looked = now
            if (count := self._read()) != known:
                known, quiet = count, 0.0
            elif limit is not None and quiet >= limit:
                end(self._reason(known, limit))
                return

    def _read(self) -> int:
        try:
            return int.from_bytes(self._pulse.read_bytes(), "little")
        except OSError:  # not yet made
            return 0

    def _reason(self, known: int, limit: float) -> str:
        if known == 0:
            what = f"its model was not loaded within {limit:g} s (engine.start_limit)"
        else:
            what = f"no step and no other sign of life for {limit:g} s (engine.silence)"
        stopped = ", a signal had stopped it" if state_of(self._process) in ("T", "t") else ""
        return f"was ended: {what}{stopped}; the stacks of its threads are in {self._log.name}"

    def write_stacks(self) -> None:
        """Have the process and all that it started write their stacks to the log, one after the other."""
        for process in (self._process, *descendants(self._process)):
            state, name = state_of(process), _name_of(process)
            with self._log.open("ab") as log:
                log.write(f"\nrh: stacks of process {process} ({name}, state {state})\n".encode())
            if not _handles(process, STACKS):
                continue  # the signal would end it before the others have written theirs
            with contextlib.suppress(ProcessLookupError):
                before = self._log.stat().st_size
                os.kill(process, STACKS)
                os.kill(process, signal.SIGCONT)  # where it was stopped
                self._wait_for_more_than(before)

    def _wait_for_more_than(self, before: int) -> None:
        """Until the log has grown and grows no further."""
        grew = started = time.monotonic()
        size = before
        while (now := time.monotonic()) < started + _WRITING:
            time.sleep(0.1)
            found = self._log.stat().st_size
            if found != size:
                size, grew = found, now
            elif size > before and now - grew >= _WRITTEN:
                return


def write_stacks_on_signal() -> None:
    """Have this process answer `STACKS`, also while a thread keeps the interpreter to itself."""
    faulthandler.register(STACKS, all_threads=True)


def descendants(process: int) -> list[int]:
    """The processes that a process started, and those that they did; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for number, parent in _parents():
        children.setdefault(parent, []).append(number)
    found = [process]
    for one in found:  # grows as it is walked
        found += children.get(one, ())
    return found[1:]


def state_of(process: int) -> str | None:
    """A process's state as `ps` shows it, `T` where it is stopped; `None` where there is none; `?` without a /proc."""
    fields = _stat(process)
    if fields is not None:
        return fields[0]
    return None if Path("/proc/self/stat").exists() or not _exists(process) else "?"


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _parents() -> Iterator[tuple[int, int]]:
    """Every process with its parent."""
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields is not None:
            yield int(folder.name), int(fields[1])


def _stat(process: int) -> list[str] | None:
    """What /proc says of a process behind its name, which may hold anything: its state, its parent, ..."""
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _name_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
    except OSError:
        return "unknown"


def _handles(process: int, number: signal.Signals) -> bool:
    """Whether a process does something of its own at a signal; where nobody can tell, it is assumed."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(errors="replace").splitlines()
    except OSError:
        return not Path("/proc/self/status").exists()
    caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)
