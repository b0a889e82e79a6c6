"""What a task is, and where one is found by its name: in this folder, or in another distribution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Protocol, runtime_checkable

from pydantic import WrapValidator

from retrieval_heads.errors import PromptError
from retrieval_heads.plain import Fields, Plain
from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.prompts.settings import Needle, Prompt
from retrieval_heads.registry import Registry
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.mask import Stream
from retrieval_heads.runs.place import Place, Value
from retrieval_heads.runs.record import Recipe, Record
from retrieval_heads.scoring import Judgement
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.settings.section import Section

THE_NEEDLE = "needle"
"""The task of a suite that names none."""
FILE_HASH = "file_hash"
"""Among a task's settings, the SHA-256 of the file that its questions are from."""


@dataclass(frozen=True, slots=True)
class Ranking(Plain):
    """Heads of a compression, in an order.

    Args:
        name: As arms have it.
        by: The head score; empty for the usual one of what ranks them, and of what is drawn.
        heads: Each (layer, head), best first; none where samples of the same run find them, or they are drawn.
    """

    name: str
    by: str = ""
    heads: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Ablation(Plain):
    """Which heads the arms of an ablation mask, or those of a compression have stream.

    Args:
        mode: How; see `retrieval_heads.ablation.arms.MODES`.
        seed: Chooses the control draws.
        by: The head scores that rank heads; an empty one is the usual one.
        heads: By each of them the heads, (layer, head), best first; none where samples of the same run find them.
        awaits: The keys of those samples.
        stream: Of a compression, what heads see that stream.
        rankings: And what ranks them.
    """

    mode: str
    seed: int = 0
    by: tuple[str, ...] = ("",)
    heads: tuple[tuple[tuple[int, int], ...], ...] = ()
    awaits: tuple[str, ...] = ()
    stream: Stream | None = None
    rankings: tuple[Ranking, ...] = ()


_AsItIs = Annotated[Needle, WrapValidator(lambda needle, _: Needle.model_construct(**needle))]
"""Not validated again: stored answers of the predecessor's have needles without a question."""


@dataclass(frozen=True)
class Question(Plain):
    """What all cells of a suite have in common; it crosses to the engine process as JSON.

    Args:
        suite: The suite's name.
        kind: One of `retrieval_heads.kinds.KINDS`.
        task: The task's name.
        options: The task's own settings, as its `settings` leave them in JSON.
        lengths: The sweep's context lengths, in tokens.
        depths: The sweep's depths, in percent.
        source: The haystack's source; a folder as an absolute path.
        haystack: The haystack's name.
        needles: The needles; `Place` holds the name of one.
        prompt: The prompt's wording.
        generation: Sampling parameters.
        boundary: Where a needle may stand: `sentence`, `token` or `line`.
        scoring: Which score decides.
        ablate: Of an ablation, which heads are masked.
        scores: Of a detection, the names of the head scores that are measured; none stands for the usual ones.
        per_step: Of a detection, whether what heads do at each step of an answer is kept too.
    """

    suite: str
    kind: str
    task: str = THE_NEEDLE
    options: Fields = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = ()
    source: str = ""
    haystack: str = ""
    needles: tuple[_AsItIs, ...] = ()
    prompt: Prompt | None = None
    generation: Fields = field(default_factory=dict)
    boundary: str = "sentence"
    scoring: Scoring = field(default_factory=Scoring)
    ablate: Ablation | None = None
    scores: tuple[str, ...] = ()
    per_step: bool = False

    @cached_property
    def by_name(self) -> Mapping[str, Needle]:
        """The needles by their names."""
        return {needle.name or "": needle for needle in self.needles}


@dataclass(frozen=True, slots=True)
class Cell(Plain):
    """One question to ask."""

    name: str
    """As in the item's brackets: `len_4096-depth_50`, needle and seed before it when there are several."""
    id: str
    """Names the question asked, whichever model answers: pairs a run with another model's."""
    place: Place
    stored: Record | None = None
    """The record whose answer is traced in place of asking."""


