"""The jobs that wait for the engine: a line for each run, which take turns."""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass, field


@dataclass
class Turns:
    """Names of jobs. Of several runs that wait each gets one job started in its turn; of one, in its order."""

    _lines: dict[str, deque[str]] = field(default_factory=dict)
    """By run; the next first."""
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _is_woken: bool = False

    def put(self, name: str, run: str = "") -> None:
        """Add a job to its run's line."""
        with self._changed:
            self._lines.setdefault(run, deque()).append(name)
            self._changed.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> str:
        """The next job.

        Args:
            block: Whether to wait for one.
            timeout: Seconds to wait at most; `None` is for ever.

        Raises:
            queue.Empty: There is none, or a run was dropped.
        """
        with self._changed:
            if block and not self._lines:
                self._changed.wait_for(lambda: self._lines or self._is_woken, timeout)
            self._is_woken = False
            if not self._lines:
                raise queue.Empty
            run, line = next(iter(self._lines.items()))
            del self._lines[run]
            name = line.popleft()
            if line:
                self._lines[run] = line  # at the end
            return name

    def drop(self, run: str) -> None:
        """Forget a run's jobs, and have whoever waits look round."""
        with self._changed:
            self._lines.pop(run, None)
            self._is_woken = True
            self._changed.notify_all()
