"""The exceptions that users see, as sentences without a traceback."""

from __future__ import annotations

from pathlib import Path

from retrieval_heads.redaction import without_secrets


class RetrievalHeadsError(Exception):
    """Something the user can act on: what was wrong, where, and what is accepted. It quotes no secret."""

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class ConfigError(RetrievalHeadsError):
    """A suite, config or option that cannot be used as it stands."""


class PromptError(RetrievalHeadsError):
    """A cell whose prompt cannot be built: too short, or the template refuses it."""


class ResultsError(RetrievalHeadsError):
    """A results, heads or baseline file that cannot be read."""


class EngineError(RetrievalHeadsError):
    """The engine did not start, died, or refused a request."""


class FileError(RetrievalHeadsError, OSError):
    """A file that cannot be written, and the `OSError` that says why."""

    def __str__(self) -> str:
        return without_secrets(f"{self.filename}: cannot be written ({self.strerror})")

    @classmethod
    def of(cls, path: Path, error: OSError) -> FileError:
        """What happened to a path."""
        return cls(error.errno, error.strerror or str(error), str(path))