class Task(Protocol):
    """What is asked over a grid of places, and how an answer is judged.

    One object for each name, without a state: pytest's processes, the engine process and its replicas each have their
    own. A mistake in a suite is a `ConfigError`, a question that cannot be built for this model a `PromptError`.
    """

    axes: tuple[str, ...]
    """Names of the grid's axes, in the order of `Place.axes`: for gates (`over AXIS`), markers, names and pictures."""
    settings: type[Section]
    """What the suite's `task:` may hold beside its name."""
    needs: frozenset[str]
    """The suite's sections that must be given, of `haystack` and `needles`; the others must not."""
    has_spans: bool
    """Whether `request` tells the token spans that head scores aim at; else no suite can detect or ablate on it."""
    defaults: Mapping[str, object]
    """What a suite's sections hold where it says nothing: `{"scoring": {"metric": "exact"}}`."""

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """The grid without its seeds: a value for each axis. No tokenizer is at hand: this is at collection."""
        ...

    def asked(self, question: Question, place: Place) -> Expectation:
        """The question in words, and what its answer must say.

        A task that needs neither haystack nor needles asks a question once, though several seeds come to the same.
        """
        ...

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """The prompt, with its recipe and spans as `facts`, and `expected` where only the prompt tells it."""
        ...

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The prompt that a record's recipe describes; refused where another comes out."""
        ...

    def judge(self, answer: str, expected: Expectation, scoring: Scoring) -> Judgement:
        """Scores of an answer by name, 0–1, and whether the one that `scoring` names is enough."""
        ...


@runtime_checkable
class OwnTexts(Protocol):
    """What a task may have besides: prompts that share no haystack, which the engine builds ahead."""

    def has_own_text(self, question: Question, place: Place) -> bool:
        """Whether the text of a place's prompt is drawn for it alone."""
        ...


@runtime_checkable
class HasTotals(Protocol):
    """What a task may have besides: figures of a whole run that its source defines."""

    def totals(self, records: Sequence[Record]) -> list[str]:
        """A line each, from the records of one suite."""
        ...


TASKS: Registry[Task] = Registry(
    "retrieval_heads.tasks",
    "task",
    {
        THE_NEEDLE: "retrieval_heads.tasks.needle:TheNeedle",
        "mrcr": "retrieval_heads.tasks.mrcr.task:MRCR",
        "mrcr_file": "retrieval_heads.tasks.mrcr.task:MRCR_FILE",
        "needles": "retrieval_heads.tasks.needles:NEEDLES",
        "nonliteral": "retrieval_heads.tasks.nonliteral.task:NONLITERAL",
        "phonebook": "retrieval_heads.tasks.phonebook:PHONEBOOK",
        "program": "retrieval_heads.tasks.program:PROGRAM",
        "ruler": "retrieval_heads.tasks.ruler.task:RULER",
    },
)


def totals_of(records: Sequence[Record]) -> list[str]:
    """What their task makes of all records of a suite; nothing where it is not installed here."""
    name = records[0].task or THE_NEEDLE if records else ""
    task = TASKS.find(name) if name in TASKS.names else None
    return list(task.totals(records)) if isinstance(task, HasTotals) else []


def of_recipe(request: Request, recipe: Recipe, subject: str) -> Request:
    """A request that was written again, with the recipe it was written by.

    Args:
        request: The request.
        recipe: A record's.
        subject: What the task asks about, for errors.

    Raises:
        PromptError: It is not the one that the record's answer was given to.
    """
    made = request.facts.recipe
    if made is None or made.hash != recipe.hash:
        raise PromptError(f"the {subject} is not the one that the stored answer was given to (its hash differs)")
    if made.prompt_hash != recipe.prompt_hash:
        raise PromptError("tokenizer, wording or chat template are not those of the stored answer")
    return replace(request, facts=replace(request.facts, recipe=recipe))


def asked_again(task: Task, record: Record, writer: Writer) -> Request:
    """The request of a record, by a task that draws its question from place and settings: it is drawn again.

    Raises:
        PromptError: The record holds no recipe, or another prompt comes out.
    """
    recipe = record.recipe
    if recipe is None:
        raise PromptError("the record holds no recipe")
    question = Question(
        suite=record.suite,
        kind=record.kind,
        task=record.task or THE_NEEDLE,
        options=recipe.options or {},
        source=recipe.haystack,
        prompt=Prompt.model_validate({"messages": recipe.wording, "prefill": recipe.prefill}),
        generation=recipe.sampling or {},
        boundary=recipe.boundary,
    )
    request = task.request(question, record.place, writer)
    if request.facts.recipe is None or request.facts.recipe.prompt_hash != recipe.prompt_hash:
        raise PromptError("the prompt that comes out is not the one that the stored answer was given to")
    return Request(request.ids, {}, replace(request.facts, recipe=recipe), text=request.text)
