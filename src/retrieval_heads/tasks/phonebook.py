"""A phonebook: many lines alike, and the question for the number of one of them."""

from __future__ import annotations

import bisect
import importlib.util
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from retrieval_heads.errors import ConfigError
from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.prompts.settings import Prompt
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.place import DEPTH, Place, Value
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring import Judgement
from retrieval_heads.scoring.settings import EXACT, Scoring
from retrieval_heads.settings.range import Counts, whole_values
from retrieval_heads.settings.section import Said, Section, Whole
from retrieval_heads.tasks.task import Question, of_recipe

ENTRIES = "entries"
LARGEST_BOOK = 100_000
"""Entries."""
_LARGEST_OWN = 3_000  # of 80 × 80 names, so that another one is soon drawn
_ANSWER_TOKENS = 100
_QUESTION = "Which number does the phonebook list for {name}?"

_FIRST_NAMES = """
    Ada Adele Agnes Alan Albert Alice Amos Anita Anton Astrid Barbara Basil Beatrice Bella Bernard Boris Brenda Bruno
    Carla Carlos Cecil Celia Clara Conrad Cora Cyril Dagmar Daisy Dora Doris Edgar Edith Edwin Elena Elsa Emil Erika
    Ernest Esther Eugene Felix Fiona Flora Frida Georg Greta Gustav Hanna Harold Hazel Helga Hugo Ida Ines Irma Ivan
    Jasper Joan Judith Julius Karl Klara Leo Lydia Magnus Marta Miles Nora Olaf Olive Oscar Paula Petra Ralph Rosa
    Rufus Silvia Stella Theo Vera
"""
_LAST_NAMES = """
    Abbott Adler Albrecht Archer Baker Barlow Becker Berger Bishop Bloom Bolton Brandt Brook Calder Carver Chandler
    Cooper Costa Dalton Decker Dietrich Draper Eckert Ellis Engel Falk Farmer Fisher Fletcher Forster Franke Gardner
    Gibbs Glover Graf Hale Harper Hartmann Haywood Heller Hooper Horvath Hunter Jansen Jensen Keller Kessler Kramer
    Lambert Larsen Lindgren Lorenz Marsh Mason Mercer Miller Moreau Novak Olsen Orlov Palmer Parker Pfeiffer Porter
    Quinn Ritter Rossi Sander Sawyer Schuster Shepherd Silva Sommer Tanner Thatcher Turner Vogel Wagner Weaver Winkler
"""


class PhonebookOptions(Section):
    """Which phonebooks are asked about."""

    entries: Counts
    """Lines of the book in the prompt, several times."""
    size: Annotated[Whole, Field(ge=1, le=LARGEST_BOOK)] = 1000
    """Lines of the whole book, of which a prompt holds the first."""
    randomize: bool = False
    """A prompt holds others than the first, drawn for each count of entries."""
    names: Literal["own", "package"] = "own"
    """`package`: drawn as the PyPI package `names` draws them, by how frequent they are in the USA."""
    question: Said = _QUESTION
    """With `{name}` in it."""

    @field_validator("question")
    @classmethod
    def _asks_for_a_name(cls, question: str) -> str:
        if "{name}" not in question:
            raise ValueError("expected a text with {name} in it")
        return question


class PhonebookTask:
    """How many alike lines a model can tell apart: the whole answer's digits must be those of the number."""

    axes = (ENTRIES, DEPTH)
    settings: type[Section] = PhonebookOptions
    needs: frozenset[str] = frozenset()
    has_spans = True
    defaults: Mapping[str, object] = {
        "prompt": "{context}\n\n{question}",
        "generation": {"max_tokens": _ANSWER_TOKENS},
        "scoring": {"metric": EXACT},
    }

    def places(self, question: Question) -> Iterable[tuple[Value, ...]]:
        """Every count of entries by every depth; every entry where the sweep has no depths."""
        options = PhonebookOptions.model_validate(question.options)
        _check(options, question.scoring)
        for entries in whole_values(options.entries):
            asked = set()
            for depth in question.depths or [_percent(at, entries) for at in range(entries)]:
                if (at := _entry(depth, entries)) not in asked:
                    asked.add(at)
                    yield entries, depth

    def asked(self, question: Question, place: Place) -> Expectation:
        """The question for a name, and the number."""
        options = PhonebookOptions.model_validate(question.options)
        name, number = _book(options, place)[_at(place)]
        return Expectation(options.question.replace("{name}", name), number)

    def request(self, question: Question, place: Place, writer: Writer) -> Request:
        """The book's lines, and the question behind them; head scores aim at the asked line."""
        options = PhonebookOptions.model_validate(question.options)
        lines, at = [f"{name}: {number}" for name, number in _book(options, place)], _at(place)
        start = sum(len(line) + 1 for line in lines[:at])
        sampling = {key: value for key, value in question.generation.items() if value is not None}
        sampling.setdefault("max_tokens", _ANSWER_TOKENS)
        asked = self.asked(question, place).question
        assert question.prompt is not None
        line = (start, start + len(lines[at]))
        kept = options.model_dump(mode="json", exclude={ENTRIES})
        request = writer.document(question.prompt, "\n".join(lines), asked, line, sampling, kept)
        depth = round(_percent(at, len(lines)), 4)
        return replace(request, facts=replace(request.facts, achieved_depth=depth))

    def rebuilt(self, record: Record, writer: Writer) -> Request:
        """The same lines and question again."""
        recipe = record.recipe
        if recipe is None:
            lines = (record.prompt or "").splitlines()
            said = next((line for line in lines if line.endswith(f": {record.reference}")), record.reference)
            return writer.stored(record.prompt, said)
        question = Question(
            suite=record.suite,
            kind=record.kind,
            options={**(recipe.options or {}), ENTRIES: [record.place.get(ENTRIES)]},
            prompt=Prompt.model_validate({"messages": recipe.wording, "prefill": recipe.prefill}),
        )
        request = self.request(question, record.place, writer)
        return of_recipe(request, recipe, "phonebook")

    def judge(self, answer: str, expected: Expectation, scoring: Scoring) -> Judgement:
        """Whether the answer's digits, everything else left out, are the number's."""
        said, number = _digits(answer), _digits(expected.reference)
        passed = said == number
        reason = "" if passed else f"the answer's digits are {said or 'none'}, and not {number}"
        return Judgement({EXACT: float(passed)}, passed, reason)


