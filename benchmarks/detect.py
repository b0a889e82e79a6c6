"""What detection costs: generating a detect suite's samples, and generating them with every head scored.

    python benchmarks/detect.py                     # the demo's detect suite, five alternating rounds
    python benchmarks/detect.py --memory 8000       # and the memory that one replay of 8000 tokens takes

Both ways run in one traced engine with an empty prefix cache each time, the same prompts and sampling, generation
included in both. Prints a JSON line for each round, then a table. Goal: the ratio of medians is at most 1.25, and the
memory at 8000 tokens stays below 200 MB.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.models import locate_model
from retrieval_heads.prompts.requests import Request
from retrieval_heads.suites.reading import read_settings
from retrieval_heads.suites.suite import Suite, load_suite
from retrieval_heads.tasks.builder import CellBuilder

CHECKOUT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=CHECKOUT / "suites/detect/demo.yaml")
    parser.add_argument("--config", type=Path, default=CHECKOUT / "configs/smollm2.yaml")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, metavar="TOKENS", help="measure one replay of this many tokens as well")
    arguments = parser.parse_args()
    suite = load_suite(arguments.suite, read_settings(arguments.config))
    model = suite.settings.model
    engine = Engine(locate_model(str(model.model)), model.engine_args, traced=True)
    builder = CellBuilder(engine.tokenizer, {}, {}, engine.info.max_model_len)
    requests = [builder.request(suite.question, cell) for cell in suite.cells]
    run(engine, requests[:2], detects=True)  # warm up both ways
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(arguments.rounds):
        for detects in (False, True):
            took = run(engine, requests, detects=detects)
            seconds[detects].append(took)
            print(json.dumps({"round": number, "detects": detects, "seconds": round(took, 3)}), flush=True)
    generating, detecting = (statistics.median(seconds[detects]) for detects in (False, True))
    ratios = [one / other for one, other in zip(seconds[True], seconds[False], strict=True)]
    found = {
        "samples": len(requests),
        "prompt_tokens": sum(len(request.ids) for request in requests),
        "generating_s": round(generating, 3),
        "detecting_s": round(detecting, 3),
        "ratio": round(statistics.median(ratios), 3),
        "load": os.getloadavg(),
        **engine.info.to_json(),
    }
    del found["layers"]
    if arguments.memory:
        found["replay_memory_mb"] = round(memory(engine, builder, suite, arguments.memory), 1)
    print(json.dumps(found))
    print(f"\n{'':28}{'median s':>10}{'ratio':>8}")
    print(f"{'generating':28}{generating:10.2f}{1:8.2f}")
    print(f"{'generating and scoring heads':28}{detecting:10.2f}{found['ratio']:8.2f}   (goal: at most 1.25)")
    if arguments.memory:
        print(f"{f'one replay at {arguments.memory} tokens':28}{found['replay_memory_mb']:8.0f} MB   (goal: below 200)")
    os._exit(0)


def run(engine: Engine, requests: list[Request], *, detects: bool) -> float:
    """Seconds for all samples, in flight together as in a run; each replay follows its answer."""
    assert engine._engine.reset_prefix_cache()
    began = time.perf_counter()
    for number, request in enumerate(requests):
        engine.add(f"{number}", request.ids, request.sampling)
    while engine.has_work:
        for finished in engine.step():
            if detects and not finished.id.startswith("replay"):
                request = requests[int(finished.id)]
                replay(engine, f"replay {finished.id}", request, finished.token_ids)
            assert finished.error is None, finished.error
    return time.perf_counter() - began


def replay(engine: Engine, name: str, request: Request, answer: list[int]) -> None:
    engine.replay(name, [*request.ids, *answer[:-1]], request.rows(answer), request.facts.question_span[0])


def memory(engine: Engine, builder: CellBuilder, suite: Suite, tokens: int) -> float:
    """MB that this process grows by at most while one sample of this length is replayed."""
    cell = {**asdict(suite.cells[0]), "length": tokens, "depth": 50.0}
    question: dict[str, Any] = suite.question.to_json()
    request = builder.request(question, cell)
    engine.add("long", request.ids, request.sampling)
    answer: list[int] = []
    while engine.has_work:
        for finished in engine.step():
            answer = finished.token_ids
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with peak() as most:
        replay(engine, "replay long", request, answer)
        while engine.has_work:
            engine.step()
    return most[0] / 1e6


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
