"""Which words of an answer are those that its score counts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from retrieval_heads.scoring import tokens, words_of

PLAIN, ECHO, MATCH = 0, 1, 2
"""A word that is not expected; one that is expected but stands in the question as well; one that is expected."""

Piece = tuple[int, str]


def marked(answer: str, reference: str, question: str) -> list[Piece]:
    """Cut an answer into pieces, each a run of text of one mark.

    Args:
        answer: What the model said.
        reference: What it should have said.
        question: What it was asked.

    Returns:
        (mark, text) in order; joined, the texts are the answer.
    """
    expected, asked = set(tokens(reference)), set(tokens(question))
    return [
        (mark, "".join(text for _, text in run))
        for mark, run in groupby(filter(_has_text, _pieces(answer, expected, asked)), key=lambda piece: piece[0])
    ]


def _has_text(piece: Piece) -> bool:
    return bool(piece[1])


def _pieces(answer: str, expected: set[str], asked: set[str]) -> Iterator[Piece]:
    done = 0
    for start, end, word in words_of(answer):
        if word in expected:
            yield PLAIN, answer[done:start]
            yield (ECHO if word in asked else MATCH), answer[start:end]
            done = end
    yield PLAIN, answer[done:]
