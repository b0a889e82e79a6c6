"""RULER's common words: a numbered list in which ten words stand more often than all others."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from retrieval_heads.errors import PromptError
from retrieval_heads.tasks.ruler.part import Asked, Filled, Units
from retrieval_heads.tasks.ruler.wording import ListWording
from retrieval_heads.tasks.ruler.words import PACKAGE, load_words

COMMON = 10
_LONG = 4096
"""Tokens from which on words are repeated more often."""


@dataclass(frozen=True)
class CommonWords(Units):
    """Which ten words stand most often in a list; one worked example before it, drawn anew for each sample.

    Args:
        wording: Its texts.
    """

    wording: ListWording
    answer_tokens = 120
    has_spans = False
    unit = "words"

    def fewest(self, seed: int) -> int:
        """The common words and another."""
        return COMMON + 1

    def asked(self, seed: int, length: int) -> Asked:
        """The question, and the ten words."""
        phrases = self.wording.phrases
        message, prefill = f"{{example}}{phrases.message}", phrases.prefill.strip()
        return Asked(message, phrases.question, prefill, tuple(_drawn(seed, COMMON)))

    def example(self, seed: int, length: int, tokens_of: Callable[[str], int]) -> str:
        """A shorter list of other words."""
        draw = random.Random(f"retrieval-heads ruler cwe example {seed}")
        words = draw.sample(load_words().all, 20 if length < _LONG else 40)
        listed = _listed(draw, words, *((3, 1) if length < _LONG else (10, 3)))
        return self.wording.phrases.worked(listed, _numbered(words[:COMMON]))

    def filled(self, seed: int, length: int, count: int) -> Filled:
        """A list of so many different words: the ten 30 times and the others 3 times, in short lists 6 times and once.

        Raises:
            PromptError: There are not so many words.
        """
        if count > len(load_words().all):
            raise PromptError(
                f"cwe at {length} tokens takes more than the {len(load_words().all)} words of {PACKAGE}; ask it at "
                "shorter lengths"
            )
        draw = random.Random(f"retrieval-heads ruler cwe order {seed}")
        return Filled(_listed(draw, _drawn(seed, count), *((6, 1) if length < _LONG else (30, 3))))


def _drawn(seed: int, count: int) -> list[str]:
    """Different words, the common ones first and the same for every count."""
    words = list(load_words().all)
    random.Random(f"retrieval-heads ruler cwe {seed}").shuffle(words)
    return words[:count]


def _listed(draw: random.Random, words: list[str], common: int, others: int) -> str:
    """A numbered list that holds the first ten so often and the others so often."""
    every = words[:COMMON] * common + words[COMMON:] * others
    draw.shuffle(every)
    return _numbered(every)


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))
