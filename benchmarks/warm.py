"""What a run costs that asks a warm engine, from typing it to its verdict, beyond the seconds of the engine's steps.

    python benchmarks/warm.py --rounds 7

Each round asks prompts that are new to the engine's cache (another seed), then the same again, and with `--own` once at
the end on an engine of the run's own. Wall time is what a user waits; processor time is pytest's, without the engine's.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

HERE = Path(__file__).resolve().parents[1]
CELLS = "depth_50 and len_1024"
# As a user has it: compiled modules are kept.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
GOAL = 1.5


@dataclass(frozen=True)
class Took:
    """Seconds of one run."""

    wall: float
    processor: float
    steps: float

    @property
    def beyond(self) -> float:
        """What it took beyond the engine's steps."""
        return self.wall - self.steps


@dataclass(frozen=True)
class Warm:
    """Time runs that ask a warm engine."""

    rounds: int = 7
    """How often new prompts are asked, and asked again."""
    config: Path = HERE / "configs/smollm2.yaml"
    """The model."""
    suite: Path = HERE / "suites/niah/demo.yaml"
    """What is asked, of it the cells of 1,024 tokens at depth 50."""
    own: bool = False
    """Also run once on an engine that ends with the run."""

    def run(self) -> None:
        """Measure and print."""
        took: dict[str, list[Took]] = {"prompts new to its cache": [], "a repeated run": []}
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            ENVIRONMENT["TMPDIR"] = folder  # no other warm engine is there
            (Path(folder) / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
            command = [sys.executable, "-c", "from retrieval_heads.cli import main; main()", "engine"]
            subprocess.run([*command, "start", "--config", self.config], env=ENVIRONMENT, check=True)
            try:
                self._timed(folder, seed=1_000)  # compiles bytecode, fills the file cache
                for number in range(self.rounds):
                    for row in took.values():
                        row.append(self._timed(folder, seed=number + 1))
                if self.own:
                    took["an engine of its own"] = [self._timed(folder, 1, "--rh-engine", "own")]
            finally:
                subprocess.run([*command, "stop"], env=ENVIRONMENT, check=True)
        print_table(took)

    def _timed(self, folder: str, seed: int, *arguments: str) -> Took:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "pytest", self.suite, "-k", CELLS, "--rh-config", self.config, "--rh-verdict"]
        sets = ["none", "--rh-set", f"output_dir={run}", "--rh-set", f"sweep.seeds=[{seed}]"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [*command, *sets, *arguments], cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True
        )
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Took(wall, processor, facts["step_seconds"])


def print_table(took: dict[str, list[Took]]) -> None:
    """A line for each row, medians."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"medians, Python {sys.version.split()[0]}, {os.cpu_count()} cores, load average {load}\n")
    print(f"{f'pytest -k {CELLS!r}':<40}{'wall':>9}{'steps':>9}{'beyond':>9}{'processor':>11}")
    for name, runs in took.items():
        figures = [
            statistics.median(getattr(run, key) for run in runs) for key in ("wall", "steps", "beyond", "processor")
        ]
        print(f"{name:<40}{figures[0]:>7.2f} s{figures[1]:>7.2f} s{figures[2]:>7.2f} s{figures[3]:>9.2f} s")
    print(f"goal: at most {GOAL} s beyond the engine's steps")


if __name__ == "__main__":
    tyro.cli(Warm, description=__doc__).run()
