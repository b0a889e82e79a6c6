"""Random texts that heads are measured on once for a model: what is asked, and what came of it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from retrieval_heads.plain import Plain
from retrieval_heads.runs.record import HeadScores, Replay


@dataclass(frozen=True, slots=True)
class RandomText(Plain):
    """A text of random tokens that is repeated; no special token is among them, and none stands before it.

    Args:
        tokens: Of one copy, all of them different.
        repeats: How many copies there are.
        seed: Chooses the tokens.
        scores: Names of the head scores that are wanted.
    """

    tokens: int
    repeats: int
    seed: int
    scores: tuple[str, ...]


@dataclass(frozen=True)
class MeasuredText:
    """A text, and every head's scores on it.

    Args:
        text: The text.
        heads: The scores, as records hold them.
        replay: What it cost.
    """

    text: RandomText
    heads: HeadScores
    replay: Replay
