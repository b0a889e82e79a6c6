"""What the engine process is asked, and what it has done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.engine.results import Result
from retrieval_heads.engine.usage import Usage
from retrieval_heads.heads.looks import Span
from retrieval_heads.heads.texts import RandomText
from retrieval_heads.plain import Json, Plain
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.mask import Mask
from retrieval_heads.runs.record import Record, Replay
from retrieval_heads.tasks.task import Cell, Question


@dataclass(frozen=True, slots=True)
class Aim(Plain):
    """What heads are scored on of a prompt of a user's own. Spans are characters of it, half open.

    Args:
        spans: What the answer must find.
        question: The part that asks, where scores read that.
        answer: What is said; the model's own answer where it is left out.
        scores: Names of head scores; none stands for the usual ones.
    """

    spans: tuple[Span, ...]
    question: Span | None = None
    answer: str | None = None
    scores: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FreeQuestion(Plain):
    """A question that no suite asks.

    Args:
        prompt: A user's message, or messages with `role` and `content`.
        sampling: Sampling parameters.
        chat: Whether the chat template writes the prompt.
        mask: Heads that have no say in its answer.
        text: In place of a question, a text that heads are measured on.
        aim: What heads are scored on, where they are.
    """

    prompt: str | tuple[Mapping[str, str], ...]
    sampling: Mapping[str, Json] = field(default_factory=dict)
    chat: bool = True
    mask: Mask | None = None
    text: RandomText | None = None
    aim: Aim | None = None


@dataclass(frozen=True)
class CellQuestion:
    """A cell of a suite. Those that were submitted together share one question object."""

    question: Question
    cell: Cell

    @property
    def is_masked(self) -> bool:
        """Whether heads are masked in its answer."""
        return self.question.kind in ("ablate", "compress") and self.cell.place.arm != NONE

    @property
    def awaits(self) -> bool:
        """Whether these are heads that another suite of the run finds."""
        return self.is_masked and self.question.ablate is not None and bool(self.question.ablate.awaits)


@dataclass
class Job:
    """Something asked of the engine, and its result once there is one."""

    run: Run
    """Whose it is."""
    key: str
    """What its run calls it; no other job of that run has it."""
    payload: str
    """What was asked, as canonical JSON: the same key with another payload is a mistake."""
    ask: FreeQuestion | CellQuestion
    result: Result | None = None
    lost_replica: str = ""
    """How a replica was lost that had it before; see `retrieval_heads.engine.results.Answered`."""
    asked: float = field(default_factory=time.monotonic)
    queued_seconds: float | None = None
    """Until the engine began with it; `None` before its first request has ended."""
    engine_seconds: float | None = None
    """What its requests took of the engine so far; `None` where that is not seen."""

    def count(self, seconds: float, own: float | None) -> None:
        """One of its requests has ended.

        Args:
            seconds: From that one's first step to its last.
            own: What it took of them itself.
        """
        if self.queued_seconds is None:
            self.queued_seconds = round(max(0.0, time.monotonic() - self.asked - seconds), 4)
        if own is not None:
            self.engine_seconds = round((self.engine_seconds or 0.0) + own, 4)

    def timed(self, answer: Answer) -> Answer:
        """Its answer, with what it took."""
        return replace(answer, engine_seconds=self.engine_seconds, queued_seconds=self.queued_seconds)

    @property
    def name(self) -> str:
        """What the engine calls it; no other job of any run has it."""
        return self.run.name_of(self.key)


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
    underway_tokens: int = 0
    """Of prompts that are not answered yet, what is computed or cached by now, as far as can be seen."""
    usage: Usage | None = None
    """What a server counted, everything that it was asked together."""

    other_replays: int = 0
    """Replays of other prompts than the samples' own, which some head scores read."""
    other_replay_tokens: int = 0
    """What was computed for these."""
    other_replay_seconds: float = 0.0
    """Of the steps that ended one, each step once, whatever else it computed; of a random text, of all its steps."""

    @classmethod
    def sum(cls, each: Iterable[Done]) -> Done:
        """Of several engines."""
        each = list(each)
        counts = [one.name for one in fields(cls) if one.name != "usage"]
        usages = [done.usage for done in each if done.usage is not None]
        usage = sum(usages, Usage()) if usages else None
        return cls(usage=usage, **{name: sum(getattr(done, name) for done in each) for name in counts})

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

    def count_other(self, replay: Replay, seconds: float = 0.0) -> None:
        """One more replay of another prompt than a sample's own; of what it took, what no step is counted for."""
        self.other_replays += 1
        self.other_replay_tokens += replay.computed_tokens
        self.other_replay_seconds += seconds


@dataclass
class Run:
    """The session whose jobs these are: its processes are clients that give the same name for it.

    Args:
        name: Tells it from the others that the engine answers; empty where there are none.
        who: For users, whose process it is; empty until it has begun.
        earlier: Records of an earlier run, by their cells' keys: one whose request is the same is not asked again.
        earlier_file: Where they stand.
    """

    name: str = ""
    who: str = ""
    earlier: Mapping[str, Record] = field(default_factory=dict)
    earlier_file: str | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    """By their keys."""
    answered: list[str] = field(default_factory=list)
    """Keys of the cells that have a result, as they came."""
    done: Done = field(default_factory=Done)
    """What the engine did for it; of steps, all that were made meanwhile."""
    turn: int = 0
    """Of what it asked last; see `retrieval_heads.engine.loop.Loop.turn`."""
    is_over: bool = False
    """Whether it is gone: nobody waits for what it asked."""

    def name_of(self, key: str) -> str:
        """What the engine calls the job of a key."""
        return f"{self.name} {key}" if self.name else key


@dataclass(frozen=True, slots=True)
class SettingState(Plain):
    """What is known of an engine that had its turn.

    Args:
        info: What it says of itself; `None` where it did not start.
        failure: Why it did not start, or ended; empty where it did not.
        done: What it has done.
        start_seconds: Until its model was loaded.
        first_seconds: From there to its first result.
        answer_seconds: To its last one.
    """

    info: Mapping[str, Json] | None = None
    failure: str = ""
    done: Done = field(default_factory=Done)
    start_seconds: float = 0.0
    first_seconds: float = 0.0
    answer_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Use(Plain):
    """Who uses a warm engine.

    Args:
        runs: Whose processes' runs have begun and last.
        idle_seconds: Since when there is none; 0 where there is one.
        asleep: What was given back, and at what cost, in words; empty while it is awake.
        failure: Why it can do no more; empty while it can.
    """

    runs: tuple[str, ...] = ()
    idle_seconds: float = 0.0
    asleep: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Counters(Plain):
    """How much was asked of an engine and done.

    Args:
        submitted: Cells and free questions of this run.
        finished: Those that have a result.
        process: Its process id.
        done: What the engine has done for this run; of several replicas, together.
        settings: Of engines that take turns, what is known of those that had theirs.
        phase: What its start is at; empty once its model is loaded.
    """

    submitted: int
    finished: int
    process: int
    done: Done
    settings: Mapping[str, SettingState] = field(default_factory=dict)
    phase: str = ""
