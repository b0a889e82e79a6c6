"""What the engine is at while pytest waits: one live line in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pytest_retrieval_heads.console import Console
from pytest_retrieval_heads.live import LiveLine
from retrieval_heads.engine.jobs import Counters
from retrieval_heads.errors import printable

_LIVE, _LINES = 0.5, 30.0
"""Seconds between two looks: for a live line, and for a line of its own each."""
_TOO_EARLY = 2.0
"""Seconds after which a rate is worth telling."""


@dataclass(frozen=True)
class State:
    """What is known.

    Args:
        cells: How many are asked; `done` have a result.
        tokens: Of their prompts; 0 where that is not known. `read` are computed or cached by now.
        waited: Seconds since the engine's start began.
        answering: Seconds since its model was loaded; 0 while it is not.
        phase: What its start is at.
    """

    cells: int
    done: int = 0
    tokens: int = 0
    read: int = 0
    waited: float = 0.0
    answering: float = 0.0
    phase: str = ""

    def parts(self) -> list[str]:
        """What is told, the most important first."""
        if not self.answering:
            return [self.phase or "starting the engine", _clock(self.waited)]
        told = [f"{self.done} of {self.cells} cells"]
        if not self.read:
            return [*told, _clock(self.answering)]
        of_all = f" of {_short(self.tokens)}" if self.tokens else ""
        told.append(f"{_short(self.read)}{of_all} tokens")
        if self.answering < _TOO_EARLY:
            return told
        rate = self.read / self.answering
        told.append(f"{_short(rate)}/s")
        share = self.read / self.tokens if self.tokens else self.done / self.cells
        if 0 < share < 1:
            told.append(f"{_clock(self.answering * (1 - share) / share)} left")
        return told

    def line(self, width: int) -> str:
        """What is told, as far as it fits.

        Args:
            width: Columns.
        """
        said = "rh: "
        for number, part in enumerate(self.parts()):
            more = f", {part}" if number else part
            if len(said) + len(more) > width:
                break
            said += more
        return said[:width]


def _short(number: float) -> str:
    """Three digits are enough for whoever waits."""
    if number < 10_000:
        return f"{number:,.0f}"
    return f"{number / 1_000:,.0f}k" if number < 999_500 else f"{number / 1_000_000:.1f}M"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """Tells what the engine is at, from the start of the engine until the last cell has its result.

    Args:
        config: pytest's: without a terminal reporter, or with `-q`, nothing is told.
        console: Where lines go that are no live one.
        counters: What the engine counts; `None` where it cannot be asked.
        clock: Seconds.
        wait: Until the end, or so many seconds; whether it is the end.
    """

    def __init__(
        self,
        config: pytest.Config,
        console: Console,
        counters: Callable[[], Counters | None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self._config = config
        self._console = console
        self._counters = counters
        self._clock, self._wait = clock, wait
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None
        self._live: LiveLine | None = None
        self._state = State(0)
        self._began = self._ready = 0.0

    def begin(self, cells: int, tokens: int) -> None:
        """The engine is about to be started; once.

        Args:
            cells: How many will be asked.
            tokens: Of their prompts; 0 where that is not known.
        """
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or self._config.option.verbose < 0 or self._watch is not None:
            return
        self._state, self._began = State(cells, tokens=tokens), self._clock()
        writer = reporter._tw
        # With -s whatever a test prints would go through the line.
        if _is_terminal(writer._file) and self._config.getoption("capture", "no") != "no":
            self._live = writer._file = LiveLine(writer._file)
        self._watch = threading.Thread(target=self._tell, daemon=True)
        self._watch.start()

    def end(self) -> None:
        """Nothing is waited for any more."""
        self._ended.set()
        if self._live is not None:
            self._live.close()

    def _tell(self) -> None:
        try:
            while not self._wait(self._ended, _LINES if self._live is None else _LIVE):
                self._state = state = self._seen(self._counters(), self._clock())
                if state.cells <= state.done and state.answering:
                    break
                if self._live is not None:
                    self._live.show(printable(state.line(self._live.columns - 1)))
                elif not self._ended.is_set():
                    self._console.say(state.line(200).removeprefix("rh: "))
        finally:
            self.end()

    def _seen(self, counters: Counters | None, now: float) -> State:
        known = self._state
        if counters is None and self._ready:
            return known  # it is at its end
        if counters is None:
            return State(known.cells, tokens=known.tokens, waited=now - self._began)
        if not counters.phase and not self._ready:
            self._ready = now
        return State(
            known.cells,
            counters.finished,
            known.tokens,
            counters.done.prompt_tokens + counters.done.underway_tokens,
            now - self._began,
            max(now - self._ready, 0.001) if self._ready else 0.0,
            counters.phase,
        )


def _is_terminal(file: object) -> bool:
    is_terminal: Callable[[], bool] = getattr(file, "isatty", lambda: False)
    return is_terminal() and os.environ.get("TERM", "dumb") != "dumb"
