"""The exceptions that users see, as sentences without a traceback."""

from __future__ import annotations

import re
from pathlib import Path

from retrieval_heads.redaction import without_secrets

_LONGEST = 1000
"""Characters of a line; more of it, such as a path of 5,000, is left out in its middle."""

# Control characters move a terminal's cursor or set its title, the marks of direction reorder a line, and a lone half
# of a surrogate pair cannot be printed at all.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text as a terminal may be given it: what is no character to be seen is written as its escape."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class RetrievalHeadsError(Exception):
    """Something the user can act on: what was wrong, where, and what is accepted.

    What it says of a user's file may hold anything; as a text it is printable, its lines are short enough to read, and
    it quotes no secret.
    """

    def __str__(self) -> str:
        return _readable(super().__str__())


def _readable(text: str) -> str:
    return "\n".join(map(_shortened, printable(without_secrets(text)).split("\n")))


def _shortened(line: str) -> str:
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} … {line[-half:]}"


class ConfigError(RetrievalHeadsError):
    """A suite, config or option that cannot be used as it stands."""


class PromptError(RetrievalHeadsError):
    """A cell whose prompt cannot be built: too short, or the template refuses it."""


class ResultsError(RetrievalHeadsError):
    """A results, heads or baseline file that cannot be read."""


class UnreadableFile(ConfigError, ResultsError):
    """A file or path that nothing can be read from, whoever names it: a suite or a run."""


class EngineError(RetrievalHeadsError):
    """The engine did not start, died, or refused a request."""


class QuestionError(EngineError, TypeError):
    """A question to the engine that is made of what does not cross to it."""


class FileError(RetrievalHeadsError, OSError):
    """A file that cannot be written, and the `OSError` that says why."""

    def __str__(self) -> str:
        return _readable(f"{self.filename}: cannot be written ({self.strerror})")

    @classmethod
    def of(cls, path: Path, error: OSError) -> FileError:
        """What happened to a path."""
        return cls(error.errno, error.strerror or str(error), str(path))
