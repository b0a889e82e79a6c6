"""RULER's questions over documents: SQuAD's (qa_1) and HotpotQA's (qa_2), from files that the user has."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from retrieval_heads.errors import ConfigError
from retrieval_heads.reading import parse_json, read_text, state_of
from retrieval_heads.runs.record import first_mistake
from retrieval_heads.tasks.ruler.part import Asked, Filled, Units
from retrieval_heads.tasks.ruler.wording import DocumentsWording, fill


@dataclass(frozen=True)
class Entry:
    """A question of a file.

    Args:
        query: What is asked.
        answers: What is accepted, each once.
        gold: Numbers of the documents that belong to it, which every prompt holds.
        near: Those that are taken first to fill a prompt: the other paragraphs of SQuAD's article.
    """

    query: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclass(frozen=True)
class Documents:
    """A file of questions over documents.

    Args:
        path: The file.
        hash: SHA-256 of its text.
        texts: The documents, each once, sorted.
        entries: The questions, in the file's order.
    """

    path: str
    hash: str
    texts: tuple[str, ...]
    entries: tuple[Entry, ...]


class _Answer(BaseModel):
    text: str


class _Query(BaseModel):
    question: str
    answers: list[_Answer]
    is_impossible: bool = False


class _Paragraph(BaseModel):
    context: str
    qas: list[_Query]


class _Article(BaseModel):
    paragraphs: list[_Paragraph]


class _Squad(BaseModel):
    data: list[_Article]


class _Hotpot(BaseModel):
    question: str
    answer: str
    context: list[tuple[str, list[str]]]


def read_squad(path: str) -> Documents:
    """A file of SQuAD's: paragraphs are documents, questions without an answer are left out.

    Raises:
        ConfigError: It cannot be read, a field is missing, or it holds no question with an answer.
    """
    return _squad(path, state_of(path))


def read_hotpotqa(path: str) -> Documents:
    """A file of HotpotQA's, of the distractor setting: titles and sentences of its paragraphs are documents.

    Raises:
        ConfigError: As for `read_squad`.
    """
    return _hotpotqa(path, state_of(path))


@lru_cache(maxsize=4)
def _squad(path: str, _state: tuple[int, int]) -> Documents:
    text, file = _read(path, _Squad, "SQuAD's")
    articles = [article.paragraphs for article in file.data]
    texts, number = _numbered(each.context for paragraphs in articles for each in paragraphs)
    entries = []
    for paragraphs in articles:
        near = dict.fromkeys(number[each.context] for each in paragraphs)
        for paragraph, asked in ((each, asked) for each in paragraphs for asked in each.qas):
            if not asked.is_impossible:
                gold, answers = number[paragraph.context], dict.fromkeys(answer.text for answer in asked.answers)
                others = tuple(each for each in near if each != gold)
                entries.append(Entry(asked.question, tuple(answers), (gold,), others))
    return _checked(Documents(path, _hash(text), texts, tuple(entries)))


@lru_cache(maxsize=4)
def _hotpotqa(path: str, _state: tuple[int, int]) -> Documents:
    text, file = _read(path, list[_Hotpot], "HotpotQA's")
    said = [[f"{title}\n{''.join(sentences)}" for title, sentences in each.context] for each in file]
    texts, number = _numbered(itertools.chain.from_iterable(said))
    entries = [
        Entry(each.question, (each.answer,), tuple(dict.fromkeys(number[document] for document in documents)))
        for each, documents in zip(file, said, strict=True)
    ]
    return _checked(Documents(path, _hash(text), texts, tuple(entries)))


def _read(path: str, shape: Any, whose: str) -> tuple[str, Any]:
    text = read_text(Path(path))
    data = parse_json(text, path, "a JSON document")
    try:
        return text, TypeAdapter(shape).validate_python(data)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_mistake(error)}; a file of {whose} shape is expected") from None


def _numbered(texts: Iterator[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    every = tuple(sorted(set(texts)))
    return every, {text: number for number, text in enumerate(every)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(found: Documents) -> Documents:
    if not found.entries:
        raise ConfigError(f"{found.path} holds no question that has an answer")
    for number, entry in enumerate(found.entries):
        if not entry.query.strip():
            raise ConfigError(f"{found.path}: question {number} is empty")
        if not entry.gold or not all(each.strip() for each in entry.answers or ("",)):
            what = "an answer" if entry.gold else "a document"
            raise ConfigError(f"{found.path}: question {number} ({entry.query!r}) has not {what}")
    return found


@dataclass(frozen=True)
class OverDocuments(Units):
    """A question over as many documents as fit, its own among them; a sample is the file's question of that number.

    Args:
        name: The task's.
        wording: Its texts.
        documents: The file.
    """

    name: str
    wording: DocumentsWording
    documents: Documents
    answer_tokens = 32
    has_spans = False
    unit = "documents"

    def fewest(self, seed: int) -> int:
        """Its own documents."""
        return len(self._entry(seed).gold)

    def asked(self, seed: int, length: int) -> Asked:
        """The question, and its answers: any of them counts."""
        phrases, entry = self.wording.phrases, self._entry(seed)
        question, prefill = fill(phrases.question, query=entry.query), phrases.prefill.strip()
        return Asked(phrases.message, question, prefill, entry.answers[:1], entry.answers[1:])

    def example(self, seed: int, length: int, tokens_of: Callable[[str], int]) -> str:
        """None."""
        return ""

    def filled(self, seed: int, length: int, count: int) -> Filled:
        """Its own documents, then those near to them, then others; in an order that the seed draws."""
        entry, draw = self._entry(seed), random.Random(f"retrieval-heads ruler {self.name} {seed}")
        texts = self.documents.texts
        near = _shuffled(draw, entry.near)
        taken = {*entry.gold, *near}
        rest = _shuffled(draw, [number for number in range(len(texts)) if number not in taken])
        # Where a file has fewer documents than fit, RULER repeats them.
        chosen = list(itertools.islice(itertools.cycle([*entry.gold, *near, *rest]), count))
        draw.shuffle(chosen)
        return Filled(
            "\n\n".join(
                fill(self.wording.document, i=place, document=texts[number])
                for place, number in enumerate(chosen, start=1)
            )
        )

    def _entry(self, seed: int) -> Entry:
        entries = self.documents.entries
        if seed >= len(entries):
            raise ConfigError(
                f"{self.name}: seed {seed} asks for a question that {self.documents.path} has not: its "
                f"{len(entries)} are those of the seeds 0 to {len(entries) - 1}"
            )
        return entries[seed]


def _shuffled(draw: random.Random, numbers: Sequence[int]) -> list[int]:
    return draw.sample(numbers, len(numbers))
