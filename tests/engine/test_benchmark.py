"""`benchmarks/gpu.py --cpu`: what it measures is there and right. Its times are nobody's business here."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import ENVIRONMENT, PATIENCE, alive_in, engine_forks
from forks import ADDRESS, Popen

pytestmark = pytest.mark.engine

CHECKOUT = Path(__file__).parents[2]
CELLS, PROMPT_TOKENS = 4, 2 * (192 + 256)
HEADS = 30 * 9  # SmolLM2's


class Benchmark:
    """The script as a process, and everything that it starts: all of them run in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._folder = folder
        self.printed, self.errors = folder / "printed", folder / "errors"
        with self.printed.open("wb") as printed, self.errors.open("wb") as errors:
            self.process = Popen(
                [sys.executable, str(CHECKOUT / "benchmarks/gpu.py"), "--cpu", *arguments],
                cwd=folder,
                env={**ENVIRONMENT, ADDRESS: engine_forks().address},
                stdout=printed,
                stderr=errors,
            )

    def lines(self) -> list[dict[str, Any]]:
        """Its JSON lines so far."""
        return [json.loads(line) for line in self.printed.read_text().splitlines() if line.startswith("{")]

    def alive(self) -> list[psutil.Process]:
        """What runs of it."""
        return alive_in(self._folder)

    def left(self) -> list[str]:
        """The names of what still runs some seconds after its end."""
        give_up = time.monotonic() + 10
        while (alive := self.alive()) and time.monotonic() < give_up:
            time.sleep(0.1)
        return [one.name() for one in alive]

    def end(self) -> None:
        """Kill what runs of it."""
        for one in self.alive():
            one.kill()


@contextmanager
def ended(folder: Path, *arguments: str) -> Iterator[Benchmark]:
    """A run that came to its end."""
    run = Benchmark(folder, *arguments)
    try:
        run.process.wait(PATIENCE)
        yield run
    finally:
        run.end()


@pytest.fixture(scope="module")
def benchmark_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benchmark]:
    """One run of every phase; they share engines, so that its tests are all in `make test-long`."""
    with ended(tmp_path_factory.mktemp("benchmark")) as run:
        yield run


@pytest.fixture(scope="module")
def two_phases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benchmark]:
    """One of two."""
    with ended(tmp_path_factory.mktemp("phases"), "--only", "sweep", "detect") as run:
        yield run


def of(run: Benchmark, what: str, **fields: Any) -> list[dict[str, Any]]:
    """Its lines of a kind that have these values."""
    return [line for line in run.lines() if line["what"] == what and fields.items() <= line.items()]


@pytest.mark.long
def test_every_phase_ends_well_or_says_what_it_needs(benchmark_run: Benchmark) -> None:
    ended = {line["phase"]: (line["status"], line["why"]) for line in of(benchmark_run, "phase")}
    two_gpus, four_gpus = (("not run", f"{count} GPUs are needed, 0 are there") for count in (2, 4))
    done = dict.fromkeys(
        (
            *("sweep", "short_sweep", "single", "memory", "detect", "short_detect", "samples", "stream"),
            *("long", "growth", "start", "windows", "paper", "kernel"),
        ),
        ("done", None),
    )
    assert benchmark_run.process.returncode == 0, benchmark_run.errors.read_text()[-4000:]
    assert ended == {
        **done,
        "replicas": ("not run", "1 GPU is needed, 0 are there"),
        "ray": two_gpus,
        "ray_ranks": two_gpus,
        "ranks": two_gpus,
        "ranks_bfloat16": two_gpus,
        "both": four_gpus,
        "big": two_gpus,
        "predecessor": ("not run", "no environment of its own was named: --predecessor PYTHON"),
    }
    assert benchmark_run.left() == []


@pytest.mark.parametrize("way", ["sweep", "detect"])
def test_both_ways_ask_the_same_and_reuse_as_much_as_can_be(two_phases: Benchmark, way: str) -> None:
    (bare,), (ours,) = of(two_phases, "bare", beside=way), of(two_phases, way)
    assert ours["prompt_tokens"] == bare["prompt_tokens"] == PROMPT_TOKENS
    assert ours["cached_tokens"] == bare["cached_tokens"]
    # The engine may have finished a block in the step that another prompt wanted it for.
    assert 0 < ours["cached_tokens"] <= ours["reusable_tokens"] <= ours["cached_tokens"] + CELLS * 32
    assert ours["seconds"] > 0
    assert bare["seconds"] > 0
    assert 0 < ours["feed_gap_seconds"] < ours["seconds"]


def test_phases_that_are_named_end_well_and_no_other_begins(two_phases: Benchmark) -> None:
    assert two_phases.process.returncode == 0, two_phases.errors.read_text()[-4000:]
    ended = [(line["phase"], line["status"]) for line in of(two_phases, "phase")]
    assert ended == [("sweep", "done"), ("detect", "done")]
    assert two_phases.left() == []


def test_a_replay_computes_a_block_and_its_rows_at_most(two_phases: Benchmark) -> None:
    (line,) = of(two_phases, "recomputed")
    question_template_and_answer = 64
    assert 0 < line["at_most"] <= line["block_size"] + question_template_and_answer


@pytest.mark.long
def test_the_papers_algorithm_finds_the_same_scores(benchmark_run: Benchmark) -> None:
    """On transformers, written apart from the product; every head of one sample."""
    assert [(line["layers"], line["heads"]) for line in of(benchmark_run, "paper")] == [(30, HEADS)]
    (line,) = of(benchmark_run, "paper agrees")
    assert line["same_answers"] is True
    assert line["apart_at_most"] < 1e-4
    assert line["highest"] > 0.1, "some head copied"


@pytest.mark.long
def test_every_row_of_the_table_has_a_result_or_a_reason(benchmark_run: Benchmark) -> None:
    table = benchmark_run.printed.read_text().split("\n\n")[-1].splitlines()
    needing_more = [row for row in table if "not run" in row]
    assert len(table) == 22
    assert [row.partition("  ")[0] for row in needing_more] == [
        "PyPI's retrieval-heads 0.1.2 to detection",
        "throughput of 2, 4 and 8 replicas to one",
        "Ray's replicas to as many processes",
        "head scores of several ranks to one",
        "two replicas of several ranks, detection to the sweep",
        "70 billion parameters, detection to the sweep",
    ]
    assert {line["against"] for line in of(benchmark_run, "exponent")} == {"cells", "length, niah", "length, detect"}
    assert all(line["ok"] for line in of(benchmark_run, "kernel"))
    (first, *_) = of(benchmark_run, "start")
    assert first["start_seconds"].keys() == {"import", "engine", "tracing", "haystacks"}
    assert "profile" in first["by_vllm"]


def test_nothing_outlives_a_killed_benchmark(tmp_path: Path) -> None:
    run = Benchmark(tmp_path, "--only", "sweep")
    try:
        give_up = time.monotonic() + PATIENCE
        while not run.lines() and run.process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.1)
        while len(run.alive()) < 3 and run.process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.1)
        assert len(run.alive()) >= 3, "script, engine and bare vLLM: " + run.errors.read_text()[-2000:]
        run.process.kill()
        run.process.wait()
        assert run.left() == []
    finally:
        run.end()
