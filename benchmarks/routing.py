"""On paper: a grid of long cells on more and more replicas, by the cost model that shares them out. Nothing is asked.

    python benchmarks/routing.py        # 1,000 cells of 128k on 1, 8 and 64 replicas; docs/performance.md has the table

A cost is tokens to compute where a prefix cache holds everything (`retrieval_heads.engine.routing`). Seconds are those
tokens at the rate of one measured prompt of that length, and the start of an engine; a token late in a prompt takes
longer than an early one, so that work behind deep needles is told too cheap. `shared` is the haystack before needles,
which cells of one seed have in common, `own` what stands behind each needle, `answers` questions and answers; `twice`
is what replicas compute together that one alone would not; `to one` how many times sooner they have computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from retrieval_heads.engine.routing import ANSWER, Asked, computed_tokens, share_out


@dataclass(frozen=True)
class Arguments:
    """What is counted."""

    tokens: int = 131072
    """Of each cell."""
    replicas: tuple[int, ...] = (1, 8, 64)
    grids: tuple[str, ...] = ("1x100x10", "10x10x10", "100x1x10", "1000x1x1")
    """Seeds, needles and depths of each."""
    prompt_seconds: float = 11.7
    """Of a prompt of that length: Qwen3-8B's shape on an H200, docs/performance.md, Growth."""
    start_seconds: float = 35.6
    """Of a traced engine: docs/performance.md, the same machine."""


@dataclass(frozen=True)
class Counted:
    """Tokens to compute."""

    shared: int
    own: int
    answers: int

    @property
    def all(self) -> int:
        return self.shared + self.own + self.answers


def main(asked: Arguments) -> None:
    print(
        "| seeds × needles × depths | replicas | million tokens: shared, own, answers | twice | longest to mean "
        "| to one | minutes | of these starting |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for grid in asked.grids:
        seeds, needles, depths = map(int, grid.split("x"))
        cells = _cells(asked.tokens, seeds, needles, depths)
        alone = _counted(cells).all
        for replicas in asked.replicas:
            chosen = share_out(cells, [0] * replicas)
            parts = [
                [cell for cell, whose in zip(cells, chosen, strict=True) if whose == number]
                for number in range(replicas)
            ]
            counted = [_counted(part) for part in parts]
            total, longest = sum(one.all for one in counted), max(one.all for one in counted)
            minutes = (longest * asked.prompt_seconds / asked.tokens + asked.start_seconds) / 60
            shares = ", ".join(
                f"{sum(getattr(one, name) for one in counted) / 1e6:.2f}" for name in ("shared", "own", "answers")
            )
            print(
                f"| {seeds} × {needles} × {depths} | {replicas} | {shares} | {total / alone - 1:.0%} | "
                f"{longest * replicas / total:.2f} | {alone / longest:.1f} × | {minutes:.1f} | "
                f"{asked.start_seconds / 60 / minutes:.0%} |"
            )


def _cells(tokens: int, seeds: int, needles: int, depths: int) -> list[Asked]:
    """A grid, in the order in which a suite asks it. Depths are even, the first and the last included."""
    at = [50.0] if depths == 1 else [100 * number / (depths - 1) for number in range(depths)]
    return [
        Asked(f"seed {seed}", f"needle {needle}", round(tokens * depth / 100), tokens)
        for seed in range(seeds)
        for needle in range(needles)
        for depth in at
    ]


def _counted(cells: Sequence[Asked]) -> Counted:
    prefixes = {cell.prefix for cell in cells}
    groups = [[cell for cell in cells if cell.prefix == prefix] for prefix in prefixes]
    shared = sum(max(cell.insertion for cell in group) for group in groups)
    answers = ANSWER * len(cells)
    return Counted(shared, sum(map(computed_tokens, groups)) - shared - answers, answers)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
