"""The kinds of suite: what is measured over its cells."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["niah", "detect", "ablate", "compress"]
KINDS: tuple[str, ...] = get_args(Kind)
