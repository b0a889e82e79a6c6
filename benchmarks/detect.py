"""What detection costs: generating a detect suite's samples, and generating them with every head scored; and what
heads cost that stream.

    python benchmarks/detect.py                     # the demo's ten samples, sixty of 512 tokens, and streaming heads
    python benchmarks/detect.py --only samples --rounds 9
    python benchmarks/detect.py --memory 8000       # and the memory that scoring heads of 8000 tokens takes
    python benchmarks/detect.py --only samples --scores copy copy_reference mass query write r2
    python benchmarks/detect.py --only "streaming heads" --config configs/smollm2.yaml

All ways run in one traced engine with an empty prefix cache each time, alternating, the same prompts and sampling,
generation included in each. Half of the KV heads stream, of four prompts of 1,536 tokens with 24 tokens of answer:
behind the context, and in every row. Prints a JSON line for each round, then a table. On a machine that does something
else as well, the clock tells little, and threads that wait for each other take processor time: there give it one core
(`taskset -c 1`) and read the processor's seconds. Goals on two cores: the ratio is at most 1.10 for the demo's samples
and 1.15 for the sixty; of the demo's with all scores that one replay gives 1.20; of streaming heads 1.30; the memory at
8000 tokens stays below 200 MB.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.ablation.compression import Kept, kept_kv_heads, streaming_heads
from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.engine.masks import groups_of
from retrieval_heads.models import locate_model
from retrieval_heads.prompts.requests import Request
from retrieval_heads.runs.mask import STREAM, Mask
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
STREAMING, STREAMING_GOAL = "streaming heads", 1.30
STREAMED: Mapping[str, Any] = {
    "sweep": {"context_lengths": [1536]},
    "compress": {"heads": None, "scores": ["random"], "keep": [0.5], "draws": 1},
    "generation": {"max_tokens": 24, "ignore_eos": True},
}
"""Laid over the suite of compressions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=CHECKOUT / "suites/detect/demo.yaml")
    parser.add_argument("--config", type=Path, default=CHECKOUT / "configs/smollm2.yaml")
    parser.add_argument("--only", choices=[*ROWS, STREAMING], nargs="+", default=[*ROWS, STREAMING])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scores", nargs="+", default=[], help="head scores to measure; the usual ones if left out")
    parser.add_argument("--memory", type=int, metavar="TOKENS", help="measure one sample of this many tokens as well")
    arguments = parser.parse_args()
    settings = read_settings(arguments.config)
    suites = {row: load_suite(arguments.suite, settings, over) for row, (over, _) in ROWS.items()}
    suite = suites["samples"]
    model = suite.settings.model
    engine = Engine(locate_model(str(model.model)), model.engine_args, traced=True)
    builder = CellBuilder(engine.tokenizer, {}, {}, engine.info.max_model_len)
    lines = []
    for row in arguments.only:
        if row == STREAMING:
            ways, count, goal = streaming(engine, builder, settings)
        else:
            requests = [builder.request(suites[row].question, cell) for cell in suites[row].cells]
            plain = partial(run, engine, requests, tuple(arguments.scores))
            ways, count, goal = (
                {"generating": plain, "detecting": partial(plain, detects=True)},
                len(requests),
                ROWS[row][1],
            )
        found = compare(row, ways, arguments.rounds)
        print(json.dumps(found), flush=True)
        lines += table_lines(f"{row} ({count})", found, goal)
    facts = {"load": os.getloadavg(), "cores": sorted(os.sched_getaffinity(0)), "scores": arguments.scores}
    facts |= engine.info.to_json()
    del facts["layers"]
    if arguments.memory:
        facts["heads_memory_mb"] = round(memory(engine, builder, suite, arguments.memory), 1)
        name = f"heads of one sample of {arguments.memory} tokens"
        lines.append(f"{name:44}{facts['replay_memory_mb']:7.0f} MB   (goal: below 200)")
    print(json.dumps(facts))
    print(f"\n{'medians':44}{'s':>10}{'ratio':>8}{'CPU s':>10}{'ratio':>8}{'tokens':>10}")
    print("\n".join(lines), flush=True)
    os._exit(0)


