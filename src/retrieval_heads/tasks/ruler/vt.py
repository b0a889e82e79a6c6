"""RULER's variable tracking: assignments hidden in noise, each but the first of another variable."""

from __future__ import annotations

import random

from retrieval_heads.tasks.ruler.niah import NOISE
from retrieval_heads.tasks.ruler.part import Asked, Filled, Units

HOPS = 4
"""Assignments of another variable's value, after that of a number."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_EXAMPLE_NOISES = 6


def _chain(draw: random.Random, letters: int) -> tuple[list[str], str]:
    """Names of variables, and the value that all of them have."""
    names: dict[str, None] = {}
    while len(names) < HOPS + 1:
        names["".join(draw.choices(_LETTERS, k=letters))] = None
    return list(names), str(draw.randrange(10_000, 100_000))


def _hidden(draw: random.Random, names: list[str], value: str, noises: int) -> Filled:
    """The assignments in their order, each on a line of its own between passages of noise."""
    places = sorted(draw.sample(range(noises), len(names)))
    text, counted = "", []
    for number in range(noises):
        if number in places:
            hop = places.index(number)
            text += "LET "
            counted.append((len(text), len(text) + len(names[hop])))
            text += f"{names[hop]} = {names[hop - 1] if hop else value}\n"
        text += NOISE
    return Filled(text, tuple(counted))


class VariableTracking(Units):
    """Which variables have a value, by way of others; one worked example before it, drawn anew for each sample."""

    answer_tokens = 30
    has_spans = True
    unit = "passages"
    fewest = HOPS + 1

    def asked(self, seed: int, length: int) -> Asked:
        """The question, and the five variables."""
        draw = random.Random(f"retrieval-heads ruler vt {seed}")
        names, value = _chain(draw, 5)
        shown, of = _chain(draw, 3)
        while of == value:
            shown, of = _chain(draw, 3)
        example = _hidden(draw, shown, of, _EXAMPLE_NOISES).text
        task = "Some lines of the text below give a value to a variable. Keep track of which variable has which value."
        wording = (
            f"{task}\n\n{example}\n{self._question(of)}\n{self._prefill(of)} {', '.join(shown)}\n\n"
            f"{task}\n\n{{context}}\n{{question}}"
        )
        return Asked(wording, self._question(value), self._prefill(value), tuple(names))

    def filled(self, seed: int, length: int, count: int) -> Filled:
        """So many passages of noise with the assignments between them."""
        names, value = _chain(random.Random(f"retrieval-heads ruler vt {seed}"), 5)
        return _hidden(random.Random(f"retrieval-heads ruler vt places {seed}"), names, value, count)

    @staticmethod
    def _question(value: str) -> str:
        return f"Which variables in the text have the value {value}?"

    @staticmethod
    def _prefill(value: str) -> str:
        return f"In the text, {HOPS + 1} variables have the value {value}. They are"


VT = VariableTracking()
