"""ROUGE-1, ROUGE-L and substring of an answer against a reference, for every script.

ROUGE is that of google-research's `rouge-score` (Lin, ROUGE: a package for automatic evaluation of summaries, 2004),
stemmed, with words of our own: those of its tokenizer drop every letter outside a–z, so that a Chinese or Cyrillic
needle would always score 0. On English both are equal; the tests compare them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import regex

from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.scoring.porter import stem

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


def tokens(text: str) -> list[str]:
    """Lower-case words of a text, Porter-stemmed where they are Latin and longer than three letters."""
    return [_stemmed(word) if len(word) > 3 and word.isascii() else word for word in _words(text)]


@lru_cache(maxsize=65536)
def _tokens_of(word: str) -> list[str]:
    return tokens(word)


def _words(text: str) -> list[str]:
    found: list[str] = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return found


@lru_cache(maxsize=65536)
def _stemmed(word: str) -> str:
    return stem(word)


def _rouge(words: Sequence[str], expected: Sequence[str], suffix: str) -> dict[str, float]:
    shared = {"rouge1": (Counter(words) & Counter(expected)).total(), "rougeL": _longest_common(expected, words)}
    found: dict[str, float] = {}
    for name, count in shared.items():
        precision, recall = count / max(len(words), 1), count / max(len(expected), 1)
        f = 2 * precision * recall / (precision + recall) if count else 0.0
        found |= {f"{name}_precision{suffix}": precision, f"{name}_recall{suffix}": recall, f"{name}_f{suffix}": f}
    return found


def _longest_common(expected: Sequence[str], words: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    longest = [0] * (len(words) + 1)  # of what was expected so far and the first words
    for one in expected:
        before = 0
        for index, word in enumerate(words):
            above = longest[index + 1]
            longest[index + 1] = before + 1 if one == word else max(above, longest[index])
            before = above
    return longest[-1]
