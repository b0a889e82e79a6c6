"""A head score of another distribution: how much of its attention a head has on the token before each row's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retrieval_heads.heads import score
from retrieval_heads.heads.looks import Look, Rows, Seen
from retrieval_heads.heads.score import HeadScore
from retrieval_heads.registry import Registry


class Predecessor(HeadScore):
    """Every row of the answer looks at another span: the token just before its own."""

    name = "predecessor_mass"
    definition = "attention weight on the token before each row's own, the greatest of the answer's steps"
    label = "predecessor (token before)"

    def looks(self, rows: Rows) -> Sequence[Look]:
        first, end = rows.answer_rows
        return [Look((row, row + 1), (row - 1, row)) for row in range(first, end)]

    def figure(self, seen: Seen) -> Any:
        return seen.weight.where(seen.counts[:, :, None], 0.0).amax(2)


SCORE = Predecessor()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """An entry point of another distribution, as an installer leaves it, and a registry that has not looked yet.

    Args:
        folder: Where distributions lie.
        monkeypatch: Of the test, after which it is gone.
        point: The line of the entry point.
    """
    info = folder / f"foreign_{len(list(folder.iterdir()))}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {info.name.partition('-')[0]}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{score.GROUP}]\n{point}\n")
    monkeypatch.syspath_prepend(folder)
    fresh = Registry[HeadScore](score.GROUP, "head score", score.BUILT_IN)
    monkeypatch.setattr(score.SCORES, "__dict__", vars(fresh))
