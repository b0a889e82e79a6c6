"""Small programs: lists that are looked up in, variables that are swapped, and the question for a value at the end."""

from __future__ import annotations

import itertools
import keyword
import random
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.prompts.settings import Prompt
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.place import Place, Value
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring import Judgement
from retrieval_heads.scoring.settings import EXACT, Scoring
from retrieval_heads.settings.range import Counts, whole_values
from retrieval_heads.settings.section import Said, Section
from retrieval_heads.tasks.interpreter import value_of
from retrieval_heads.tasks.task import Question, of_recipe

KIND, VARIABLES, STEPS = "program", "variables", "steps"
RECALL: Final = "recall"
STATE_TRACKING: Final = "state_tracking"
STATE_BASED_RECALL: Final = "state_based_recall"
Kind = Literal["recall", "state_tracking", "state_based_recall"]

MOST_VARIABLES = 10_000
MOST_STEPS = 100_000
_POINTERS = 5
"""Variables that hold an index of the list, at most."""
_ANSWER_TOKENS = 5
_DEFAULT_COUNTS = [4, 8, 16, 32, 64, 128]


class ProgramOptions(Section):
    """Which programs are asked about."""

    kinds: Annotated[list[Kind], Field(min_length=1)] = [RECALL, STATE_TRACKING, STATE_BASED_RECALL]  # noqa: RUF012
    """`recall`: an item of a list of bits. `state_tracking`: variables 0, 1, 2 … that are swapped.
    `state_based_recall`: an item of a list whose index is in one of five variables that are swapped."""
    variables: Counts = _DEFAULT_COUNTS
    """Variables of `state_tracking`, bits of the two others."""
    steps: Counts = _DEFAULT_COUNTS
    """Swaps; `recall` has none."""
    question: Said = "What is the value of {target} at the end? Answer with the value alone."
    """With `{target}` in it."""

    @field_validator("question")
    @classmethod
    def _asks_for_a_target(cls, question: str) -> str:
        if "{target}" not in question:
            raise ValueError("expected a text with {target} in it")
        return question


@dataclass(frozen=True)
class Program:
    """A program, what is asked of it, and its value."""

    text: str
    target: str
    value: int


