"""Conversations of a file: the columns of OpenAI's dataset openai/mrcr, or others that a suite names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_heads.errors import ConfigError
from retrieval_heads.reading import parse_json
from retrieval_heads.runs.place import Place
from retrieval_heads.settings.section import Said, Section
from retrieval_heads.table import Row, Table, read_table
from retrieval_heads.tasks.mrcr.conversation import Conversation, Message

ROW = "row"
_ROLES = ("system", "user", "assistant")
_NAME = re.compile(r"[^\w.-]+")


class Columns(Section):
    """Which column is what."""

    messages: Said = "prompt"
    """A list of messages with `role` and `content`, the question last; or its JSON as a text."""
    answer: Said = "answer"
    """The expected answer, the prefix included."""
    prefix: Said = "random_string_to_prepend"
    """The letters that an answer must begin with."""
    requests: Said = "n_needles"
    """How many requests are alike."""
    name: Said | None = None
    """Names the row in items; `row_1`, ... where it is left out."""


@dataclass(frozen=True)
class Asked:
    """A row."""

    messages: list[Message]
    answer: str
    prefix: str
    requests: int

    def conversation(self) -> Conversation:
        """What its prompt holds, and those replies to the same request as the asked one."""
        asked = self.answer.removeprefix(self.prefix)
        at = next((at for at, one in enumerate(self.messages) if one["content"].strip() == asked.strip()), None)
        if at is None:
            return Conversation(self.messages, asked)
        request = self.messages[at - 1]["content"] if at else ""
        like = [
            reply["content"]
            for number, (said, reply) in enumerate(zip(self.messages, self.messages[1:], strict=False), start=1)
            if number != at and said["content"] == request and reply["role"] == "assistant"
        ]
        return Conversation(self.messages, asked, tuple(like))


@dataclass(frozen=True)
class Rows:
    """A file's rows by their names, and its SHA-256."""

    rows: Mapping[str, Asked]
    hash: str


def rows_of(file: str, columns: Columns) -> Rows:
    """The rows of a file.

    Raises:
        ConfigError: It cannot be read, or a row is no conversation: which file, line, row and column.
    """
    return _parsed(read_table(Path(file)), columns.model_dump_json())


def row_of(file: str, columns: Columns, place: Place) -> Asked:
    """The row that is asked at a place.

    Raises:
        ConfigError: As `rows_of`; or the file holds no such row any more.
    """
    rows, name = rows_of(file, columns).rows, str(place.get(ROW))
    if name not in rows:
        raise ConfigError(f"{file}: holds no row {name}; it has {len(rows)} rows")
    return rows[name]


_kept: dict[tuple[str, str], Rows] = {}


def _parsed(table: Table, said: str) -> Rows:
    key = (table.hash, said)
    if key not in _kept:
        _kept.clear()
        columns = Columns.model_validate_json(said)
        for column in (columns.messages, columns.answer, columns.prefix, columns.requests):
            table.require(column)
        rows: dict[str, Asked] = {}
        for row in table.rows:
            told = _NAME.sub("_", row.text(columns.name)).strip("_") if columns.name else ""
            name = told or f"row_{row.number}"
            if name in rows:
                row.refuse(columns.name or "name", f"{name!r} is the name of another row too")
            rows[name] = _asked(row, columns)
        _kept[key] = Rows(rows, table.hash)
    return _kept[key]


def _asked(row: Row, columns: Columns) -> Asked:
    answer, prefix, count = row.text(columns.answer), row.text(columns.prefix), row.text(columns.requests)
    if not answer.startswith(prefix):
        row.refuse(columns.answer, f"it does not begin with the row's {columns.prefix}, {prefix!r}")
    if not answer.removeprefix(prefix).strip():
        row.refuse(columns.answer, f"it holds nothing behind the row's {columns.prefix}, {prefix!r}")
    if not re.fullmatch(r"[0-9]{1,4}", count) or not 1 <= int(count) <= 1000:
        row.refuse(columns.requests, f"a count of requests, 1 to 1000, is expected, found {count[:40]!r}")
    return Asked(_messages(row, columns.messages), answer, prefix, int(count))


def _messages(row: Row, column: str) -> list[Message]:
    value: Any = row.values[column] if isinstance(row.values.get(column), list) else row.text(column)
    if isinstance(value, str):
        value = parse_json(value, f"{row.where}, column {column!r}", "a JSON list of messages")
    messages = []
    for number, message in enumerate(value if isinstance(value, list) else [], start=1):
        role, content = (message.get(key) for key in ("role", "content")) if isinstance(message, dict) else (None, None)
        if role not in _ROLES or not isinstance(content, str):
            row.refuse(column, f"message {number}: role ({', '.join(_ROLES)}) and content are expected")
        messages.append({"role": str(role), "content": content})
    if not messages or messages[-1]["role"] != "user":
        row.refuse(column, "a list of messages is expected that ends with the user's")
    return messages
