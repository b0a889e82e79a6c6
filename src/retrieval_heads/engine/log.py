"""`engine.log`: everything an engine process prints, without secrets."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from retrieval_heads.errors import FileError
from retrieval_heads.redaction import without_secrets

_KEPT_LINES = 200
_SHOWN_LINES = 12
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST_LINE = 1 << 16


def tail(path: Path) -> str:
    """The last lines of a log that another process wrote, below a line that names it."""
    try:
        return shown_lines(path, path.read_text(encoding="utf-8", errors="replace").splitlines()[-_KEPT_LINES:])
    except OSError:
        return ""


def shown_lines(path: Path, lines: Sequence[str]) -> str:
    """The last lines of a log that are not empty, indented, below a line that names it; empty where there are none."""
    # Without the colours that vLLM writes for a terminal.
    shown = [_COLOUR.sub("", line)[:160] for line in lines if line.strip()][-_SHOWN_LINES:]
    return "".join(f"\n    {line}" for line in [f"last lines of {path}:", *shown]) if shown else ""


class EngineLog:
    """Copies a process's output to a file, line by line.

    The process must never wait for a reader: what cannot be written is read all the same, and its end is kept here.

    Args:
        source: The process's output; closed at its end.
        path: The file, which is appended to.
    """

    def __init__(self, source: IO[bytes], path: Path) -> None:
        self.path = path
        self.failure: FileError | None = None
        """Why the file lacks something."""
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self._source = source
        self._thread = threading.Thread(target=self._copy, name="engine.log", daemon=True)
        self._thread.start()

    def last_lines(self, *, patience: float) -> list[str]:
        """The last lines.

        Args:
            patience: Seconds to wait for the output's end: a process that is gone may have left something to read.
        """
        self._thread.join(patience)
        return list(self._last)

    def close(self, *, patience: float) -> None:
        """Wait for the output's end."""
        self._thread.join(patience)

    def _copy(self) -> None:
        try:
            file = self.path.open("ab", buffering=0)
        except OSError as error:
            self.failure = FileError.of(self.path, error)
            file = open(os.devnull, "wb", buffering=0)  # noqa: PTH123, SIM115
        with file, self._source:
            for line in self._lines():
                text = without_secrets(line.decode("utf-8", "replace"))
                self._last.append(text.strip("\r\n"))
                try:
                    file.write(text.encode())
                except OSError as error:
                    self.failure = FileError.of(self.path, error)

    def _lines(self) -> Iterator[bytes]:
        """Whole lines; a progress bar's end at its carriage returns."""
        rest = b""
        while chunk := os.read(self._source.fileno(), 1 << 16):
            *lines, rest = (rest + chunk).replace(b"\r", b"\r\n").split(b"\n")
            yield from (line if line.endswith(b"\r") else line + b"\n" for line in lines)
            if len(rest) > _LONGEST_LINE:
                yield rest
                rest = b""
        if rest:
            yield rest
