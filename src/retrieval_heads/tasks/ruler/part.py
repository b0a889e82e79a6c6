"""What one of RULER's tasks says of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from retrieval_heads.tasks.insertions import Planned


@dataclass(frozen=True)
class Asked:
    """A sample's question, known before its text is.

    Args:
        message: `{context}` and `{question}` in it, and `{example}` before both where the task works an example.
        question: What is asked.
        prefill: The first words of the answer.
        expected: All that the answer must say.
        alternatives: Other answers that are accepted in place of it.
    """

    message: str
    question: str
    prefill: str
    expected: tuple[str, ...]
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Filled:
    """A text made of whole units.

    Args:
        text: The text.
        counted: Where each thing that is asked for stands in it, `[start, end)` in characters; none of a task that
            has no such place.
    """

    text: str
    counted: tuple[tuple[int, int], ...] = ()


class Part(Protocol):
    """One of RULER's tasks; everything is drawn by the seed."""

    answer_tokens: int
    """RULER's budget for the answer, which is inside the length."""
    has_spans: bool
    """Whether what is asked for stands at places that head scores can aim at."""

    def asked(self, seed: int, length: int) -> Asked:
        """The question of a sample."""
        ...

    def example(self, seed: int, length: int, tokens_of: Callable[[str], int]) -> str:
        """The worked example of a sample; empty where the task has none.

        Args:
            seed: The sample's.
            length: Tokens of the whole prompt.
            tokens_of: How many tokens a text has.
        """
        return ""


class Running(Part, Protocol):
    """A task whose needles stand in a running text: its prompts have the exact length."""

    @property
    def among_sentences(self) -> bool:
        """Whether needles are sentences among the text's; else each has a line of its own."""
        ...

    noise: str | None
    """The text, over and over; `None` for the suite's haystack."""

    def planned(self, seed: int) -> Sequence[Planned]:
        """What stands in the text, and how deep."""
        ...


class Units(Part, Protocol):
    """A task whose text is made of whole units: as many as fit."""

    unit: str
    """What a unit is called."""

    def fewest(self, seed: int) -> int:
        """Units that a sample needs at least."""
        ...

    def filled(self, seed: int, length: int, count: int) -> Filled:
        """The text of so many units.

        Raises:
            PromptError: There cannot be so many.
        """
        ...
