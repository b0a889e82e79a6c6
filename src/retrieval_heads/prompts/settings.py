"""What a prompt is made of, as a suite says it: haystack, needle, wording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from retrieval_heads.settings.section import PathText, Said, Section

PREDECESSORS_KEYS = frozenset({"haystack_dir", "needle", "retrieval_question"})
"""Of a haystack: a config that has one is the predecessor's."""
PREDECESSORS_PROMPT = "document"


class HaystackSource(Section):
    """Where the text comes from. `needle` and `retrieval_question` are the predecessor's place for them."""

    source: str | None = None
    """A folder of .txt files, a pattern (`src/**/*.py`), `package:NAME/PATH` for one inside an installed package, or
    `pydoc`."""
    haystack_dir: str | None = None
    """The predecessor's name for a folder as `source`."""
    name: Said | None = None
    """Names the haystack in cells; the last part of the source where it is left out."""
    needle: str | None = None
    retrieval_question: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> HaystackSource:
        if self.source is not None and self.haystack_dir is not None:
            raise ValueError("give source or haystack_dir, not both")
        return self


def _answers(value: object) -> object:
    """One answer, or a list of those that are accepted; a list of one is that one."""
    listed = value if isinstance(value, list) else [value]
    if value is not None and not (listed and all(isinstance(each, str) for each in listed)):
        raise ValueError(f"expected a text or a list of texts, numbers in quotes; found {value!r}")
    if value is not None and not all(str(each).strip() for each in listed):
        raise ValueError("answer is empty")
    if twice := [each for at, each in enumerate(listed) if each in listed[:at]]:
        raise ValueError(f"{twice[0]!r} is given twice")
    return listed[0] if len(listed) == 1 else value


class Needle(Section):
    """A fact, the question that asks for it and the answer that counts."""

    needle: str
    question: str
    answer: Annotated[str | list[str] | None, BeforeValidator(_answers)] = None
    """The reference that the scores compare with, or a list of which any one is accepted; the needle itself where it
    is left out.
    """
    answer_span: str | None = None
    """The part of the needle that must be said; head scores count its tokens alone."""
    name: str | None = None
    distractors: list[Said] = []
    """Texts that stand in the haystack too, at seeded depths away from the needle."""
    haystack: str | None = None
    """A haystack of its own, as `HaystackSource.source`."""

    @model_validator(mode="after")
    def _complete(self) -> Needle:
        for key in ("needle", "question"):
            if not getattr(self, key).strip():
                raise ValueError(f"{key} is empty")
        if self.answer_span is not None and not self.answer_span.strip():
            raise ValueError("answer_span is empty")
        if self.answer_span is not None and self.answer_span not in self.needle:
            raise ValueError(f"answer_span {self.answer_span!r} does not stand in the needle")
        for at, text in enumerate(self.distractors):
            if text.strip() == self.needle.strip():
                raise ValueError(f"distractors.{at} is the needle itself, which would stand at other depths too")
        return self

    @property
    def references(self) -> tuple[str, ...]:
        """The answers that are accepted, without surrounding white space; the needle where none is given."""
        answers = self.answer if isinstance(self.answer, list) else [self.answer or self.needle]
        return tuple(each.strip() for each in answers)

    @property
    def reference(self) -> str:
        """The first of them, which names the question."""
        return self.references[0]

    @property
    def sayings(self) -> tuple[str, ...]:
        """Of what `key_words` must find one in an answer: the answers, else `answer_span`, else the needle."""
        if self.answer is None and self.answer_span:
            return (self.answer_span.strip(),)
        return self.references


class NeedleColumns(Section):
    """Which column of a file is which key of a needle; a key that is left out has the column of its name, if any."""

    needle: Said | None = None
    question: Said | None = None
    answer: Said | list[Said] | None = None
    """One, that holds a text or a list; or several."""
    answer_span: Said | None = None
    name: Said | None = None
    distractors: Said | list[Said] | None = None
    """As `answer`; empty cells are left out."""
    haystack: Said | None = None
    """The text that the row's needle stands in."""

    def found_in(self, columns: Sequence[str]) -> dict[str, str | list[str]]:
        """The column, or columns, of each key that a file has."""
        said = {key: getattr(self, key) for key in type(self).model_fields}
        return {
            key: column if column is not None else key
            for key, column in said.items()
            if column is not None or key in columns or key in ("needle", "question")
        }


class NeedleFile(Section):
    """Needles from a table."""

    file: PathText
    """JSONL, CSV or TSV."""
    columns: NeedleColumns = NeedleColumns()


class Message(Section):
    """One message of a prompt; `{context}` and `{question}` mark where those go."""

    role: Literal["system", "user", "assistant"] = "user"
    content: str


class Prompt(Section):
    """A prompt's wording: messages that hold `{context}` and `{question}` once each."""

    messages: Annotated[list[Message], Field(min_length=1)]
    prefill: Said | None = None
    """The first words of the answer, which the model goes on with; part of the prompt and no message."""

    @model_validator(mode="after")
    def _marked(self) -> Prompt:
        text = "".join(message.content for message in self.messages)
        for mark in ("{context}", "{question}"):
            if (found := text.count(mark)) != 1:
                raise ValueError(f"the messages hold {mark} {found} times; once is accepted")
        return self


PROMPTS: dict[str, Prompt] = {
    "book": Prompt(
        messages=[
            Message(
                content="This is a very long story book:\n<book>\n{context}\n</book>\n"
                "Based on the content of the book, answer the question: {question}"
            )
        ]
    ),
    PREDECESSORS_PROMPT: Prompt(
        messages=[
            Message(content="{context}"),
            Message(content="{question} Don't give information outside the document or repeat your findings"),
        ]
    ),
}
"""Prompts by name. `document` is the predecessor's."""


def prompt_name(prompt: Prompt | None) -> str | None:
    """What a wording is called, where it is one of ours or the predecessor's."""
    return next((name for name, known in PROMPTS.items() if known == prompt), None)


def named_prompt(value: object) -> object:
    """A prompt by its name, or a text that holds `{context}` as its only message."""
    if not isinstance(value, str):
        return value
    if value in PROMPTS:
        return PROMPTS[value]
    if "{context}" in value:
        return {"messages": [{"content": value}]}
    raise ValueError(f"unknown prompt {value!r}; accepted: {', '.join(PROMPTS)}, or a text with {{context}}")
