"""The live line: what it says, and that it leaves what pytest prints as it is."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable

import pytest

from pytest_retrieval_heads.console import Console
from pytest_retrieval_heads.live import LiveLine
from pytest_retrieval_heads.progress import Progress, State
from retrieval_heads.engine.jobs import Counters, Done

LOADING = State(30, tokens=96_440, waited=33.4, phase="loading the model")
ASKING = State(30, 12, 96_440, 24_110, waited=50, answering=10)


class Screen(io.StringIO):
    """A terminal of a few rows, as far as it is used here."""

    def __init__(self, rows: int = 4, columns: int = 40) -> None:
        super().__init__()
        self.rows, self._columns = [[" "] * columns for _ in range(rows)], columns
        self._row = self._column = 0

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[\d*[A-Za-z]|.|\n", text.replace("\r", "\x1b[0G"), re.DOTALL):
            self._take(part)
        return len(text)

    def _take(self, part: str) -> None:
        if part == "\n":
            self._column = 0  # a terminal's driver adds the return
            if self._row + 1 < len(self.rows):
                self._row += 1
            else:
                self.rows = [*self.rows[1:], [" "] * self._columns]
        elif part == "\x1b[0G":
            self._column = 0
        elif part == "\x1b[K":
            self.rows[self._row][self._column :] = [" "] * (self._columns - self._column)
        elif part.startswith("\x1b[") and part.endswith("A"):
            self._row = max(0, self._row - int(part[2:-1]))
        elif part.startswith("\x1b[") and part.endswith("C"):
            self._column += int(part[2:-1])
        elif not part.startswith("\x1b["):
            self.rows[self._row][self._column] = part
            self._column += 1

    @property
    def shown(self) -> list[str]:
        """Its rows."""
        return ["".join(row).rstrip() for row in self.rows]


@pytest.mark.parametrize(
    ("state", "width", "line"),
    [
        (LOADING, 80, "rh: loading the model, 0:33"),
        (State(30, waited=1.2), 80, "rh: starting the engine, 0:01"),
        (ASKING, 80, "rh: 12 of 30 cells, 24k of 96k tokens, 2,411/s, 0:30 left"),
        (ASKING, 59, "rh: 12 of 30 cells, 24k of 96k tokens, 2,411/s, 0:30 left"),
        (ASKING, 40, "rh: 12 of 30 cells, 24k of 96k tokens"),
        (ASKING, 22, "rh: 12 of 30 cells"),
        (ASKING, 3, "rh:"),
        (State(30, 12, 0, 24_110, answering=10), 80, "rh: 12 of 30 cells, 24k tokens, 2,411/s, 0:15 left"),
        (State(30, 29, 96_440, 96_440, answering=40), 80, "rh: 29 of 30 cells, 96k of 96k tokens, 2,411/s"),
        (
            State(30, 0, 9_000_000, 1_500_000, answering=600),
            80,
            "rh: 0 of 30 cells, 1.5M of 9.0M tokens, 2,500/s, 50:00 left",
        ),
        (State(30, 3, answering=75), 80, "rh: 3 of 30 cells, 1:15"),
    ],
)
def test_what_is_told(state: State, width: int, line: str) -> None:
    assert state.line(width) == line


@pytest.mark.parametrize("rows", [2, 4])
def test_pytests_dots_go_on_where_they_were(rows: int) -> None:
    screen = Screen(rows)
    live = LiveLine(screen)
    live.write("collected 3 items\n")
    live.write("suites/a.yaml ")
    live.show("rh: loading")
    assert screen.shown[-2:] == ["suites/a.yaml", "rh: loading"] or screen.shown[1:3] == [
        "suites/a.yaml",
        "rh: loading",
    ]
    live.write("\x1b[32m.\x1b[0m")
    live.show("rh: 1 of 3")
    live.write(".")
    live.close()
    live.write("F [100%]\n")
    assert [row for row in screen.shown if row] == ["collected 3 items", "suites/a.yaml ..F [100%]"][-(rows - 1) :]


def test_a_line_that_pytest_writes_again_is_known() -> None:
    screen = Screen()
    live = LiveLine(screen)
    live.show("rh: loading")
    live.write("\rgw0 [3]")
    live.write("\rgw0 [3] / gw1 [3]\n")
    live.write("ä日.")
    assert screen.shown[:2] == ["gw0 [3] / gw1 [3]", "ä日."]
    assert live._column == 4, "a wide letter takes two columns"
    live.close()
    live.show("too late")
    assert "too late" not in "".join(screen.shown)


class Hours:
    """A clock that goes on as far as somebody waits; the end comes when the script is played."""

    def __init__(self, script: list[Counters | None]) -> None:
        self.now, self.waited, self._script = 0.0, list[float](), script

    def wait(self, ended: threading.Event, seconds: float) -> bool:
        self.now += seconds
        self.waited.append(seconds)
        return ended.is_set() or not self._script

    def counters(self) -> Counters | None:
        return self._script.pop(0)


def counted(finished: int, read: int, phase: str = "") -> Counters:
    return Counters(30, finished, 1, Done(prompt_tokens=read), phase=phase)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def told(pytester: pytest.Pytester) -> Callable[..., tuple[str, list[float]]]:
    """What a session writes from the start of its engine on, by the script of what the engine counts."""

    def tell(file: io.StringIO, script: list[Counters | None], *options: str) -> tuple[str, list[float]]:
        config = pytester.parseconfigure("-p", "no:rh", *options)
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter._tw._file = file
        hours = Hours(script)
        progress = Progress(config, Console(config), hours.counters, clock=lambda: hours.now, wait=hours.wait)
        progress.begin(30, 96_440)
        if progress._watch is not None:
            progress._watch.join()
        progress.end()
        return file.getvalue(), hours.waited

    return tell


def test_off_a_terminal_a_line_comes_every_thirty_seconds(told: Callable[..., tuple[str, list[float]]]) -> None:
    script = [None, counted(0, 0, "loading the model"), counted(0, 0), counted(12, 24_110), counted(30, 96_440)]
    printed, waited = told(io.StringIO(), script)
    assert waited == [30.0] * 5, "nothing is said once the last cell has its result"
    assert printed.splitlines() == [
        "rh: starting the engine, 0:30",
        "rh: loading the model, 1:00",
        "rh: 0 of 30 cells, 0:00",
        "rh: 12 of 30 cells, 24k of 96k tokens, 804/s, 1:30 left",
    ]


def test_in_a_terminal_the_same_stands_in_one_line(
    told: Callable[..., tuple[str, list[float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    printed, waited = told(Terminal(), [None, counted(12, 24_110), counted(30, 96_440)])
    assert waited == [0.5] * 3
    screen = Screen(columns=80)
    screen.write(printed)
    assert not any(screen.shown), "it goes with the last answer"
    assert "rh: starting the engine, 0:00" in printed
    assert "rh: 12 of 30 cells, 24k of 96k tokens" in printed


@pytest.mark.parametrize("options", [("-q",), ("-p", "no:terminal")])
@pytest.mark.parametrize("file", [io.StringIO, Terminal])
def test_who_wants_no_terminal_output_has_none(
    told: Callable[..., tuple[str, list[float]]],
    file: type[io.StringIO],
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert told(file(), [counted(12, 24_110)], *options) == ("", [])
