"""What a session says in the terminal while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval_heads.errors import printable
from retrieval_heads.redaction import without_secrets


class Console:
    """Lines of ours between pytest's own.

    Args:
        config: pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def say(self, line: str) -> None:
        """Write a line of its own, without secrets."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            if reporter._tw.width_of_current_line:  # xdist's progress, of which ensure_newline knows nothing
                reporter.write_line("")
            reporter.write_line(printable(without_secrets(f"rh: {line}")))

    def path(self, path: Path) -> str:
        """A path as a user would type it."""
        base = Path(self._config.invocation_params.dir)
        return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
