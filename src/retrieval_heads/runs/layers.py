"""The layers of a model as `run.json` and head files hold them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from retrieval_heads.errors import ResultsError

MOST = 4096
"""Layers of a model, and heads of a layer: beyond it a file is broken, and a table of it would fill the memory."""


@dataclass(frozen=True)
class Layer:
    """A layer that mixes tokens.

    Args:
        path: Its module's path.
        number: Its number in the model.
        heads: Its query heads (value heads of a recurrence); 0 where it cannot be scored.
        sliding_window: Keys that a row sees; `None` is all.
        kind: Of attention: `attention`, `latent attention`, `gated delta`; of a layer that cannot be scored, its class.
        lacks: What its rows do not give of what scores need (`heads.looks.NEEDS`), and why.
        kv_heads: How many KV heads its query heads share; `None` where they have no keys of their own, and in files of
            before.
    """

    path: str
    number: int
    heads: int
    sliding_window: int | None = None
    kind: str = "attention"
    lacks: Mapping[str, str] = field(default_factory=dict)
    kv_heads: int | None = None

    def has(self, needs: frozenset[str]) -> bool:
        """Whether its heads have a score that needs these."""
        return bool(self.heads) and not needs & self.lacks.keys()


def layer_fields(layer: Layer) -> dict[str, Any]:
    """A layer as files hold it."""
    return {name: value for name, value in vars(layer).items() if name not in ("lacks", "kv_heads") or value}


def read_layer(layer: object, where: str) -> Layer:
    """A layer as `run.json` and `heads.json` hold it.

    Raises:
        ResultsError: It is none.
    """
    try:
        made = Layer(**layer if isinstance(layer, dict) else {})
    except TypeError:
        raise ResultsError(f"{where}: layers: {layer!r} is no layer; path, number and heads are expected") from None
    is_text = isinstance(made.path, str) and isinstance(made.kind, str) and _are_reasons(made.lacks)
    for value in (made.number, made.heads, made.sliding_window or 0, made.kv_heads or 0):
        if type(value) is not int or value < 0:
            is_text = False
    if made.kv_heads and (made.kv_heads > made.heads or made.heads % made.kv_heads):
        raise ResultsError(f"{where}: layers: {layer!r} is no layer; its KV heads do not divide its heads")
    if not is_text or made.number >= MOST or made.heads > MOST:
        raise ResultsError(
            f"{where}: layers: {layer!r} is no layer; numbers of layers and heads are whole and below {MOST}"
        )
    return made


def _are_reasons(lacks: object) -> bool:
    return isinstance(lacks, dict) and all(isinstance(text, str) for pair in lacks.items() for text in pair)


def named(numbers: Sequence[int]) -> str:
    """`layer 4`, or `layers 0–2, 4–6` of numbers that rise."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda at: at[1] - at[0])]
    told = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return f"{'layers' if len(numbers) > 1 else 'layer'} {told}"


def written_number(text: str) -> int:
    """A number of a layer or head as files write it.

    Raises:
        ValueError: It is none.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(text)
    return int(text)


def layer_number(path: str) -> int:
    """The first part of a module path that is a number, as in `model.layers.3.self_attn.attn`."""
    for part in path.split("."):
        if part.isdigit():
            return written_number(part)
    raise ValueError(path)
