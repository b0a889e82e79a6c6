"""One line below what pytest prints, which is drawn again and again while pytest prints on."""

from __future__ import annotations

import os
import re
import threading
import unicodedata
from typing import Any

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class LiveLine:
    """Stands in for the terminal that pytest writes to: the line goes away for each write, and comes back below it.

    pytest leaves its cursor within a line, behind the dots of its items. A bar of tqdm's takes that line, and a display
    of rich's every line below the cursor; this one goes down a line, and back to where pytest's cursor was.

    Args:
        file: The terminal.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._lock = threading.RLock()
        self._line = ""
        self._column = 0
        self._is_closed = False

    @property
    def columns(self) -> int:
        """How wide the terminal is. Not standard output's width: pytest captures that meanwhile."""
        try:
            return os.get_terminal_size(self._file.fileno()).columns or 80
        except OSError:
            return 80

    def write(self, text: str) -> int:
        """What pytest writes."""
        with self._lock:
            if not self._line:
                self._follow(text)
                return int(self._file.write(text))
            self._file.write(self._below(""))
            written = self._file.write(text)
            self._follow(text)
            self._file.write(self._below(self._line))
            self._file.flush()
            return int(written)

    def show(self, line: str) -> None:
        """Draw a line, or none where it is empty.

        Args:
            line: Shorter than the terminal is wide, without control characters.
        """
        with self._lock:
            if line != self._line and not self._is_closed:
                self._line = line
                self._file.write(self._below(line))
                self._file.flush()

    def close(self) -> None:
        """Draw nothing any more."""
        self.show("")
        self._is_closed = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _below(self, line: str) -> str:
        back = f"\x1b[{self._column}C" if self._column else ""
        # A line feed and not a move down, which does nothing in the last row.
        return f"\n\r{line}\x1b[K\x1b[1A\r{back}"

    def _follow(self, text: str) -> None:
        """See where the cursor is after a text."""
        text = _ESCAPE.sub("", text)
        begins = max(text.rfind("\n"), text.rfind("\r")) + 1
        self._column = (0 if begins else self._column) + sum(map(_columns, text[begins:]))


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
