"""Malformed inputs and what must come of them.

Every file and option that a user can give is made wrong in some way, and one command reads it. What must happen is
declared beside it: refused in one sentence that names the place, or accepted because nothing is wrong with it. Whatever
else is expected, there is no INTERNALERROR, no traceback, no hang, no raw control character on the terminal, and no
process that needs more memory than it is given.

- `fault_case`: a case, and how its outcome is judged.
- `fault_process`: runs a case in a process with limits. It forks for each one, so that a case costs milliseconds.
- `fault_project`: a user's project that is fine, whose files the cases make wrong.
- `fault_documents`, `fault_values`: generators of text and of values that are wrong for a key.
- `test_faults_*`: the cases, by what is read.

`make test` runs more than 700 cases, always the same ones. With `RH_FAULTS=10` every reader is given every declared
case (`some` takes a share of them else), and ten times as many cases are drawn, others each time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

REFUSALS = (1, 2, 4, 5)
"""Exit statuses of a refusal: of the command line, of collection, of usage, and of a session without a test."""

LONGEST = 1500
"""Characters of a line that a user can read."""

Do = Literal["cli", "pytest", "ask", "call"]
Expected = Literal["refused", "accepted", "either"]


@dataclass(frozen=True)
class Case:
    """One input and what reads it.

    Args:
        do: `cli`: the command line; `pytest`: a session; `ask`: `rh_engine.ask` with these arguments.
        arguments: Of the command; for `ask` one text, JSON of the keywords.
        files: What is written over the good project: text, bytes, or `Special`.
        expected: What must happen; `either` where both would be right, but nothing worse.
        says: What the sentence must hold: the file, the key or the line.
        status: The exit status, where it must be this one.
        note: What is wrong, for whoever reads of a fault.
        seconds: That a chat template may take.
    """

    do: Do
    arguments: Sequence[str]
    files: Mapping[str, Any] = field(default_factory=dict)
    expected: Expected = "refused"
    says: Sequence[str] = ()
    status: int | None = None
    note: str = ""
    seconds: float = 60.0


@dataclass(frozen=True)
class Special:
    """Something that is no regular file.

    Args:
        kind: `fifo`, `folder`, `link` (to `target`), or `missing` (what stood there is gone).
        target: Where a link leads.
    """

    kind: Literal["fifo", "folder", "link", "missing"]
    target: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Args:
        status: The exit status; `None` where the process was ended.
        ended: Why it was: `hang` or a signal's name.
        text: Everything that was printed.
    """

    status: int | None
    ended: str
    text: str


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with an outcome; nothing where it is as it must be."""
    found = []
    text = outcome.text
    if outcome.status is None:
        found.append(f"the process ended by {outcome.ended}")
    found += [
        f"printed {mark!r}"
        for mark in ("INTERNALERROR", "Traceback (most recent call last)", "MemoryError", "RecursionError")
        if mark in text
    ]
    if control := _CONTROL.search(text):
        found.append(f"printed the control character {control[0]!r}")
    longest = max((len(line) for line in text.splitlines()), default=0)
    if longest > LONGEST:
        found.append(f"printed a line of {longest} characters")
    if outcome.status is None:
        return found
    if case.expected == "refused" and outcome.status not in REFUSALS:
        found.append(f"accepted (exit status {outcome.status})")
    if case.expected == "accepted" and outcome.status != 0:
        found.append(f"refused (exit status {outcome.status})")
    if case.status is not None and outcome.status != case.status:
        found.append(f"exit status {outcome.status}, not {case.status}")
    # The terminal may break a line in the middle of a name.
    flat = re.sub(r"\s+", " ", text)
    packed = re.sub(r"[\s│]+", "", text)
    if outcome.status != 0:
        found += [
            f"does not say {said!r}"
            for said in case.says
            if said not in flat and re.sub(r"\s+", "", said) not in packed
        ]
    return found
