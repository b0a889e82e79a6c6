"""RULER's eight needle tasks: keys and values in noise, in essays or among needles like them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retrieval_heads.tasks.insertions import Planned
from retrieval_heads.tasks.needles import listed
from retrieval_heads.tasks.ruler.part import Asked, Filled, Running, Units
from retrieval_heads.tasks.ruler.words import identifier, load_words, number

NOISE = "The lamp is lit. The door is shut. The kettle hums. We wait a while. Then we walk on.\n"

_DEPTHS = tuple(round(100 * step / 39, 4) for step in range(40))
"""Percent: 40 from 0 to 100, of which a sample's needles have different ones."""


@dataclass(frozen=True)
class Kind:
    """What a needle task's needles are.

    Args:
        name: Names the task among RULER's.
        keys: What keys are: two words, or identifiers.
        values: What values are.
        others: Needles whose keys are not asked for.
        each: Values of a key that is asked for.
        queries: Keys that are asked for.
    """

    name: str
    keys: Literal["words", "identifiers"] = "words"
    values: Literal["numbers", "identifiers"] = "numbers"
    others: int = 0
    each: int = 1
    queries: int = 1

    def pair(self, draw: random.Random) -> tuple[str, str]:
        """A key and a value."""
        key = load_words().key(draw) if self.keys == "words" else identifier(draw)
        return key, number(draw) if self.values == "numbers" else identifier(draw)

    def drawn(self, seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Keys and values that are asked for, then those that are not."""
        draw = self._draw(seed)
        pairs: dict[str, str] = {}
        while len(pairs) < self.queries + self.others:
            key, value = self.pair(draw)
            pairs.setdefault(key, value)
        each = list(pairs.items())
        asked, values = [], set(pairs.values())
        for key, value in each[: self.queries]:
            asked.append((key, value))
            while len(asked) % self.each:
                if (more := self.pair(draw)[1]) not in values:
                    values.add(more)
                    asked.append((key, more))
        return asked, each[self.queries :]

    def said(self, key: str, value: str) -> str:
        """A needle."""
        return f"The secret {self._noun} of {key} is {value}."

    def asked(self, seed: int) -> Asked:
        """The question of a sample."""
        pairs, _ = self.drawn(seed)
        keys = listed(list(dict.fromkeys(key for key, _ in pairs)))
        noun, article = self._noun, "an" if self._noun == "identifier" else "a"
        if len(pairs) == 1:
            hidden, question = f"{article} secret {noun} is", f"What is the secret {noun} of {keys}?"
            prefill = f"The secret {noun} of {keys} in the text is"
        else:
            hidden, question = f"some secret {noun}s are", f"What are all the secret {noun}s of {keys}?"
            prefill = f"The secret {noun}s of {keys} in the text are"
        wording = (
            f"In the text below, {hidden} hidden. Read it with care: it will be asked for.\n{{context}}\n{{question}}"
        )
        return Asked(wording, question, prefill, tuple(value for _, value in pairs))

    def depths(self, seed: int, count: int) -> list[float]:
        """Where a sample's needles stand, in percent."""
        return random.Random(f"retrieval-heads ruler depths {self.name} {seed}").sample(_DEPTHS, count)

    def _draw(self, seed: int) -> random.Random:
        return random.Random(f"retrieval-heads ruler {self.name} {seed}")

    @property
    def _noun(self) -> str:
        return "number" if self.values == "numbers" else "identifier"


@dataclass(frozen=True)
class InText(Running):
    """Needles in a running text.

    Args:
        kind: Its needles.
        noise: The text; `None` for the suite's haystack.
    """

    kind: Kind
    noise: str | None = None
    answer_tokens = 128
    has_spans = True

    def asked(self, seed: int, length: int) -> Asked:
        """The question."""
        return self.kind.asked(seed)

    def planned(self, seed: int) -> Sequence[Planned]:
        """The needles, those that are asked for first."""
        asked, others = self.kind.drawn(seed)
        depths = iter(self.kind.depths(seed, len(asked) + len(others)))
        return [
            *(Planned("asked", self.kind.said(*pair), pair[1], next(depths)) for pair in asked),
            *(Planned("distractor", self.kind.said(*pair), pair[1], next(depths)) for pair in others),
        ]


@dataclass(frozen=True)
class AmongNeedles(Units):
    """A needle among others like it, and nothing else.

    Args:
        kind: Its needles.
    """

    kind: Kind
    answer_tokens = 128
    has_spans = True
    unit = "needles"
    fewest = 1

    def asked(self, seed: int, length: int) -> Asked:
        """The question."""
        return self.kind.asked(seed)

    def filled(self, seed: int, length: int, count: int) -> Filled:
        """So many needles, the one that is asked for at its depth."""
        ((key, value),), _ = self.kind.drawn(seed)
        draw = random.Random(f"retrieval-heads ruler others {self.kind.name} {seed}")
        keys, needles = {key}, list[str]()
        while len(needles) < count - 1:
            other, unasked = self.kind.pair(draw)
            if other not in keys and unasked != value:
                keys.add(other)
                needles.append(self.kind.said(other, unasked))
        place = round(len(needles) * self.kind.depths(seed, 1)[0] / 100)
        before = "".join(f"{needle}\n" for needle in needles[:place])
        said = self.kind.said(key, value)
        start = len(before) + said.rindex(value)
        text = before + "\n".join([said, *needles[place:]])
        return Filled(text, ((start, start + len(value)),))


NIAH: dict[str, InText | AmongNeedles] = {
    "niah_single_1": InText(Kind("niah_single_1"), NOISE),
    "niah_single_2": InText(Kind("niah_single_2")),
    "niah_single_3": InText(Kind("niah_single_3", values="identifiers")),
    "niah_multikey_1": InText(Kind("niah_multikey_1", others=3)),
    "niah_multikey_2": AmongNeedles(Kind("niah_multikey_2")),
    "niah_multikey_3": AmongNeedles(Kind("niah_multikey_3", keys="identifiers", values="identifiers")),
    "niah_multivalue": InText(Kind("niah_multivalue", each=4)),
    "niah_multiquery": InText(Kind("niah_multiquery", queries=4)),
}
"""By RULER's names."""
