"""What detection costs: generating a detect suite's samples, and generating them with every head scored.

    python benchmarks/detect.py                     # the demo's ten samples, and sixty of 512 tokens
    python benchmarks/detect.py --only samples --rounds 9
    python benchmarks/detect.py --memory 8000       # and the memory that one replay of 8000 tokens takes
    python benchmarks/detect.py --only samples --scores copy copy_reference mass query write r2

Both ways run in one traced engine with an empty prefix cache each time, alternating, the same prompts and sampling,
generation included in both. Prints a JSON line for each round, then a table. On a machine that does something else as
well, the clock tells little, and threads that wait for each other take processor time: there give it one core
(`taskset -c 1`) and read the processor's seconds. Goals on two cores: the ratio is at most 1.10 for the demo's samples
and 1.15 for the sixty; of the demo's with all scores that one replay gives 1.20; the memory at 8000 tokens stays below
200 MB.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.models import locate_model
from retrieval_heads.prompts.requests import Request
from retrieval_heads.runs.place import Place
from retrieval_heads.suites.reading import read_settings
from retrieval_heads.suites.suite import Suite, load_suite
from retrieval_heads.tasks.builder import CellBuilder

CHECKOUT = Path(__file__).parents[1]
ROWS: Mapping[str, tuple[Mapping[str, Any], float]] = {
    "samples": ({}, 1.10),
    "many short samples": (
        {"sweep": {"context_lengths": [512], "document_depths": {"min": 0, "max": 100, "intervals": 59}}},
        1.15,
    ),
}
"""What is laid over the suite, and the goal of its ratio."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=CHECKOUT / "suites/detect/demo.yaml")
    parser.add_argument("--config", type=Path, default=CHECKOUT / "configs/smollm2.yaml")
    parser.add_argument("--only", choices=list(ROWS), nargs="+", default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scores", nargs="+", default=[], help="head scores to measure; the usual ones if left out")
    parser.add_argument("--memory", type=int, metavar="TOKENS", help="measure one replay of this many tokens as well")
    arguments = parser.parse_args()
    suites = {row: load_suite(arguments.suite, read_settings(arguments.config), ROWS[row][0]) for row in arguments.only}
    suite = next(iter(suites.values()))
    model = suite.settings.model
    engine = Engine(locate_model(str(model.model)), model.engine_args, traced=True)
    builder = CellBuilder(engine.tokenizer, {}, {}, engine.info.max_model_len)
    lines = []
    for row, each in suites.items():
        requests = [builder.request(each.question, cell) for cell in each.cells]
        found = compare(engine, row, requests, arguments.rounds, tuple(arguments.scores))
        print(json.dumps(found), flush=True)
        lines += table_lines(f"{row} ({len(requests)})", found, ROWS[row][1])
    facts = {"load": os.getloadavg(), "cores": sorted(os.sched_getaffinity(0)), "scores": arguments.scores}
    facts |= engine.info.to_json()
    del facts["layers"]
    if arguments.memory:
        facts["replay_memory_mb"] = round(memory(engine, builder, suite, arguments.memory), 1)
        name = f"one replay at {arguments.memory} tokens"
        lines.append(f"{name:36}{facts['replay_memory_mb']:7.0f} MB   (goal: below 200)")
    print(json.dumps(facts))
    print(f"\n{'medians':36}{'s':>10}{'ratio':>8}{'CPU s':>10}{'ratio':>8}{'tokens':>10}")
    print("\n".join(lines), flush=True)
    os._exit(0)


def table_lines(name: str, found: Mapping[str, Any], goal: float) -> Iterator[str]:
    for way in ("generating", "detecting"):
        is_both = way == "detecting"
        ratio, cpu_ratio = (found["ratio"], found["cpu_ratio"]) if is_both else (1.0, 1.0)
        measured, end = found[way], f"   (goal: at most {goal:.2f})" if is_both else ""
        yield (
            f"{f'{name}, {way}':36}{measured['seconds']:10.2f}{ratio:8.2f}"
            f"{measured['cpu_seconds']:10.2f}{cpu_ratio:8.2f}{measured['tokens']:10,.0f}{end}"
        )


def compare(
    engine: Engine, row: str, requests: Sequence[Request], rounds: int, scores: tuple[str, ...]
) -> dict[str, Any]:
    """Both ways, a number of rounds: medians, and the median of the rounds' ratios."""
    for detects in (False, True):
        run(engine, requests, scores, detects=detects)
    taken: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for number in range(rounds):
        for detects in (False, True):
            measured = run(engine, requests, scores, detects=detects)
            taken[detects].append(measured)
            print(json.dumps({"row": row, "round": number, "detects": detects, **rounded(measured)}), flush=True)

    def ratio(key: str) -> float:
        return statistics.median(one[key] / other[key] for one, other in zip(taken[True], taken[False], strict=True))

    medians = {
        way: rounded({key: statistics.median(one[key] for one in of) for key in of[0]})
        for way, of in (("generating", taken[False]), ("detecting", taken[True]))
    }
    return {"row": row, **medians, "ratio": round(ratio("seconds"), 3), "cpu_ratio": round(ratio("cpu_seconds"), 3)}


def rounded(measured: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 3) for key, value in measured.items()}


