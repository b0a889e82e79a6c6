"""Which words of an answer are those that its score counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby

from retrieval_heads.scoring import best_key_words, key_words_of, tokens, words_of
from retrieval_heads.scoring.settings import KEY_WORDS

PLAIN, ECHO, MATCH = 0, 1, 2
"""A word that is not expected; one that is expected but is asked too, or is a function word; one that tells."""

Piece = tuple[int, str]


def marked(answer: str, references: str | Sequence[str], question: str, metric: str = "") -> list[Piece]:
    """Cut an answer into pieces, each a run of text of one mark.

    Args:
        answer: What the model said.
        references: What it should have said; of several, the words of the one that it says most of are marked.
        question: What it was asked.
        metric: The score that decides: `key_words` counts other words than ROUGE.

    Returns:
        (mark, text) in order; joined, the texts are the answer.
    """
    return list(_marked(answer, (references,) if isinstance(references, str) else tuple(references), question, metric))


@lru_cache(maxsize=1024)  # what a model finds it says in the same words in most cells
def _marked(answer: str, references: tuple[str, ...], question: str, metric: str) -> tuple[Piece, ...]:
    expected = {word for reference in references for word in tokens(reference)}
    telling = {word for each in references for key in key_words_of(each, question) for word in tokens(key)} or expected
    spans = best_key_words(answer, references, question).spans if metric == KEY_WORDS else None
    return tuple(
        (mark, "".join(text for _, text in run))
        for mark, run in groupby(
            filter(_has_text, _pieces(answer, expected, telling - set(tokens(question)), spans)),
            key=lambda piece: piece[0],
        )
    )


def _has_text(piece: Piece) -> bool:
    return bool(piece[1])


def _pieces(
    answer: str, expected: set[str], telling: set[str], spans: Sequence[tuple[int, int]] | None
) -> Iterator[Piece]:
    done = 0
    for start, end, word in words_of(answer):
        if spans is not None:
            counts = any(first < end and start < last for first, last in spans)
            mark = MATCH if counts else ECHO if word in expected and word not in telling else PLAIN
        else:
            mark = MATCH if word in telling else ECHO if word in expected else PLAIN
        if mark != PLAIN:
            yield PLAIN, answer[done:start]
            yield mark, answer[start:end]
            done = end
    yield PLAIN, answer[done:]
