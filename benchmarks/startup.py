"""What the plugin costs where no engine runs: installed but unused, and collecting a suite of 10,000 cells.

    python benchmarks/startup.py --rounds 21

Each round runs every command once; the order turns from round to round. Wall time is what a user waits, processor
time is steadier on a machine that does other things too. Other plugins are switched off.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import tyro

# Other plugins are off on both sides: some import for seconds, and what they import is not paid for again.
OTHERS = sorted({one.name for one in entry_points(group="pytest11")} - {"rh"})
PYTEST = [sys.executable, "-m", "pytest", *(f"-pno:{name}" for name in (*OTHERS, "cacheprovider"))]
# As a user has it: compiled modules are kept.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
COMMANDS = {
    "without the plugin": ["-p", "no:rh", "test_empty.py"],
    "installed, unused": ["test_empty.py"],
    "collecting nothing": ["--co", "-qq", "test_empty.py"],
    "collecting 10,000 cells": ["--co", "-qq", "cells.yaml"],
}
GOALS = (
    ("installed, unused", "without the plugin", 0.015),
    ("collecting 10,000 cells", "collecting nothing", 2.0),
)
SUITE = """\
kind: niah
haystack: pydoc
needles:
  - needle: "The night guard of the Orrin museum keeps a spare key inside the brass telescope."
    question: Where does the night guard of the Orrin museum keep a spare key?
sweep:
  context_lengths: { min: 1000, max: 10900, intervals: 99 }
  document_depths: { min: 0, max: 99, intervals: 99 }
"""


@dataclass(frozen=True)
class Took:
    """Seconds of one run."""

    wall: float
    processor: float


@dataclass(frozen=True)
class Startup:
    """Time pytest with and without the plugin's work."""

    rounds: int = 21
    """How often each command is run."""

    def run(self) -> None:
        """Measure and print."""
        took: dict[str, list[Took]] = {name: [] for name in COMMANDS}
        with tempfile.TemporaryDirectory() as folder:
            write_inputs(Path(folder))
            for name in COMMANDS:
                timed(COMMANDS[name], folder)  # compiles bytecode, fills the file cache
            for turn in range(self.rounds):
                for name in turned(list(COMMANDS), turn):
                    took[name].append(timed(COMMANDS[name], folder))
        print_table(took)


def write_inputs(folder: Path) -> None:
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "test_empty.py").write_text("def test_empty():\n    pass\n", encoding="utf-8")
    (folder / "cells.yaml").write_text(SUITE, encoding="utf-8")


def turned(names: list[str], turn: int) -> list[str]:
    """The names, begun at another one each turn: none always runs behind the same one."""
    start = turn % len(names)
    return names[start:] + names[:start]


def timed(arguments: list[str], folder: str) -> Took:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*PYTEST, *arguments], cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def print_table(took: dict[str, list[Took]]) -> None:
    wall = {name: statistics.median(one.wall for one in runs) for name, runs in took.items()}
    processor = {name: statistics.median(one.processor for one in runs) for name, runs in took.items()}
    rounds = len(next(iter(took.values())))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"medians of {rounds} alternating runs, Python {sys.version.split()[0]}, load average {load}\n")
    print(f"{'pytest ...':<48}{'wall':>10}{'processor':>12}")
    for name, arguments in COMMANDS.items():
        shown = f"{name}: {' '.join(arguments)}"
        print(f"{shown:<48}{1000 * wall[name]:>7.0f} ms{1000 * processor[name]:>9.0f} ms")
    print()
    for name, beside, goal in GOALS:
        more = [1000 * (times[name] - times[beside]) for times in (wall, processor)]
        print(f"{f'{name}: more':<48}{more[0]:>7.1f} ms{more[1]:>9.1f} ms  (goal: at most {1000 * goal:.0f} ms)")


if __name__ == "__main__":
    tyro.cli(Startup, description=__doc__).run()
