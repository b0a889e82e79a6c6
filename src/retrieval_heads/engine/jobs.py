"""What the engine process is asked, and what it has done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.engine.messages import Message
from retrieval_heads.tasks.task import Cell, Question


@dataclass(frozen=True)
class FreeQuestion:
    """A question that no suite asks.

    Args:
        prompt: A user's message, or messages with `role` and `content`.
        sampling: Sampling parameters.
        chat: Whether the chat template writes the prompt.
        mask: Heads that have no say in its answer: `mode`, `heads`.
    """

    prompt: str | Sequence[Mapping[str, str]]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    chat: bool = True
    mask: Mapping[str, Any] | None = None

    def to_json(self) -> Message:
        """As it crosses to the engine."""
        return {"do": "ask", **vars(self)}

    @classmethod
    def of_json(cls, message: Message) -> FreeQuestion:
        """One as `to_json` gave it."""
        return cls(message["prompt"], message["sampling"], message["chat"], message["mask"])


@dataclass(frozen=True)
class CellQuestion:
    """A cell of a suite. Those that were submitted together share one question object."""

    question: Question
    cell: Cell

    @property
    def is_masked(self) -> bool:
        """Whether heads are masked in its answer."""
        return self.question.kind == "ablate" and self.cell.place.arm != NONE

    @property
    def awaits(self) -> bool:
        """Whether these are heads that another suite of the run finds."""
        return self.is_masked and bool((self.question.ablate or {}).get("awaits"))


@dataclass
class Job:
    """Something asked of the engine, and its result once there is one."""

    payload: str
    """What was asked, as canonical JSON: the same key with another payload is a mistake."""
    ask: FreeQuestion | CellQuestion
    result: Message | None = None


@dataclass
class Done:
    """What the engine has done. Written by the thread that steps it; prompts are those of cells that were asked."""

    steps: int = 0
    step_seconds: float = 0.0
    """In the engine's steps."""
    feed_gap_seconds: float = 0.0
    """Outside of them while there was work: building prompts, handling results."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of those, what the prefix cache gave."""
    reusable_tokens: int = 0
    """What a cache that holds everything would have given, the cells asked in the same order."""

    @classmethod
    def sum(cls, each: Iterable[Done]) -> Done:
        """Of several engines."""
        each = list(each)
        return cls(**{one.name: sum(getattr(done, one.name) for done in each) for one in fields(cls)})

    def count_step(self, seconds: float, gap: float) -> None:
        """One more step, and the gap before it."""
        self.steps += 1
        self.step_seconds += seconds
        self.feed_gap_seconds += gap

    def count_prompt(self, tokens: int, cached: int, reusable: int) -> None:
        """One more prompt was answered."""
        self.prompt_tokens += tokens
        self.cached_tokens += cached
        self.reusable_tokens += reusable
