"""The live line: what it says, and that it leaves what pytest prints as it is."""

from __future__ import annotations

import io
import re

import pytest

from pytest_retrieval_heads.live import LiveLine
from pytest_retrieval_heads.progress import State

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
