"""ROUGE-1, ROUGE-L and substring of an answer against a reference, for every script.

ROUGE is google-research's `rouge-score`, stemmed, with a tokenizer of our own: its default drops every letter
outside a–z, so that a Chinese or Cyrillic needle would always score 0.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import regex

from retrieval_heads.errors import RetrievalHeadsError

# Scripts written without spaces count one character as one word, and so do symbols such as emoji.
_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
    r"|(?:(?![\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])[\p{L}\p{N}\p{M}])+"
    r"|\p{So}"
)


def rouge_scores(answer: str, reference: str, question: str) -> dict[str, float]:
    """ROUGE and substring of an answer, 0–1.

    Args:
        answer: What the model said.
        reference: What it should have said.
        question: What it was asked; words that stand in it are left out of the `_novel` scores, because an
            answer that only echoes the question would be credited for them.

    Returns:
        `rouge1_*` and `rougeL_*` with `precision`, `recall` and `f`, each also as `_novel`, and `substring`:
        1 where the reference's words stand in the answer one after the other, as they are spelt.

    Raises:
        RetrievalHeadsError: Every word of the reference stands in the question, so that nothing is left to
            tell a retrieved answer by.
    """
    words, expected, asked = tokens(answer), tokens(reference), set(tokens(question))
    novel = [word for word in expected if word not in asked]
    if not novel:
        raise RetrievalHeadsError(
            f"every word of the expected answer {reference!r} stands in the question; ask without naming the answer"
        )
    scores = _rouge(words, expected, "")
    scores |= _rouge([word for word in words if word not in asked], novel, "_novel")
    scores["substring"] = float(words_in_line(reference) in words_in_line(answer))
    return scores


def words_of(text: str) -> Iterator[tuple[int, int, str]]:
    """Where each word of a text stands, `[start, end)`, and the token that `tokens` makes of it."""
    for match in _WORD.finditer(text):
        if made := _tokens_of(match[0]):
            yield match.start(), match.end(), made[0]


def words_in_line(text: str) -> str:
    """A text's words as they are spelt, case folded, a space around each: a run of words is a part of another's."""
    return f" {' '.join(_words(text))} "


def load_rouge() -> None:
    """Import what scoring needs, a second's work, now rather than at the first answer.

    Raises:
        RetrievalHeadsError: It cannot be imported.
    """
    _stemmer()
    _scorer()


def tokens(text: str) -> list[str]:
    """Lower-case words of a text, Porter-stemmed where they are Latin and longer than three letters."""
    return [_stem(word) if len(word) > 3 and word.isascii() else word for word in _words(text)]


@lru_cache(maxsize=65536)
def _tokens_of(word: str) -> list[str]:
    return tokens(word)


def _words(text: str) -> list[str]:
    found: list[str] = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return found


@contextmanager
def _importing() -> Iterator[None]:
    """Tell in a sentence what others' imports fail by, such as a full disk."""
    try:
        yield
    except (ImportError, OSError) as error:
        raise RetrievalHeadsError(f"answers cannot be scored: rouge-score cannot be imported ({error})") from None


@cache
def _stem(word: str) -> str:
    stemmed: str = _stemmer().stem(word)
    return stemmed


@cache
def _stemmer() -> Any:
    with _importing():
        from nltk.stem import porter  # what rouge-score itself stems with; imported late for its start-up time

    return porter.PorterStemmer()


class _Split:
    """A tokenizer for rouge-score that takes words already found."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


@cache
def _scorer() -> Any:
    with _importing():
        from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], tokenizer=_Split())


def _rouge(words: list[str], expected: list[str], suffix: str) -> dict[str, float]:
    found = _scorer().score(" ".join(expected), " ".join(words))
    return {
        f"{name}_{part}{suffix}": float(value)
        for name, score in found.items()
        for part, value in (("precision", score.precision), ("recall", score.recall), ("f", score.fmeasure))
    }
