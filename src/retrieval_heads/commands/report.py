"""`retrieval-heads report`: a run's results as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from retrieval_heads.errors import ResultsError, printable
from retrieval_heads.files import write_whole
from retrieval_heads.report import load_run
from retrieval_heads.report.text import text_report


@dataclass(frozen=True)
class Report:
    """Print the means of a run as a grid of text, with its averages; of needles, programs and phonebooks alike.

    Example: retrieval-heads report reports/latest/results.jsonl
    """

    results: Annotated[Path, tyro.conf.Positional]
    """A results.jsonl (the predecessor's as well) or a run's folder."""
    output_path: Path | None = None
    """Write it there instead."""

    def run(self) -> None:
        """Print or write it.

        Raises:
            ResultsError: The results cannot be read, or hold no answer.
        """
        text = text_report(load_run(self.results).records)
        if self.output_path is None:
            print("\n".join(map(printable, text.split("\n"))))
            return
        try:
            self.output_path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.output_path, f"{text}\n".encode())
        except OSError as error:
            raise ResultsError(f"{self.output_path}: cannot be written ({error.strerror})") from None