def table_lines(name: str, found: Mapping[str, Any], goal: float) -> Iterator[str]:
    for number, (way, measured) in enumerate(found["ways"].items()):
        end = f"   (goal: at most {goal:.2f})" if number else ""
        yield (
            f"{f'{name}, {way}':44}{measured['seconds']:10.2f}{measured['ratio']:8.2f}"
            f"{measured['cpu_seconds']:10.2f}{measured['cpu_ratio']:8.2f}{measured['tokens']:10,.0f}{end}"
        )


def streaming(
    engine: Engine, builder: CellBuilder, settings: Mapping[str, Any]
) -> tuple[dict[str, Callable[[], dict[str, float]]], int, float]:
    """Prompts whose heads keep everything, and the same with half of the KV heads streaming; how many, and the goal."""
    ways, count, groups = {}, 0, groups_of(engine.info.layers or ())
    for way, in_prefill in (("everything kept", None), ("behind the context", False), ("every row", True)):
        over = {**STREAMED, "compress": {**STREAMED["compress"], "prefill": bool(in_prefill)}}
        suite = load_suite(CHECKOUT / "suites/compress/demo.yaml", settings, over)
        ablate, requests = suite.question.ablate, []
        assert ablate is not None
        for cell in suite.cells:
            if (cell.place.arm == NONE) == (in_prefill is None):
                kept = kept_kv_heads(Kept.of(cell.place.arm), (), groups, ablate.seed)
                mask = Mask(STREAM, streaming_heads(kept, groups), stream=ablate.stream)
                requests.append(builder.request(suite.question, cell, None if in_prefill is None else mask))
        ways[way], count = partial(run, engine, requests, ()), len(requests)
    return ways, count, STREAMING_GOAL


def compare(row: str, ways: Mapping[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, Any]:
    """All ways, a number of rounds: medians, and the median of the rounds' ratios to the first."""
    for way in ways.values():
        way()
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, measure in ways.items():
            measured = measure()
            taken[way].append(measured)
            print(json.dumps({"row": row, "round": number, "way": way, **rounded(measured)}), flush=True)
    first = next(iter(taken.values()))

    def ratio(of: Sequence[dict[str, float]], key: str) -> float:
        return round(statistics.median(one[key] / other[key] for one, other in zip(of, first, strict=True)), 3)

    medians = {
        way: rounded({key: statistics.median(one[key] for one in of) for key in of[0]})
        | {"ratio": ratio(of, "seconds"), "cpu_ratio": ratio(of, "cpu_seconds")}
        for way, of in taken.items()
    }
    return {"row": row, "ways": medians}


def rounded(measured: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 3) for key, value in measured.items()}


def run(
    engine: Engine, requests: Sequence[Request], scores: tuple[str, ...], *, detects: bool = False
) -> dict[str, float]:
    """All samples, in flight together as in a run; each replay follows its answer.

    Returns:
        `seconds`, `cpu_seconds` of this process, and `tokens` that were computed, of which `replayed` are replays'.
    """
    assert engine._engine.reset_prefix_cache()
    found = {"tokens": 0, "replayed": 0}
    began, cpu_began = time.perf_counter(), time.process_time()
    for number, request in enumerate(requests):
        rows = replace(request.rows(()), scores=scores) if detects else None
        engine.add(f"{number}", request.ids, request.sampling, request.mask, is_replayed=detects, rows=rows)
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
    return finished.prompt_tokens - finished.cached_tokens + max(0, len(finished.token_ids) - 1)


def replay(engine: Engine, request: Request, finished: Finished, scores: tuple[str, ...] = ()) -> None:
    rows = replace(request.rows(finished.token_ids), scores=scores)
    ids = [*request.ids, *finished.token_ids[:-1]]
    engine.replay(f"replay {finished.id}", ids, rows, rows.first, of=finished.id)


def memory(engine: Engine, builder: CellBuilder, suite: Suite, tokens: int) -> float:
    """MB that this process grows by at most while a sample of this length is answered and its heads are scored, beyond
    those while it is answered.
    """
    first = suite.cells[0]
    axes = dict(first.place.axes) | {"length": tokens, "depth": 50.0}
    request = builder.request(suite.question, replace(first, place=Place(tuple(axes.items()))))
    grown = []
    for detects in (False, False, True):  # the first has the allocator's own growth
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        with peak() as most:
            run(engine, [request], (), detects=detects)
        grown.append(most[0])
    return (grown[2] - grown[1]) / 1e6


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
