"""`retrieval-heads heads table`: the best heads of a file by every score, query heads or KV heads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from retrieval_heads.commands.head_files import head_file
from retrieval_heads.errors import ConfigError, printable
from retrieval_heads.heads.formats import read_heads
from retrieval_heads.heads.groups import by_kv_head
from retrieval_heads.heads.order import order_of
from retrieval_heads.heads.table import HeadTable


@dataclass(frozen=True)
class Table:
    """Print the best heads of a file, each with all its scores.

    Example: retrieval-heads heads table reports/latest --kv-heads 3 --score mass
    """

    heads: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or any file of heads."""
    kv_heads: int | None = None
    """Show KV heads, so many a layer, each with the greatest of its query heads by each score."""
    score: str | None = None
    """The score to rank by; left out, the one that the file's heads are ranked by."""
    top: int = 10
    """How many heads."""

    def run(self) -> None:
        """Print the table, and where ties begin."""
        path = head_file(self.heads)
        file = read_heads(path)
        if self.top < 1:
            raise ConfigError(f"--top {self.top}: at least 1 head is expected")
        if file.kv_heads and self.kv_heads is not None:
            raise ConfigError(f"--kv-heads {self.kv_heads}: {path} holds KV heads already")
        table = file.table if self.kv_heads is None else by_kv_head(file.table, self.kv_heads)
        score = self.score or table.ranking
        if score not in table.estimates:
            raise ConfigError(f"--score {score}: {path} has no such score; it has {', '.join(table.estimates)}")
        for line in lines(table, score, self.top, is_of_kv_heads=file.kv_heads or self.kv_heads is not None):
            print(printable(line))


def lines(table: HeadTable, score: str, top: int, *, is_of_kv_heads: bool) -> Iterator[str]:
    """The table.

    Args:
        table: The heads.
        score: What they are ranked by, the first column.
        top: How many.
        is_of_kv_heads: What they are called.
    """
    names = [score, *(name for name in table.estimates if name != score)]
    widths = {name: max(8, len(name) + 2) for name in names}
    yield f"{'KV head' if is_of_kv_heads else 'head':>8}" + "".join(f"{name:>{widths[name]}}" for name in names)
    rows = {layer.number: row for row, layer in enumerate(table.layers) if layer.heads}
    order = order_of(table, score)
    for layer, head in order.heads[:top]:
        means = {name: float(table.estimates[name].mean[rows[layer], head]) for name in names}
        told = {name: "–" if math.isnan(mean) else f"{mean:.3f}" for name, mean in means.items()}
        yield f"{f'{layer}-{head}':>8}" + "".join(f"{told[name]:>{widths[name]}}" for name in names)
    yield order.note
