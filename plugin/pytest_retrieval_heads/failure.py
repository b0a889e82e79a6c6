"""Why an item has no result though nothing is wrong with it: no engine, or none any more, or no model for one."""

from __future__ import annotations

from pathlib import Path

from _pytest._code.code import ReprExceptionInfo, ReprFileLocation, ReprTracebackNative

from retrieval_heads.errors import EngineError, printable

NO_MODEL = "no model is named; give --rh-config FILE with `model: {model: NAME}`, or --rh-set model.model=NAME"


class NoModel(EngineError):
    """What was selected needs a model, and neither a config nor the suite names one."""

    def __init__(self) -> None:
        super().__init__(NO_MODEL)


class EngineFailure:
    """How the session's engine failed: told once with its last words, and in one line to whatever else needed it.

    Args:
        text: The reason, and below it the engine's last words.
    """

    def __init__(self, text: str) -> None:
        self.line = text.partition("\n")[0]
        self._untold = text

    def tell(self) -> str:
        """All of it to the first who asks, then the one line."""
        told, self._untold = self._untold, self.line
        return told


def as_failure(text: str, path: Path | str, *, is_line: bool = False) -> ReprExceptionInfo:
    """A text whose first line is its summary: in pytest's short summary, which CI services show untrimmed, in
    JUnit XML and with --tb=line. A plain string would stand there whole; this also passes through xdist.

    Args:
        text: What is told.
        path: The file that it is told of.
        is_line: Whether its first line is all that is told (`--tb=line`); that line pytest adds itself.
    """
    text = printable(text)
    return ReprExceptionInfo(
        reprtraceback=ReprTracebackNative([] if is_line else [f"{text}\n"]),
        reprcrash=ReprFileLocation(str(path), 1, text.partition("\n")[0]),
    )
