"""RULER's variable tracking: assignments hidden in noise, each but the first of another variable."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from retrieval_heads.tasks.ruler.fit import most_that_fit
from retrieval_heads.tasks.ruler.part import Asked, Filled, Units
from retrieval_heads.tasks.ruler.wording import TrackingWording, fill

HOPS = 4
"""Assignments of another variable's value, after that of a number."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_EXAMPLE_PASSAGES = 6


def _chain(draw: random.Random, letters: int) -> tuple[list[str], str]:
    """Names of variables, and the value that all of them have."""
    names: dict[str, None] = {}
    while len(names) < HOPS + 1:
        names["".join(draw.choices(_LETTERS, k=letters))] = None
    return list(names), str(draw.randrange(10_000, 100_000))


@dataclass(frozen=True)
class VariableTracking(Units):
    """Which variables have a value, by way of others; one worked example before it, drawn anew for each sample.

    Args:
        wording: Its texts.
    """

    wording: TrackingWording
    answer_tokens = 30
    has_spans = True
    unit = "passages"

    def fewest(self, seed: int) -> int:
        """One before which each assignment stands."""
        return HOPS + 1

    def asked(self, seed: int, length: int) -> Asked:
        """The question, and the five variables."""
        names, value = _chain(random.Random(f"retrieval-heads ruler vt {seed}"), 5)
        phrases, marks = self.wording.phrases, {"query": value, "num_v": HOPS + 1}
        message, prefill = f"{{example}}{phrases.message}", fill(phrases.prefill, **marks).strip()
        return Asked(message, fill(phrases.question, **marks), prefill, tuple(names))

    def example(self, seed: int, length: int, tokens_of: Callable[[str], int]) -> str:
        """The same of variables with shorter names and another value."""
        draw = random.Random(f"retrieval-heads ruler vt {seed}")
        _, value = _chain(draw, 5)
        names, of = _chain(draw, 3)
        while of == value:
            names, of = _chain(draw, 3)
        state = draw.getstate()

        def worked(passages: int) -> str:
            draw.setstate(state)
            text, answer = self._hidden(draw, names, of, passages).text, self.wording.between.join(names)
            return self.wording.phrases.worked(text, answer, query=of, num_v=HOPS + 1)

        if self.wording.example_tokens is None:
            return worked(_EXAMPLE_PASSAGES)
        most = most_that_fit(lambda count: tokens_of(worked(count)), HOPS + 1, self.wording.example_tokens)
        return worked(most or HOPS + 1)

    def filled(self, seed: int, length: int, count: int) -> Filled:
        """So many passages of noise with the assignments between them."""
        names, value = _chain(random.Random(f"retrieval-heads ruler vt {seed}"), 5)
        return self._hidden(random.Random(f"retrieval-heads ruler vt places {seed}"), names, value, count)

    def _hidden(self, draw: random.Random, names: list[str], value: str, passages: int) -> Filled:
        """The assignments in their order, each before a passage of noise."""
        wording = self.wording
        places = sorted(draw.sample(range(passages), len(names)))
        pieces, counted, at = list[str](), [], 0
        for number in range(passages):
            if number in places:
                hop = places.index(number)
                said = wording.hop if hop else wording.first
                start = at + said.index("{name}")
                counted.append((start, start + len(names[hop])))
                pieces.append(fill(said, name=names[hop], value=value, of=names[hop - 1]))
                at += len(pieces[-1]) + len(wording.joint)
            pieces.append(wording.noise)
            at += len(wording.noise) + len(wording.joint)
        return Filled(wording.joint.join(pieces), tuple(counted))
