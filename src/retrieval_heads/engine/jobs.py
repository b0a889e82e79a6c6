"""What the engine process is asked, and what it has done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from retrieval_heads.engine.messages import Message


@dataclass
class Job:
    """Something asked of the engine, and its result once there is one."""

    payload: str
    """What was asked, as canonical JSON: the same key with another payload is a mistake."""
    ask: Message
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
