"""The mark by which our pictures and pages are known: what a command draws replaces nobody else's file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from retrieval_heads.errors import ConfigError
from retrieval_heads.runs.folder import may_hold_pictures

NAME: Final = "retrieval-heads"
"""What a PNG has under `Software`, an SVG as its creator, and a page as its generator."""

_HEAD = 1 << 16
"""Bytes at the start of a file that hold its mark."""
_OURS = re.compile(
    rb'Software\0%(name)b|<dc:title>%(name)b</dc:title>|<meta name="generator" content="%(name)b">'
    % {b"name": NAME.encode()}
)
_OF_BEFORE = re.compile(rb"Software\0Matplotlib|<dc:title>Matplotlib| retrieval heads</title>")
"""What 0.1.0 wrote without a mark, and what others draw with matplotlib."""


def refuse_foreign(paths: Iterable[Path]) -> None:
    """See that nothing stands where pictures and pages are about to be written but earlier ones of ours.

    Those of before, which have no mark, are known by their folder: a run is in it.

    Args:
        paths: The files to be written.

    Raises:
        ConfigError: Something else stands there.
    """
    for path in paths:
        if not _is_replaceable(path):
            raise ConfigError(
                f"{path}: stands there already, and is no picture or page of ours; "
                "move it away, or give --output a folder of its own"
            )


def _is_replaceable(path: Path) -> bool:
    if not os.path.lexists(path):
        return True
    if path.is_dir():
        return False
    if path.exists() and not path.is_file():
        return True  # a pipe or a device is written to as it is
    try:
        with path.open("rb") as file:
            start = file.read(_HEAD)
    except OSError:
        return False
    return bool(_OURS.search(start) or (_OF_BEFORE.search(start) and may_hold_pictures(path.parent)))
