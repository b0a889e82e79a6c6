"""HeadKV's file of heads: that of arXiv 2404.15574 in one line, with every head in its place.

Its loader (FYYFU/HeadKV, `headkv/snapkv_utils.py`) reads the first line, pays no heed to the heads' names, divides
the means by their sum, raises them to a power and puts them into a rectangle layers × query heads: so every head of
every layer must stand there, layer by layer, and none below 0.
"""

from __future__ import annotations

import json

from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.formats.figures import figures_by_head
from retrieval_heads.heads.formats.format import HeadFile, Output, Source, Wanted
from retrieval_heads.heads.formats.head_score import HeadScoreJson
from retrieval_heads.heads.formats.rectangle import full_rows
from retrieval_heads.heads.order import order_of


class HeadKv(HeadScoreJson):
    """The file from which HeadKV takes each head's share of the cache."""

    name = "headkv"
    file = "headkv.json"
    score = "r2"

    def recognises(self, source: Source) -> bool:
        """Never: it looks like the file of arXiv 2404.15574, and is read as that unless it is named."""
        return False

    def output(self, heads: HeadFile, wanted: Wanted) -> Output:
        """One line, every head of every layer; 0 for one without a score."""
        figures = figures_by_head(heads, wanted.score)
        numbers, width, missing = full_rows(heads.table)
        below = sum(value < 0 for each in figures.values() for value in each)
        if not any(sum(each) > 0 for each in figures.values()):
            raise ConfigError(f"--to headkv: no head has a {wanted.score} above 0, and HeadKV divides by their sum")
        content = {
            f"{layer}-{head}": [max(0.0, value) for value in figures.get((layer, head), [0.0])]
            for layer in numbers
            for head in range(width)
        }
        unscored = len(content) - len(figures)
        notes = [order_of(heads.table, wanted.score).note, *missing]
        notes += [f"{unscored} heads without a score are written as 0"] if unscored else []
        notes += [f"{below} figures below 0 are written as 0"] if below else []
        return Output({self.file: (json.dumps(content) + "\n").encode()}, tuple(notes))


FORMAT = HeadKv()
