"""What a head score reads: replays of a sample, and of texts that are none's. Imports no torch.

A replay is a request whose tokens are all known, run once for the attention of its rows. One goes over a sample's
prompt and answer. A score that has to see another prompt names that beside it (`HeadScore.replays`); scores that name
an equal one share it. What such replays cost is counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Answered:
    """A sample's prompt with its answer."""


@dataclass(frozen=True, slots=True)
class OtherQuery:
    """A sample's prompt with another question in the place of its own, and no answer. Up to the context's end the
    tokens are those of the sample, so that they come from the prefix cache.

    Args:
        query: What stands for the question.
    """

    query: str


@dataclass(frozen=True, slots=True)
class Repeated:
    """A text of random tokens that is repeated (`heads.texts`): none of the samples'. It is run once for a model, and
    each of the suite's texts is a sample of its own.
    """


Replayed = Answered | OtherQuery | Repeated

ANSWERED: Final = Answered()
"""The replay of nearly every score."""

REPEATED: Final = Repeated()
"""The replay of scores that are measured on random texts; they read no other."""
