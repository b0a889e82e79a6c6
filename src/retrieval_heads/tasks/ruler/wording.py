"""The texts that RULER's prompts are made of, with marks in braces for what is drawn: our own, or RULER's."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from retrieval_heads.settings.section import Said, Section

_MARK = re.compile(r"\{(\w+)\}")


class Phrases(Section):
    """A prompt's message, its question and the first words of the answer.

    `{query}` in each is what is asked for; `{type}` and `{types}` are what values are called, one and several.
    """

    message: Said
    """`{context}` and `{question}` in it."""
    question: Said
    prefill: Said
    example: str = ""
    """What stands before the message, of a task that works an example first; `{asked}`, which is message and question
    of the example, `{prefill}` and `{answer}` in it.
    """

    @field_validator("message")
    @classmethod
    def _asks(cls, message: str) -> str:
        for mark in ("{context}", "{question}"):
            if (found := message.count(mark)) != 1:
                raise ValueError(f"holds {mark} {found} times; once is accepted")
        return message

    def worked(self, context: str, answer: str, **marks: object) -> str:
        """The worked example, with its context and its answer."""
        asked = fill(self.message, context=context, question=fill(self.question, **marks))
        return fill(self.example, asked=asked, prefill=fill(self.prefill, **marks), answer=answer)


class NiahWording(Section):
    """Of the needle tasks."""

    one: Phrases
    """Where one value is asked for."""
    several: Phrases
    """Where several are."""
    needle: Said
    """`{type}` or `{types}`, `{key}` and `{value}` in it."""
    noise: Said
    """A passage of the text that stands around the needle of niah_single_1."""
    numbers: tuple[Said, Said]
    """What a value of digits is called, one and several."""
    identifiers: tuple[Said, Said]
    """What a UUID is called, one and several."""
    last: Said
    """Between the last two of several keys."""
    is_rulers: bool = False
    """Whether needles stand as RULER has them: sentences among sentences, counted in sentences; lines among whole
    passages of noise. Else each has a line of its own at the nearest end of a sentence, counted in tokens.
    """


class TrackingWording(Section):
    """Of vt."""

    phrases: Phrases
    first: Said
    """The assignment of a number; `{name}` and `{value}` in it."""
    hop: Said
    """That of another variable; `{name}` and `{of}` in it."""
    noise: Said
    """A passage of the text around them."""
    joint: str
    """Between assignments and passages."""
    between: str
    """Between the variables of the worked example's answer."""
    example_tokens: int | None = Field(default=None, ge=1)
    """Tokens that the worked example may take, but for a tokenizer by which the least is more; it has six passages
    where this is left out.
    """


class ListWording(Section):
    """Of cwe and fwe."""

    phrases: Phrases


class DocumentsWording(Section):
    """Of qa_1 and qa_2."""

    phrases: Phrases
    document: Said
    """`{i}`, its number, and `{document}` in it."""

    @field_validator("document")
    @classmethod
    def _holds(cls, document: str) -> str:
        if "{document}" not in document:
            raise ValueError("holds no {document}")
        return document


def fill(text: str, **marks: object) -> str:
    """A text with what its marks stand for; marks of other names stay."""
    return _MARK.sub(lambda mark: str(marks.get(mark[1], mark[0])), text)


_TRACKED = "Some lines of the text below give a value to a variable. Keep track of which variable has which value."
_COUNTED = "The numbered list below holds some words more often than others. Note which they are."

OWN_NIAH = NiahWording(
    one=Phrases(
        message="In the text below, a secret {type} is hidden. Read it with care: it will be asked for.\n"
        "{context}\n{question}",
        question="What is the secret {type} of {query}?",
        prefill="The secret {type} of {query} in the text is",
    ),
    several=Phrases(
        message="In the text below, some secret {types} are hidden. Read it with care: it will be asked for.\n"
        "{context}\n{question}",
        question="What are all the secret {types} of {query}?",
        prefill="The secret {types} of {query} in the text are",
    ),
    needle="The secret {type} of {key} is {value}.",
    noise="The lamp is lit. The door is shut. The kettle hums. We wait a while. Then we walk on.\n",
    numbers=("number", "numbers"),
    identifiers=("identifier", "identifiers"),
    last=" and ",
)
OWN_VT = TrackingWording(
    phrases=Phrases(
        message=f"{_TRACKED}\n\n{{context}}\n{{question}}",
        question="Which variables in the text have the value {query}?",
        prefill="In the text, {num_v} variables have the value {query}. They are",
        example="{asked}\n{prefill} {answer}\n\n",
    ),
    first="LET {name} = {value}\n",
    hop="LET {name} = {of}\n",
    noise=OWN_NIAH.noise,
    joint="",
    between=", ",
)
OWN_CWE = ListWording(
    phrases=Phrases(
        message=f"{_COUNTED}\n{{context}}\n{{question}}",
        question="Which 10 words stand in the list most often?",
        prefill="The 10 words that stand in the list most often are",
        example="{asked}\n{prefill} {answer}\n\n",
    )
)
OWN_FWE = ListWording(
    phrases=Phrases(
        message="The words of the coded text below repeat. Pay no heed to the dots (...).\n{context}\n{question}",
        question="Which 3 coded words stand most often in the text?",
        prefill="The 3 coded words that stand most often in the text are",
    )
)
OWN_QA = DocumentsWording(
    phrases=Phrases(
        message="Some of the documents below hold the answer to a question. Say nothing but the answer.\n\n"
        "{context}\n\n{question}",
        question="{query}",
        prefill="The answer is",
    ),
    document="Document {i}\n{document}",
)
