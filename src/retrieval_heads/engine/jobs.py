"""What the engine process is asked, and what it has done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.engine.results import Result
from retrieval_heads.plain import Json, Plain
from retrieval_heads.runs.mask import Mask
from retrieval_heads.tasks.task import Cell, Question


@dataclass(frozen=True, slots=True)
class FreeQuestion(Plain):
    """A question that no suite asks.

    Args:
        prompt: A user's message, or messages with `role` and `content`.
        sampling: Sampling parameters.
        chat: Whether the chat template writes the prompt.
        mask: Heads that have no say in its answer.
    """

    prompt: str | tuple[Mapping[str, str], ...]
    sampling: Mapping[str, Json] = field(default_factory=dict)
    chat: bool = True
    mask: Mask | None = None


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
        return self.is_masked and self.question.ablate is not None and bool(self.question.ablate.awaits)


@dataclass
class Job:
    """Something asked of the engine, and its result once there is one."""

    payload: str
    """What was asked, as canonical JSON: the same key with another payload is a mistake."""
    ask: FreeQuestion | CellQuestion
    result: Result | None = None


@dataclass
class Done(Plain):
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


@dataclass(frozen=True, slots=True)
class Counters(Plain):
    """How much was asked of an engine and done.

    Args:
        submitted: Cells and free questions.
        finished: Those that have a result.
        process: Its process id.
        done: What the engine has done; of several replicas, together.
    """

    submitted: int
    finished: int
    process: int
    done: Done
