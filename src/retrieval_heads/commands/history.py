"""`retrieval-heads visualize history`: several runs on one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from retrieval_heads.errors import ConfigError, printable
from retrieval_heads.report.history import history_of, write_history
from retrieval_heads.runs.signature import refuse_foreign


@dataclass(frozen=True)
class VisualizeHistory:
    """Draw what each suite came to over dates: a line for each suite (and model), and a table of its runs.

    Example: retrieval-heads visualize history reports
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """A folder of runs, such as reports."""
    output: Path | None = None
    """The page; left out, history.html in that folder."""
    title: str = "History"
    """Heading."""

    def run(self) -> None:
        """Draw, and print what was written and which runs are left out."""
        output = self.output or self.folder / "history.html"
        if output.name in ("", "..") or output.is_dir():
            raise ConfigError(f"--output {str(output)!r}: the name of a page is expected, such as history.html")
        history = history_of(self.folder)
        refuse_foreign([output])
        for sentence in history.left_out:
            print(printable(f"left out: {sentence}"))
        print(printable(f"wrote {write_history(history, output, self.title)}"))
