"""A table that a user has, as JSONL or CSV: rows of texts, and mistakes in them by file, line, row and column."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, NoReturn

from retrieval_heads.errors import ConfigError
from retrieval_heads.reading import parse_json, read_bytes, state_of

SUFFIXES: Final = (".jsonl", ".csv", ".tsv")
_LONGEST_CELL = 1 << 30  # characters; a haystack may stand in a cell, and the csv module stops at 131,072


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        path: The file.
        number: Counted from 1, the header not counted.
        line: The line of the file that it starts in.
        values: By column, as the file holds them.
    """

    path: Path
    number: int
    line: int
    values: Mapping[str, object]

    @property
    def where(self) -> str:
        """Names it in errors."""
        return f"{self.path}:{self.line}: row {self.number}"

    def refuse(self, column: str, why: str) -> NoReturn:
        """Refuse a value.

        Raises:
            ConfigError: With file, line, row and column.
        """
        raise ConfigError(f"{self.where}, column {column!r}: {why}")

    def text(self, column: str) -> str:
        """The text of a column; a whole number as its digits.

        Raises:
            ConfigError: The row has no such column, or it is empty or no text.
        """
        if column not in self.values:
            self.refuse(column, f"there is none; the row has {_listed(self.values)}")
        value = self.values[column]
        if type(value) is int:
            return str(value)
        if not isinstance(value, str):
            self.refuse(column, f"a text is expected, found {_kind(value)}")
        if not value.strip():
            self.refuse(column, "a text is expected, found none")
        return value

    def texts(self, columns: str | Sequence[str]) -> list[str]:
        """The texts of a column that holds a list or one text, or those of several columns, empty ones left out.

        Raises:
            ConfigError: As `text`.
        """
        if not isinstance(columns, str):
            named = [column for column in columns if self.values.get(column, column) not in ("", None)]
            return [self.text(column) for column in named]
        value = self.values.get(columns)
        if not isinstance(value, list):
            return [self.text(columns)]
        return [Row(self.path, self.number, self.line, {columns: each}).text(columns) for each in value]


@dataclass(frozen=True)
class Table:
    """A file's rows.

    Args:
        path: The file.
        hash: SHA-256 of its content.
        columns: The names of all its columns.
        rows: In its order.
    """

    path: Path
    hash: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def require(self, column: str) -> None:
        """See that there is a column.

        Raises:
            ConfigError: With those that there are.
        """
        if column not in self.columns:
            raise ConfigError(f"{self.path}: has no column {column!r}; it has {_listed(self.columns)}")


def read_table(path: Path) -> Table:
    """Read a table: JSONL with an object in each line, CSV or TSV with a header. UTF-8, with or without its mark.

    Raises:
        ConfigError: The file cannot be read, is of another kind, holds no row, or one that is broken.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: a table is expected as {', '.join(SUFFIXES)}")
    return _parsed(path, state_of(path))


@lru_cache(maxsize=4)
def _parsed(path: Path, _state: tuple[int, int]) -> Table:
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise ConfigError(f"{path}: is no text: it holds a NUL (character {text.index(chr(0))})")
    rows = tuple(_objects(path, text) if path.suffix.lower() == ".jsonl" else _records(path, text))
    if not rows:
        raise ConfigError(f"{path}: holds no row")
    columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    return Table(path, hashlib.sha256(content).hexdigest(), columns, rows)


def _objects(path: Path, text: str) -> Iterator[Row]:
    number = 0
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        number += 1
        value = parse_json(content, f"{path}:{line}")
        if not isinstance(value, dict):
            raise ConfigError(f"{path}:{line}: a JSON object is expected, found {_kind(value)}")
        yield Row(path, number, line, value)


def _records(path: Path, text: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    number, line = 0, 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if header is None:
                header = _header(path, cells)
                continue
            if not cells:
                continue  # an empty line
            number += 1
            if len(cells) != len(header):
                raise ConfigError(f"{path}:{start}: row {number}: has {len(cells)} cells; the header has {len(header)}")
            yield Row(path, number, start, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise ConfigError(f"{path}:{line}: row {number + 1}: is no row of a table ({error})") from None


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not all(names):
        raise ConfigError(f"{path}:1: column {names.index('') + 1} has no name; a header is expected")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{path}:1: two columns are called {twice!r}")
    return names


def _kind(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "null"
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
    return kinds.get(type(value), f"the number {value!r}")


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(names) or "none"