def run(engine: Engine, requests: Sequence[Request], scores: tuple[str, ...], *, detects: bool) -> dict[str, float]:
    """All samples, in flight together as in a run; each replay follows its answer.

    Returns:
        `seconds`, `cpu_seconds` of this process, and `tokens` that were computed, of which `replayed` are replays'.
    """
    assert engine._engine.reset_prefix_cache()
    found = {"tokens": 0, "replayed": 0}
    began, cpu_began = time.perf_counter(), time.process_time()
    for number, request in enumerate(requests):
        engine.add(f"{number}", request.ids, request.sampling, is_replayed=detects)
    while engine.has_work:
        for finished in engine.step():
            assert finished.error is None, finished.error
            count = computed(finished)
            found["tokens"] += count
            if finished.id.startswith("replay"):
                found["replayed"] += count
            elif detects:
                replay(engine, requests[int(finished.id)], finished, scores)
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began, **found}


def computed(finished: Finished) -> int:
    """Tokens of a request that a forward computed: all that were not cached, but the last of the answer."""
    return finished.prompt_tokens - finished.cached_tokens + len(finished.token_ids) - 1


def replay(engine: Engine, request: Request, finished: Finished, scores: tuple[str, ...] = ()) -> None:
    rows = replace(request.rows(finished.token_ids), scores=scores)
    ids = [*request.ids, *finished.token_ids[:-1]]
    engine.replay(f"replay {finished.id}", ids, rows, rows.first, of=finished.id)


def memory(engine: Engine, builder: CellBuilder, suite: Suite, tokens: int) -> float:
    """MB that this process grows by at most while one sample of this length is replayed."""
    first = suite.cells[0]
    axes = dict(first.place.axes) | {"length": tokens, "depth": 50.0}
    cell = replace(first, place=Place(tuple(axes.items())))
    request = builder.request(suite.question, cell)
    engine.add("long", request.ids, request.sampling, is_replayed=True)
    (finished,) = until_idle(engine)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with peak() as most:
        replay(engine, request, finished)
        until_idle(engine)
    return most[0] / 1e6


def until_idle(engine: Engine) -> list[Finished]:
    """What finished, once there is nothing left to do."""
    found = []
    while engine.has_work:
        found += engine.step()
    return found


@contextmanager
def peak() -> Iterator[list[float]]:
    """Bytes of growth of this process's resident memory, the most seen."""
    process = psutil.Process()
    before, most, done = process.memory_info().rss, [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield most
    done.set()
    watcher.join()


if __name__ == "__main__":
    main()
