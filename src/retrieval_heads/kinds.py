"""The kinds of suite; beside `config`, which reads them, so that a YAML file can be recognised without loading that."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["niah", "detect", "ablate"]
KINDS: tuple[str, ...] = get_args(Kind)

_ASKS = re.compile(r"^(needles|from_results):", re.MULTILINE)
_KIND = re.compile(r"^kind:[ \t]*[\"']?([\w-]+)", re.MULTILINE)


def is_suite(path: Path) -> bool:
    """Whether a YAML file says `kind:` and one of ours, or something so close that it is a slip, or has a suite's keys.

    A run folder's `config.yaml` says all that a suite does and is none.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    found = _KIND.search(text)
    is_like_one = bool(difflib.get_close_matches(found[1], KINDS, n=1)) if found else bool(_ASKS.search(text))
    return is_like_one and not is_resolved(path)


def kind_of(path: Path) -> str | None:
    """What a YAML file says of its kind, without reading it as YAML."""
    found = _KIND.search(path.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else None


def is_resolved(path: Path) -> bool:
    """Whether a file is the `config.yaml` of a run's folder."""
    return path.name == "config.yaml" and (path.parent / ".lock").exists()
