"""RULER's eight needle tasks: keys and values in noise, in essays or among needles like them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from retrieval_heads.tasks.insertions import Planned
from retrieval_heads.tasks.ruler.part import Asked, Filled, Running, Units
from retrieval_heads.tasks.ruler.wording import NiahWording, fill
from retrieval_heads.tasks.ruler.words import identifier, load_words, number

_DEPTHS = tuple(round(100 * step / 39, 4) for step in range(40))
"""Percent: 40 from 0 to 100, of which a sample's needles have different ones; RULER rounds them to whole ones."""


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

    def depths(self, seed: int, count: int) -> list[float]:
        """Where a sample's needles stand, in percent."""
        return random.Random(f"retrieval-heads ruler depths {self.name} {seed}").sample(_DEPTHS, count)

    def _draw(self, seed: int) -> random.Random:
        return random.Random(f"retrieval-heads ruler {self.name} {seed}")


@dataclass(frozen=True)
class _Needles:
    """What the three kinds of needle task share.

    Args:
        kind: Its needles.
        wording: Its texts.
    """

    kind: Kind
    wording: NiahWording
    answer_tokens = 128
    has_spans = True

    def asked(self, seed: int, length: int) -> Asked:
        """The question of a sample."""
        pairs, _ = self.kind.drawn(seed)
        phrases = self.wording.one if len(pairs) == 1 else self.wording.several
        keys = list(dict.fromkeys(key for key, _ in pairs))
        query = f"{', '.join(keys[:-1])}{self.wording.last}{keys[-1]}" if len(keys) > 1 else keys[0]
        message, question, prefill = (
            self._filled(text, query=query) for text in (phrases.message, phrases.question, phrases.prefill)
        )
        return Asked(message, question, prefill.strip(), tuple(value for _, value in pairs))

    def said(self, key: str, value: str) -> str:
        """A needle."""
        return self._filled(self.wording.needle, key=key, value=value)

    def line(self, seed: int, count: int) -> int:
        """How many of so many lines stand before the needle: never all of them, as RULER draws it."""
        return int(count * random.Random(f"retrieval-heads ruler line {self.kind.name} {seed}").random())

    def _filled(self, text: str, **marks: str) -> str:
        one, several = self.wording.numbers if self.kind.values == "numbers" else self.wording.identifiers
        return fill(text, type=one, types=several, **marks)


@dataclass(frozen=True)
class InText(_Needles, Running):
    """Needles in a running text.

    Args:
        noise: The text; `None` for the suite's haystack.
    """

    noise: str | None = None

    @property
    def among_sentences(self) -> bool:
        """Whether needles are sentences among the text's."""
        return self.wording.is_rulers

    def planned(self, seed: int) -> Sequence[Planned]:
        """The needles, those that are asked for first."""
        asked, others = self.kind.drawn(seed)
        depths = iter(self.kind.depths(seed, len(asked) + len(others)))
        planned = [
            *(Planned("asked", self.said(*pair), pair[1], next(depths)) for pair in asked),
            *(Planned("distractor", self.said(*pair), pair[1], next(depths)) for pair in others),
        ]
        if self.among_sentences:
            return [replace(each, depth=round(each.depth)) for each in planned]
        return planned


@dataclass(frozen=True)
class InPassages(_Needles, Units):
    """A needle on a line among whole passages of noise."""

    unit = "passages"

    def fewest(self, seed: int) -> int:
        """One."""
        return 1

    def filled(self, seed: int, length: int, count: int) -> Filled:
        """So many passages, and the needle before one of them."""
        ((key, value),), _ = self.kind.drawn(seed)
        at = self.line(seed, count)
        said, noise = self.said(key, value), self.wording.noise
        start = at * (len(noise) + 1) + said.rindex(value)
        lines = [*[noise] * at, said, *[noise] * (count - at)]
        return Filled("\n".join(lines), ((start, start + len(value)),))


@dataclass(frozen=True)
class AmongNeedles(_Needles, Units):
    """A needle among others like it, and nothing else."""

    unit = "needles"

    def fewest(self, seed: int) -> int:
        """The one that is asked for."""
        return 1

    def filled(self, seed: int, length: int, count: int) -> Filled:
        """So many needles, the one that is asked for at its depth."""
        ((key, value),), _ = self.kind.drawn(seed)
        draw = random.Random(f"retrieval-heads ruler others {self.kind.name} {seed}")
        keys, needles = {key}, list[str]()
        while len(needles) < count - 1:
            other, unasked = self.kind.pair(draw)
            if other not in keys and unasked != value:
                keys.add(other)
                needles.append(self.said(other, unasked))
        if self.wording.is_rulers:
            place = self.line(seed, len(needles))
        else:
            place = round(len(needles) * self.kind.depths(seed, 1)[0] / 100)
        before = "".join(f"{needle}\n" for needle in needles[:place])
        said = self.said(key, value)
        start = len(before) + said.rindex(value)
        text = before + "\n".join([said, *needles[place:]])
        return Filled(text, ((start, start + len(value)),))


_KINDS = (
    Kind("niah_single_1"),
    Kind("niah_single_2"),
    Kind("niah_single_3", values="identifiers"),
    Kind("niah_multikey_1", others=3),
    Kind("niah_multikey_2"),
    Kind("niah_multikey_3", keys="identifiers", values="identifiers"),
    Kind("niah_multivalue", each=4),
    Kind("niah_multiquery", queries=4),
)


def niah(wording: NiahWording) -> dict[str, InText | InPassages | AmongNeedles]:
    """The needle tasks in a wording, by RULER's names."""
    tasks: dict[str, InText | InPassages | AmongNeedles] = {kind.name: InText(kind, wording) for kind in _KINDS}
    for name in ("niah_multikey_2", "niah_multikey_3"):
        tasks[name] = AmongNeedles(tasks[name].kind, wording)
    noise = tasks["niah_single_1"].kind
    tasks[noise.name] = InPassages(noise, wording) if wording.is_rulers else InText(noise, wording, wording.noise)
    return tasks
