"""An order of all heads in which nothing is left to chance, and where its ties begin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from retrieval_heads.heads.table import DIGITS, Head, HeadTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIE_BREAKERS: Final = ("mass", "qr", "query")
"""Scores that put tied heads in order, as far as a file has them."""


@dataclass(frozen=True)
class Order:
    """Every scored head, best first.

    Args:
        heads: Each (layer number, head).
        ties_from: The first place, counted from 1, whose head ties with another; `None` where none do.
        rule: How ties were broken, for people.
    """

    heads: tuple[Head, ...]
    ties_from: int | None
    rule: str

    @property
    def note(self) -> str:
        """Where the ties begin, in a sentence."""
        if self.ties_from is None:
            return f"no two of the {len(self.heads)} heads tie"
        return f"ties begin at place {self.ties_from} of {len(self.heads)}; they are in the order of {self.rule}"

    def to_json(self) -> dict[str, Any]:
        """As files hold it."""
        return {"ties_begin_at_place": self.ties_from, "places": len(self.heads), "ties_in_the_order_of": self.rule}


def order_of(table: HeadTable, score: str) -> Order:
    """Order the heads of a table.

    Scores are compared as head files store them, to six digits; what ties is put in the order of `TIE_BREAKERS`, then
    of layer and head.
    """
    breakers = [name for name in TIE_BREAKERS if name in table.estimates and name != score]
    means = {name: estimate.mean for name, estimate in table.estimates.items()}
    keys = {
        (layer.number, head): tuple(_descending(means, name, row, head) for name in (score, *breakers))
        for row, layer in enumerate(table.layers)
        for head in range(layer.heads)
        if not math.isnan(means[score][row, head])
    }
    heads = sorted(keys, key=lambda head: (keys[head], head))
    scores = [keys[head][0] for head in heads]
    return Order(tuple(heads), _first_tie(scores), ", then ".join([*breakers, "layer and head"]))


def _descending(means: Mapping[str, NDArray[Any]], name: str, row: int, head: int) -> float:
    value = float(means[name][row, head])
    return math.inf if math.isnan(value) else -round(value, DIGITS)


def _first_tie(scores: Sequence[float]) -> int | None:
    return next((place for place, (one, other) in enumerate(pairwise(scores), start=1) if one == other), None)
