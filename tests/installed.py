"""What is installed beside the project is read once by a process and its copies.

pytest reads all distributions twice as it starts, and each registry of ours once more: hundreds of small files, a fifth
of a short session. No test changes what is installed.
"""

from __future__ import annotations

import sys
from importlib.metadata import PathDistribution
from typing import Any


def read_once(name: str) -> None:
    """Have a property of distributions keep what it finds; those that tests write themselves are read as ever."""
    read = getattr(PathDistribution, name).fget
    known: dict[str, Any] = {}

    def found(self: Any) -> Any:
        path = str(self._path)
        if not path.startswith(sys.prefix):
            return read(self)
        if path not in known:
            known[path] = read(self)
        return known[path]

    setattr(PathDistribution, name, property(found))


read_once("entry_points")
read_once("files")
