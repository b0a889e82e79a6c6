"""Reading what users name: a path, a regular file, a document of JSON.

Only regular files are read: a FIFO has no end until somebody writes, and `/dev/zero` has none at all. JSON is read
strictly: each key once, finite numbers of at most 64 bits, no more brackets in each other than any file of ours has.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from retrieval_heads.errors import UnreadableFile

DEEPEST: Final = 50
"""Lists and mappings that may stand in each other, in JSON and YAML; files of ours have eight."""

LARGEST: Final = 1 << 63
"""Whole numbers are below this."""

_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def path_of(text: str) -> Path:
    """A path that a user typed, `~` replaced by the home folder.

    Raises:
        UnreadableFile: It can be the path of no file.
    """
    if not text.strip():
        raise UnreadableFile(f"a path is expected, found {text!r}")
    if "\0" in text:
        raise UnreadableFile(f"{text!r} is no path: it holds a NUL")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        raise UnreadableFile(f"{text!r} is no path here: there is no user {user.removeprefix('~')!r}") from None
    try:
        path.exists()
    except OSError as error:  # a path that is too long
        raise UnreadableFile(f"{text!r} is no path here ({error.strerror})") from None
    return path


def state_of(path: str | Path) -> tuple[int, int]:
    """When a file was written last, in ns, and its bytes: what is kept of a file is kept under its state.

    Raises:
        UnreadableFile: There is none.
    """
    try:
        state = Path(path).stat()
    except OSError as error:
        raise UnreadableFile(f"{path}: cannot be read ({error.strerror})") from None
    return state.st_mtime_ns, state.st_size


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        UnreadableFile: There is no such file, it is no regular one, or it cannot be read.
    """
    try:
        # A FIFO that takes the file's place after it was looked at is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            with os.fdopen(descriptor, "rb") as file:
                return file.read()
        os.close(descriptor)
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    kind = (
        "a folder"
        if stat.S_ISDIR(mode)
        else "a FIFO"
        if stat.S_ISFIFO(mode)
        else "a device"
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        else "no file"
    )
    raise UnreadableFile(f"{path}: cannot be read: it is {kind}, a regular file is expected")


def read_text(path: Path) -> str:
    """The text of a regular file in UTF-8, each line end as a line feed.

    Raises:
        UnreadableFile: It cannot be read, or is no UTF-8.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"{path} is not UTF-8 text (byte {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_object(path: Path) -> dict[str, object]:
    """The one object of a JSON file.

    Raises:
        UnreadableFile: The file cannot be read, or holds no JSON object.
    """
    data = parse_json(read_text(path), str(path))
    if not isinstance(data, dict):
        raise UnreadableFile(f"{path}: a JSON object is expected, found {type(data).__name__}")
    return data


def parse_json(text: str, where: str, expected: str = "a JSON object") -> object:
    """A document of JSON.

    Args:
        text: The document.
        where: Names it in errors, such as `results.jsonl:3`.
        expected: What it is to be, for errors.

    Raises:
        UnreadableFile: It is no JSON, or holds what no file of ours does.
    """
    if _is_deeper(text, DEEPEST):
        raise UnreadableFile(f"{where}: more than {DEEPEST} lists and objects stand in each other")
    try:
        data = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole_number,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
    except ValueError as error:
        raise UnreadableFile(f"{where}: not {expected} ({error})") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(data, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UnreadableFile(f"{where}: a text in it is no Unicode: it holds half of a surrogate pair") from None
    return data


def _is_deeper(text: str, most: int) -> bool:
    if text.count("[") + text.count("{") <= most:
        return False
    depth = 0
    for found in _BRACKET.finditer(text):
        if found[0] in "[{":
            depth += 1
            if depth > most:
                return True
        elif found[0] in "]}":
            depth -= 1
    return False


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return made


def _whole_number(text: str) -> int:
    # int() itself refuses 4,300 digits.
    if len(text) > 20 or abs(int(text)) >= LARGEST:
        raise ValueError(f"a number of {len(text.lstrip('-'))} digits is too large")
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"a value is {text.lower()}, not a number; run the cell again")
