"""How long pictures and report of a large run take: 10,000 cells and 5,120 heads, made up, from files.

    python benchmarks/report.py

Whole `retrieval-heads visualize` calls. Goals on two cores: the pictures of 10,000 cells in 10 s, their report in 20 s.
Both come from one call, which must stay below 10 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from retrieval_heads.runs.record import Record, dump_record
from retrieval_heads.scoring.settings import KEY_WORDS
from sample_run import sample_records


@dataclass(frozen=True)
class Benchmark:
    """Draw a large run."""

    lengths: int = 100
    """Lengths of the grid; as many depths."""
    rounds: int = 3
    """How often it is drawn."""

    def run(self) -> None:
        """Measure, and print."""
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results.jsonl"
            lengths = [1000 * number for number in range(1, self.lengths + 1)]
            depths = [100 * number / (self.lengths - 1) for number in range(self.lengths)]
            records = [_typical(number, one) for number, one in enumerate(sample_records(lengths, depths))]
            results.write_text("".join(f"{dump_record(record)}\n" for record in records), encoding="utf-8")
            took = []
            for _ in range(self.rounds):
                began = time.perf_counter()
                command = [
                    "-c",
                    "from retrieval_heads.cli import main; main()",
                    "visualize",
                    "niah",
                    "--results",
                    str(results),
                ]
                subprocess.run([sys.executable, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
                took.append(time.perf_counter() - began)
            size = (Path(folder) / "report.html").stat().st_size
        print(f"{len(records):,} cells: {statistics.median(took):.1f} s (goal 10), report {size / 1e6:.1f} MB")


def _typical(number: int, record: Record) -> Record:
    """By the score that decides where a suite says nothing; what is missed is missed in words of its own."""
    scores = {KEY_WORDS: float(record.passed or 0)} | record.scores
    text = record.text if record.passed else record.text.replace("pocket", f"pocket {number} of the coat")
    return record.model_copy(update={"metric": KEY_WORDS, "scores": scores, "text": text})


if __name__ == "__main__":
    tyro.cli(Benchmark, description=__doc__).run()
