"""Writing files that nobody finds half-written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from retrieval_heads.errors import FileError

_PART = ".{name}.{process}.part"
_LONGEST_NAME = 200
"""Bytes of a name that leave room for the rest of a part's: file systems take 255."""


def write_whole(path: Path, content: bytes, *, is_private: bool = False) -> None:
    """Write a file whole or not at all; its folder is made, but for a private file, whose folder was made private.

    Of several processes that write it the last one wins.

    Args:
        path: The file; a pipe or a device, such as `/dev/stdout`, is written to as it is.
        content: All of it.
        is_private: Nobody else may read it (mode 0600).

    Raises:
        FileError: It cannot be written; what stood there before stays.
    """
    name = os.fsdecode(os.fsencode(path.name)[:_LONGEST_NAME])
    part = path.with_name(_PART.format(name=name, process=os.getpid()))
    try:
        if not is_private:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(content)
            return
        with suppress(FileNotFoundError):
            part.unlink()  # of a process of the same number that was killed
        with open(part, "xb", opener=_private if is_private else None) as file:
            file.write(content)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise FileError.of(path, error) from None


def sweep_parts(folder: Path) -> None:
    """Remove what killed writers left half-written in a folder that nobody else writes to."""
    for part in folder.glob(_PART.format(name="*", process="*")):
        with suppress(OSError):
            part.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
