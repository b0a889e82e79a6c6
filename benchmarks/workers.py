"""Wall time of one grid under `-n 0`, `-n 2` and `-n 4`: all cells are in flight whatever `-n` is, on one engine.

    python benchmarks/workers.py --rounds 3

Whole pytest sessions, engine start included; other people's plugins are off, which each worker would load again. A
JSON line for each, then medians and their spread. Goal: within 10 % of each other on two cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import tyro

CHECKOUT = Path(__file__).parents[1]
OTHERS = sorted({one.name for one in entry_points(group="pytest11") if not one.name.startswith(("rh", "xdist"))})


@dataclass(frozen=True)
class Benchmark:
    """Run a grid with several numbers of xdist workers."""

    suite: Path = CHECKOUT / "suites/niah/demo.yaml"
    """The grid."""
    config: Path = CHECKOUT / "configs/smollm2.yaml"
    """The model."""
    workers: tuple[int, ...] = (0, 2, 4)
    """Values of `-n`."""
    rounds: int = 3
    """How often each is run, in turn."""

    def run(self) -> None:
        """Measure, and print."""
        seconds: dict[int, list[float]] = {workers: [] for workers in self.workers}
        for turn in range(self.rounds):
            for workers in self.workers[turn % len(self.workers) :] + self.workers[: turn % len(self.workers)]:
                took, starts = self.once(workers)
                seconds[workers].append(took)
                line = {"round": turn, "n": workers, "seconds": round(took, 2), "engine_starts": starts}
                print(json.dumps({**line, "load": os.getloadavg()[0]}), flush=True)
        medians = {workers: statistics.median(took) for workers, took in seconds.items()}
        for workers, median in medians.items():
            print(f"-n {workers}: {median:6.1f} s, {median / medians[self.workers[0]]:.3f} of -n {self.workers[0]}")

    def once(self, workers: int) -> tuple[float, int]:
        """Seconds of a session, and how many engines it started."""
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "pytest",
                str(self.suite),
                "--rh-config",
                str(self.config),
                "-n",
                str(workers),
            ]
            command += ["--rh-set", f"output_dir={folder}", "--rh-verdict", "none", "-p", "no:cacheprovider"]
            began = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            took = time.perf_counter() - began
            if done.returncode:
                sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
            log = (Path(folder) / "engine.log").read_text(encoding="utf-8", errors="replace")
        return took, log.count("Initializing a V1 LLM engine")


if __name__ == "__main__":
    tyro.cli(Benchmark, description=__doc__).run()
