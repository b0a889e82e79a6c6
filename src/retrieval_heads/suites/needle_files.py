"""Needles from a table: each row is a needle, with its question and what else the file has of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from retrieval_heads.errors import ConfigError
from retrieval_heads.prompts.haystack import row_source
from retrieval_heads.prompts.settings import Needle, NeedleFile
from retrieval_heads.reading import path_of
from retrieval_heads.runs.record import first_mistake
from retrieval_heads.table import Row, Table, read_table

NAME = re.compile(r"[^\w.-]+")
"""What a needle's name holds no more of: a name is part of a pytest node id."""


def read_needles(section: NeedleFile, base: Path) -> tuple[list[Needle], str]:
    """The needles of a file.

    Args:
        section: Names the file and its columns.
        base: The folder of the suite, to which the file is relative where it is not to the working directory.

    Returns:
        The needles in the file's order, each with a name, and the SHA-256 of the file.

    Raises:
        ConfigError: The file cannot be read, or a row is no needle: which file, line, row and column.
    """
    path = located(section.file, base)
    table = read_table(path)
    columns = section.columns.found_in(table.columns)
    for named in columns.values():
        for column in [named] if isinstance(named, str) else named:
            table.require(column)
    return list(_named(table, columns)), table.hash


def located(file: str, base: Path) -> Path:
    """A file that a suite names: relative to the working directory, or else to the suite's folder."""
    path = path_of(file)
    return path if path.exists() or path.is_absolute() else base / path


def _named(table: Table, columns: dict[str, str | list[str]]) -> Iterator[Needle]:
    names: dict[str, Row] = {}
    for row in table.rows:
        needle = _needle(row, columns)
        name = NAME.sub("_", needle.name or "").strip("_") or f"row_{row.number}"
        if name in names:
            row.refuse(str(columns.get("name", "name")), f"{name!r} is the name of row {names[name].number} too")
        names[name] = row
        yield needle.model_copy(update={"name": name})


def _needle(row: Row, columns: dict[str, str | list[str]]) -> Needle:
    fields: dict[str, object] = {}
    for key, column in columns.items():
        if key == "haystack":
            assert isinstance(column, str)
            row.text(column)
            fields[key] = row_source(row.path, row.number, column)
        elif key in ("answer", "distractors"):
            fields[key] = row.texts(column)
        else:
            fields[key] = row.text(str(column))
    try:
        return Needle.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"{row.where}: {first_mistake(error)}") from None
