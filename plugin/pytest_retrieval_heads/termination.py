"""SIGTERM and SIGHUP end a session as Ctrl-C does: files closed, engine ended, nothing left behind.

pytest itself handles neither, and would end at once with everything as it lay.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Termination:
    """Turns the first of these signals into a `KeyboardInterrupt`, which pytest knows how to end with.

    The process then ends by the signal all the same, so that whoever sent it sees that it did. A signal that is
    ignored (`nohup`) or that somebody else handles is left alone.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._is_ending = False
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._before[number] = signal.signal(number, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._is_ending:
            return  # `timeout` sends it twice
        self._is_ending = True
        atexit.register(_end_by, number)
        raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")

    def restore(self) -> None:
        """Leave the signals as they were found."""
        if self._is_ending:
            return  # the process is about to end
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _end_by(number: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # the terminal is gone, too
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
