"""`results.jsonl` as one run writes it: appended to line by line, and whole at the end whatever happened to it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from retrieval_heads.errors import FileError
from retrieval_heads.files import write_whole
from retrieval_heads.runs.record import Record, dump_record

Cell = tuple[str, str]
"""A record's suite and cell."""


class Journal:
    """Appends a run's records to its results file.

    A record is on disk when `append` returns, or is tried again with the next one and in `settle`.

    Args:
        path: The file.
        earlier: The records that stand in it, by their cell.

    Raises:
        FileError: The file cannot be written.
    """

    def __init__(self, path: Path, earlier: Mapping[Cell, Record]) -> None:
        self.path = path
        self.written: dict[Cell, Record] = {}
        """This session's records."""
        self.failure: FileError | None = None
        """Why the newest records are not on disk; `None` while all are."""
        self._earlier = dict(earlier)
        self._open()

    def _open(self) -> None:
        try:
            # Unbuffered: what a failed write left half-written can be cut off, and nothing of it comes later.
            self._file = self.path.open("ab", buffering=0)
            content = self.path.read_bytes()
        except OSError as error:
            raise FileError.of(self.path, error) from None
        # What the file holds as far as this run knows.
        self._lines = set(content.split(b"\n")[:-1])
        self._length, self._hash = len(content), sha256(content)
        self._waiting: list[bytes] = []

    def append(self, record: Record) -> bool:
        """Write a record; a cell's second record of a session is dropped, and one that stands there already.

        Returns:
            Whether it is the cell's first of this session.
        """
        key = (record.suite_id, record.cell)
        if key in self.written:
            return False
        self.written[key] = record
        if record != self._earlier.get(key):
            line = dump_record(record).encode()
            self._lines.add(line)
            self._length += len(line) + 1
            self._hash.update(line + b"\n")
            self._waiting.append(line + b"\n")
            self._flush()
        return True

    def _flush(self) -> None:
        """Write what waits, each line whole or not at all."""
        self.failure = None
        file = self._file.fileno()
        while self._waiting:
            line, before = self._waiting[0], os.fstat(file).st_size
            try:
                done = os.write(file, line)
                if done < len(line):  # the disk is full; another try says so
                    os.write(file, line[done:])
            except OSError as error:
                self.failure = FileError.of(self.path, error)
                with suppress(OSError):  # a torn last line is what `settle` and a resumed run look for
                    os.ftruncate(file, before)
                return
            del self._waiting[0]

    def settle(self) -> str | None:
        """See that the file holds every record, each cell's once, and write it again where it does not.

        Returns:
            What somebody did to it, in one sentence; `None` where nobody did anything.

        Raises:
            FileError: Records are missing in it, and it cannot be written.
        """
        if self._waiting:
            self._flush()
        is_outdated = any(self._earlier.get(key, record) != record for key, record in self.written.items())
        if self._is_intact() and self.failure is None and not is_outdated:
            return None
        happened = self._what_happened()
        if happened == _CHANGED:
            with suppress(FileNotFoundError):
                self.path.rename(aside(self.path))
        records = (self._earlier | self.written).values()
        write_whole(self.path, "".join(f"{dump_record(record)}\n" for record in records).encode())
        self._file.close()
        self._earlier |= self.written
        self._open()
        self.failure = None
        return happened and f"{self.path}: {happened} during the run; every record was written again"

    @property
    def missing(self) -> int:
        """How many records are not on disk, as far as this run knows."""
        return len(self._waiting)

    def _is_intact(self) -> bool:
        try:
            content = self.path.read_bytes() if self.is_in_place() else b""
        except OSError:
            return False
        return len(content) == self._length and sha256(content).digest() == self._hash.digest()

    def is_in_place(self) -> bool:
        """Whether the file that this run writes to is the one at its path."""
        mine = os.fstat(self._file.fileno())
        try:
            found = self.path.stat()
        except OSError:
            return False
        return (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino)

    def _what_happened(self) -> str | None:
        if not self.path.exists():
            return "was removed"
        try:
            lines = set(self.path.read_bytes().split(b"\n")[:-1]) if self.is_in_place() else {b"another file's"}
        except OSError:
            return _CHANGED
        if lines - self._lines:
            return _CHANGED
        waiting = {line.rstrip(b"\n") for line in self._waiting}
        return "was cut short" if self._lines - lines - waiting else None

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


_CHANGED = "was changed by somebody else, whose file is kept beside it,"


def aside(path: Path) -> Path:
    """Where results that are not this run's are kept: `results-<time of their last change>.jsonl`, not used yet."""
    written = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.lstat().st_mtime))
    number, found = 1, path.with_name(f"{path.stem}-{written}{path.suffix}")
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}-{written}-{number}{path.suffix}")
    return found