class ProgramTask:
    """How many variables and swaps a model can follow; the whole answer must be the value."""

    axes = (KIND, VARIABLES, STEPS)
    settings: type[Section] = ProgramOptions
    needs: frozenset[str] = frozenset()
    has_spans = False
    defaults: Mapping[str, object] = {
        "prompt": "{context}\n{question}",
        "generation": {"max_tokens": _ANSWER_TOKENS, "stop": ["\n", ".", " "]},
        "scoring": {"metric": EXACT},
    }

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """Every kind by every count of variables by every count of steps; `recall` has no steps."""
        options = ProgramOptions.model_validate(question.options)
        _check(options, question.scoring)
        for kind in options.kinds:
            steps = [0] if kind == RECALL else whole_values(options.steps)
            yield from itertools.product([kind], whole_values(options.variables), steps)

    def asked(self, question: Question, place: Place) -> Expectation:
        """The program with the question below it, and the value."""
        made = _program(place)
        return Expectation(f"{made.text}\n{_question(question, made)}", str(made.value))

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """The program, and the question for the value of its target."""
        made = _program(place)
        sampling = {key: value for key, value in question.generation.items() if value is not None}
        sampling.setdefault("max_tokens", _ANSWER_TOKENS)
        assert question.prompt is not None
        kept = {"question": question.options["question"]}
        return writer.document(question.prompt, made.text, _question(question, made), None, sampling, kept)

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The same program and question again."""
        recipe = record.recipe
        if recipe is None:
            raise PromptError("a program of the predecessor's has no spans that head scores could aim at")
        question = Question(
            suite=record.suite,
            kind=record.kind,
            options=recipe.options or {},
            prompt=Prompt.model_validate({"messages": recipe.wording, "prefill": recipe.prefill}),
        )
        request = self.request(question, record.place, writer)
        return of_recipe(request, recipe, "program")

    def judge(self, answer: str, expected: Expectation, scoring: Scoring) -> Judgement:
        """Whether the answer is the value and nothing else."""
        said, value = answer.strip(), expected.reference
        passed = said.isascii() and said.isdecimal() and (said.lstrip("0") or "0") == value
        reason = "" if passed else f"the answer is not the value {value}"
        return Judgement({EXACT: float(passed)}, passed, reason)


PROGRAM = ProgramTask()


def _check(options: ProgramOptions, scoring: Scoring) -> None:
    """Refuse what no program can be made of."""
    variables, steps = whole_values(options.variables), whole_values(options.steps)
    if scoring.metric != EXACT:
        raise ConfigError(f"scoring.metric: the score of a program is {EXACT}, not {scoring.metric}")
    for key, values in (("kinds", options.kinds), (VARIABLES, variables), (STEPS, steps)):
        if len(set(values)) < len(values):
            raise ConfigError(f"task.{key}: a value is given twice")
    if not variables or not 1 <= min(variables) <= max(variables) <= MOST_VARIABLES:
        raise ConfigError(f"task.variables: expected counts from 1 to {MOST_VARIABLES:,}")
    if options.kinds == [RECALL]:
        return
    if not steps or max(steps) > MOST_STEPS:
        raise ConfigError(f"task.steps: expected counts from 0 to {MOST_STEPS:,}")
    if min(variables) < 2:
        raise ConfigError("task.variables: a swap needs 2 variables")


def _question(question: Question, made: Program) -> str:
    return str(question.options["question"]).replace("{target}", made.target)


def _program(place: Place) -> Program:
    """The program of a place and seed: the same whatever else a suite asks."""
    kind, variables, steps = (place.get(axis) for axis in (KIND, VARIABLES, STEPS))
    assert isinstance(variables, int)
    assert isinstance(steps, int)
    draw = random.Random(f"retrieval-heads program {kind} {variables} {steps} {place.seed}")
    text, target = _WRITERS[str(kind)](draw, variables, steps)
    value = value_of(text, target)
    assert isinstance(value, int)
    return Program(text, target, value)


def _recall(draw: random.Random, bits: int, _: int) -> tuple[str, str]:
    return f"bits = {_bits(draw, bits)}\na = {draw.randrange(bits)}", "bits[a]"


def _state_tracking(draw: random.Random, variables: int, steps: int) -> tuple[str, str]:
    names = _names(variables)
    lines = [f"{', '.join(names)} = range({variables})", *_swaps(draw, names, steps)]
    return "\n".join(lines), draw.choice(names)


def _state_based_recall(draw: random.Random, bits: int, steps: int) -> tuple[str, str]:
    names = _names(min(bits, _POINTERS))
    written = f"bits = {_bits(draw, bits)}"
    indices = draw.sample(range(bits), len(names))
    lines = [written, f"{', '.join(names)} = {', '.join(map(str, indices))}", *_swaps(draw, names, steps)]
    return "\n".join(lines), f"bits[{draw.choice(names)}]"


_WRITERS: Mapping[str, Callable[[random.Random, int, int], tuple[str, str]]] = {
    RECALL: _recall,
    STATE_TRACKING: _state_tracking,
    STATE_BASED_RECALL: _state_based_recall,
}


def _bits(draw: random.Random, count: int) -> list[int]:
    return [draw.randint(0, 1) for _ in range(count)]


def _swaps(draw: random.Random, names: list[str], steps: int) -> list[str]:
    pairs = [draw.sample(names, 2) for _ in range(steps)]
    return [f"{first}, {second} = {second}, {first}" for first, second in pairs]


def _names(count: int) -> list[str]:
    """The first names of variables: a … z, aa … zz, aaa …; none that Python keeps or has a meaning for."""
    letters = (itertools.product(string.ascii_lowercase, repeat=length) for length in itertools.count(1))
    names = ("".join(each) for each in itertools.chain.from_iterable(letters))
    taken = ("int", "str")
    return list(itertools.islice((n for n in names if not keyword.iskeyword(n) and n not in taken), count))