PHONEBOOK = PhonebookTask()


def _check(options: PhonebookOptions, scoring: Scoring) -> None:
    """Refuse what no book can be made of."""
    counts = whole_values(options.entries)
    if scoring.metric != EXACT:
        raise ConfigError(f"scoring.metric: the score of a phonebook is {EXACT}, not {scoring.metric}")
    if not counts or min(counts) < 1:
        raise ConfigError("task.entries: expected counts of entries, 1 or more")
    if len(set(counts)) < len(counts):
        raise ConfigError("task.entries: a count of entries is given twice")
    if max(counts) > options.size:
        raise ConfigError(f"task.entries: {max(counts):,} entries are asked of a book of {options.size:,} (task.size)")
    if options.names == "own" and options.size > _LARGEST_OWN:
        raise ConfigError(
            f"task.size: there are names for {_LARGEST_OWN:,} entries; `names: package` has more (pip install names)"
        )
    if options.names == "package":
        _census()


def _book(options: PhonebookOptions, place: Place) -> list[tuple[str, str]]:
    """The entries in a prompt: name and number."""
    entries = place.get(ENTRIES)
    assert isinstance(entries, int)
    book = _whole_book(options.size, place.seed, options.names)
    if options.randomize:
        # By its own draw and not by one that goes on from count to count: what a cell asks is its own affair.
        return random.Random(f"retrieval-heads phonebook {place.seed} {entries}").sample(book, entries)
    return list(book[:entries])


@lru_cache(maxsize=8)
def _whole_book(size: int, seed: int, names: str) -> tuple[tuple[str, str], ...]:
    """The book of a seed; with `names: package` that of the predecessor, draw by draw."""
    draw = random.Random(seed)
    name = _census() if names == "package" else _own_name
    people: dict[str, None] = {}
    while len(people) < size:
        people.setdefault(name(draw))
    numbers: dict[str, None] = {}
    while len(numbers) < size:
        numbers.setdefault(f"{draw.randint(600, 999)}-{draw.randint(0, 999):03}-{draw.randint(0, 9999):04}")
    return tuple(zip(people, numbers, strict=True))


def _own_name(draw: random.Random) -> str:
    return f"{draw.choice(_FIRST_NAMES.split())} {draw.choice(_LAST_NAMES.split())}"


@lru_cache(maxsize=1)
def _census() -> Callable[[random.Random], str]:
    """What draws a name as the package `names` does, which is read and not imported: it draws from the one generator
    that all of a process shares.
    """
    spec = importlib.util.find_spec("names")
    folder = Path(spec.origin or "").parent if spec else Path("-")
    try:
        first = {sex: _shares(folder / f"dist.{sex}.first") for sex in ("male", "female")}
        last = _shares(folder / "dist.all.last")
    except (OSError, ValueError, IndexError):
        raise ConfigError("task.names: the PyPI package `names` is needed (pip install names)") from None

    def full_name(draw: random.Random) -> str:
        sex = draw.choice(("male", "female"))
        return f"{_drawn(draw, *first[sex])} {_drawn(draw, *last)}"

    return full_name


def _shares(file: Path) -> tuple[list[str], list[float]]:
    """Names, and for each how many percent have it or one before it."""
    lines = [line.split() for line in file.read_text("utf-8").splitlines()]
    return [line[0].capitalize() for line in lines], [float(line[2]) for line in lines]


def _drawn(draw: random.Random, names: list[str], shares: list[float]) -> str:
    return names[bisect.bisect_right(shares, draw.random() * 90)]


def _at(place: Place) -> int:
    entries, depth = place.get(ENTRIES), place.get(DEPTH)
    assert isinstance(entries, int)
    assert isinstance(depth, int | float)
    return _entry(depth, entries)


def _entry(depth: float, entries: int) -> int:
    """The entry nearest to a depth, from 0; of two as near, the later."""
    return int((2 * depth * (entries - 1) + 100) // 200)


def _percent(entry: int, entries: int) -> float:
    """The depth of an entry: 0 is the first, 100 the last."""
    return 100 * entry / (entries - 1) if entries > 1 else 0.0


def _digits(text: str) -> str:
    return "".join(character for character in text if character.isdecimal())
