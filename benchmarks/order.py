"""How much of their prompts cells share by the order in which they are asked, with room for all and with little.

    python benchmarks/order.py          # SmolLM2 on a CPU; about three minutes on two cores

Several needles, seeds, lengths and depths, each rising, the last named changing fastest. A JSON line for each order and
cache size, with the tokens that the prefix cache gave and those that one holding everything would have given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml
from real_size.bench import Bench

from retrieval_heads.suites.suite import load_suite
from retrieval_heads.tasks.task import Cell

NEEDLES = [
    {
        "needle": "The night guard of the Orrin museum keeps a spare key inside the brass telescope.",
        "question": "Where does the night guard of the Orrin museum keep a spare key?",
    },
    {
        "needle": "Every ferry to the island of Sorrel leaves from the green pier at noon.",
        "question": "From where does every ferry to the island of Sorrel leave?",
    },
]
LENGTHS, DEPTHS, SEEDS = [256, 512, 768], [0, 25, 50, 75, 100], 3
BYTES_PER_TOKEN = 2 * 30 * 3 * 64 * 2  # SmolLM2-135M's K and V in bfloat16
ORDERS = {
    "needle, seed, length, depth": ("needle", "seed", "length", "depth"),
    "seed, needle, length, depth": ("seed", "needle", "length", "depth"),
    "seed, length, needle, depth": ("seed", "length", "needle", "depth"),
    "seed, length, depth, needle": ("seed", "length", "depth", "needle"),
    "the same, deepest and longest first": ("seed", "-length", "-depth", "needle"),
}


def at(cell: Cell, order: Sequence[str]) -> list[Any]:
    """Where a cell stands in an order; a minus turns an axis round."""
    named = {**dict(cell.place.axes), "seed": cell.place.seed}
    return [-named[axis[1:]] if axis.startswith("-") else named[axis] for axis in order]


def main() -> None:
    bench = Bench(is_cpu=True)
    try:
        for room in (65_536, 8192, 2048):
            bench.use(traced=True, dtype="bfloat16", max_model_len=1024, kv_cache_memory_bytes=room * BYTES_PER_TOKEN)
            for name, order in ORDERS.items():
                suite = bench.suite(LENGTHS, DEPTHS, seeds=SEEDS)
                content = yaml.safe_load(suite.path.read_text()) | {"needles": NEEDLES}
                suite.path.write_text(yaml.safe_dump(content))
                suite = load_suite(suite.path)
                took = bench.by_plugin(
                    replace(suite, cells=tuple(sorted(suite.cells, key=lambda cell, order=order: at(cell, order))))
                )
                figures = {key: value for key, value in took.figures.items() if key.endswith("_tokens")}
                figures |= {"reached": round(figures["cached_tokens"] / figures["reusable_tokens"], 4)}
                line = {"order": name, "cache_tokens": room, "cells": len(suite.cells), **figures}
                print(json.dumps({**line, "seconds": round(took.seconds, 2)}), flush=True)
    finally:
        bench.stop()


if __name__ == "__main__":
    main()
