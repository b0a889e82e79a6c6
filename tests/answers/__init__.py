"""Answers with a label that was given by reading them, before the metric was written; see README.md beside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
RIGHT = "right"


@dataclass(frozen=True)
class Labelled:
    """An answer and what a reader says of it.

    Args:
        name: The needle's name.
        language: ISO 639-1.
        needle: The needle.
        question: What was asked.
        reference: The expected answer; the needle itself where the suite gives none.
        answer: What was said.
        source: `hand`, or the model and how it was asked.
        label: `right`, or what is wrong: another value, partly, echo, refusal, denied, open, babble.
        part: `tune` was looked at while the metric was written, `held out` was not.
        why: Where the label is not obvious.
    """

    name: str
    language: str
    needle: str
    question: str
    reference: str
    answer: str
    source: str
    label: str
    part: str
    why: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the answer says what only the needle knows."""
        return self.label == RIGHT


def labelled() -> list[Labelled]:
    """Every labelled answer."""
    return [
        Labelled(**json.loads(line))
        for file in sorted(FOLDER.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
