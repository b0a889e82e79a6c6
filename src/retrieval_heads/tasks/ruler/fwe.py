"""RULER's frequent words: a text of made-up words whose frequencies fall as a zeta distribution does."""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass

from retrieval_heads.tasks.ruler.part import Asked, Filled, Units
from retrieval_heads.tasks.ruler.wording import ListWording

_LETTERS = 6
_NOISE = "..."
"""In place of the most frequent word."""
_ZETA = math.pi**2 / 6
"""The sum of 1 / rank², of the distribution with an exponent of 2."""
ANSWERS = 3


@dataclass(frozen=True)
class FrequentWords(Units):
    """Which three words are the most frequent; the most frequent of all is noise.

    Args:
        wording: Its texts.
    """

    wording: ListWording
    answer_tokens = 50
    has_spans = False
    unit = "words"

    def fewest(self, seed: int) -> int:
        """With fewer the third of the answers is hardly more frequent than the next word."""
        return 150

    def asked(self, seed: int, length: int) -> Asked:
        """The question, and the words of ranks 2 to 4."""
        phrases, words = self.wording.phrases, self._vocabulary(seed, length)
        return Asked(phrases.message, phrases.question, phrases.prefill.strip(), tuple(words[1 : ANSWERS + 1]))

    def filled(self, seed: int, length: int, count: int) -> Filled:
        """A text for which so many words are dealt out by their ranks."""
        words = [
            word
            for rank, word in enumerate(self._vocabulary(seed, length), start=1)
            for _ in range(int(count / (_ZETA * rank**2)))
        ]
        random.Random(f"retrieval-heads ruler fwe order {seed}").shuffle(words)
        return Filled(" ".join(words))

    def _vocabulary(self, seed: int, length: int) -> list[str]:
        """(length − 50) / 50 words by their ranks."""
        draw, words = random.Random(f"retrieval-heads ruler fwe {seed}"), dict.fromkeys([_NOISE])
        while len(words) < max(ANSWERS + 2, (length - self.answer_tokens) // 50):
            words["".join(draw.choices(string.ascii_lowercase, k=_LETTERS))] = None
        return list(words)
