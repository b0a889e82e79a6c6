"""Sets of needles that share no word with their question: our own, or a file in the format of NoLiMa's."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from retrieval_heads.errors import ConfigError
from retrieval_heads.prompts.settings import Message, Prompt
from retrieval_heads.reading import parse_json, read_bytes, state_of
from retrieval_heads.runs.record import first_mistake
from retrieval_heads.settings.section import Said
from retrieval_heads.tasks.nonliteral.own import CHARACTERS, OWN

CHARACTER = "{CHAR}"
DIRECT = "direct"
"""The kind of question that says the needle's own words: it is asked to see whether a model understands the needle."""
_NAME = re.compile(r"[^\w.-]+")
_PLACE = re.compile(r"\{(\d+)\}")


@dataclass(frozen=True)
class Pair:
    """A needle and a question about it.

    Args:
        name: Names it among the pairs of a set.
        hop: The kind of question: `onehop`, `twohop`, `direct`; the language in our own set.
        needle: With `{CHAR}` in it.
        question: What is asked.
        characters: The names that one is drawn of.
        gold: The answers that are accepted; none: the drawn name.
        distractors: Texts that are near the question and do not answer it.
        prompt: The wording that its set gives; `None` for none.
    """

    name: str
    hop: str
    needle: str
    question: str
    characters: tuple[str, ...]
    gold: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    prompt: Prompt | None = None


@dataclass(frozen=True)
class NeedleSet:
    """Pairs by their names, and the SHA-256 of the file that they are from; empty for our own."""

    pairs: Mapping[str, Pair]
    hash: str = ""


@lru_cache(maxsize=1)
def own_set() -> NeedleSet:
    """The set that is free: three languages."""
    pairs = [
        Pair(f"{language}_{name}", language, needle, question, CHARACTERS, distractors=(distractor,))
        for language, entries in OWN.items()
        for name, needle, question, distractor in entries
    ]
    return NeedleSet({pair.name: pair for pair in pairs})


def read_set(path: Path) -> NeedleSet:
    """A needle-set file in NoLiMa's format (arXiv 2502.05167), a list of entries.

    Raises:
        ConfigError: It cannot be read, or an entry is none: which, and what is wrong.
    """
    return _parsed(path, state_of(path))


class _Said(BaseModel):
    """A part of the file; what is null is not said."""

    model_config = ConfigDict(extra="ignore", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, data: object) -> object:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


def _texts(value: object) -> object:
    """A text or a list of texts as a list; an empty text says nothing."""
    if not isinstance(value, str):
        return value
    return [value] if value else []


class _Test(_Said):
    input_args: list[str] = []
    gold_answers: Annotated[list[Said], BeforeValidator(_texts)] = []


_Distractors = Annotated[list[Said], BeforeValidator(_texts)]


class _Entry(_Said):
    """An entry of the file: one needle, and what is put into its places by each test."""

    id: Said
    needle: Said
    questions: dict[str, Said] = Field(min_length=1)
    tests: dict[str, _Test] = Field(min_length=1)
    character_set: list[Said] = []
    system_prompt: str = ""
    task_template: str = ""
    distractors: dict[str, _Distractors] | _Distractors = []

    @model_validator(mode="after")
    def _whole(self) -> _Entry:
        if CHARACTER in self.needle and not self.character_set:
            raise ValueError(f"the needle holds {CHARACTER} and there is no character_set")
        for name, test in self.tests.items():
            if CHARACTER not in self.needle and not test.gold_answers:
                raise ValueError(f"tests.{name}: the needle holds no {CHARACTER}, so that gold_answers are needed")
            distractors = itertools.chain.from_iterable(map(self._distractors, self.questions))
            for text in (self.needle, *self.questions.values(), *distractors):
                if missing := [at for at in _PLACE.findall(text) if not 1 <= int(at) <= len(test.input_args)]:
                    raise ValueError(
                        f"tests.{name}: {text!r} holds {{{missing[0]}}}, and input_args has {len(test.input_args)}"
                    )
        for mark in ("{haystack}", "{question}"):
            if self.task_template and self.task_template.count(mark) != 1:
                raise ValueError(f"task_template holds {mark} {self.task_template.count(mark)} times; once is accepted")
        if self.task_template:
            for mark in ("{context}", "{question}"):
                if mark in self.system_prompt or (mark == "{context}" and mark in self.task_template):
                    raise ValueError(
                        f"system_prompt and task_template: {mark} stands there besides; it is a mark of ours"
                    )
        return self

    def pairs(self) -> Iterator[Pair]:
        for name, test in self.tests.items():
            for hop, question in self.questions.items():
                yield Pair(
                    _NAME.sub("_", f"{self.id}_{name}_{hop}"),
                    hop,
                    _filled(self.needle, test.input_args),
                    _filled(question, test.input_args),
                    tuple(self.character_set),
                    tuple(test.gold_answers),
                    tuple(_filled(text, test.input_args) for text in self._distractors(hop)),
                    self._prompt(),
                )

    def _distractors(self, hop: str) -> Sequence[str]:
        return self.distractors.get(hop, []) if isinstance(self.distractors, dict) else self.distractors

    def _prompt(self) -> Prompt | None:
        if not self.task_template:
            return None
        text = self.task_template.replace("{haystack}", "{context}")
        system = [Message(role="system", content=self.system_prompt)] if self.system_prompt else []
        return Prompt(messages=[*system, Message(content=text)])


def _filled(text: str, arguments: Sequence[str]) -> str:
    return _PLACE.sub(lambda place: arguments[int(place[1]) - 1], text)


@lru_cache(maxsize=4)
def _parsed(path: Path, _state: tuple[int, int]) -> NeedleSet:
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from None
    entries = parse_json(text, str(path), "a JSON list of needles")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: a JSON list of needles is expected, in the format of NoLiMa's needle sets")
    pairs: dict[str, Pair] = {}
    for number, entry in enumerate(entries, start=1):
        for pair in _entry(entry, f"{path}: entry {number}").pairs():
            if pair.name in pairs:
                raise ConfigError(f"{path}: entry {number}: there are two of {pair.name}")
            pairs[pair.name] = pair
    return NeedleSet(pairs, hashlib.sha256(content).hexdigest())


def _entry(data: object, where: str) -> _Entry:
    if isinstance(data, dict) and isinstance(data.get("id"), str):
        where = f"{where} ({data['id']})"
    try:
        return _Entry.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_mistake(error)}") from None
