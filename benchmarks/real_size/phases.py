"""The phases of `benchmarks/gpu.py`: each measures some rows of its table and tells what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy
from engine_start import measured

from real_size.bench import GEMMA_3_4B, PARTS, QWEN3_8B, Bench, Grid, NotRun, Took
from retrieval_heads.ablation.arms import NONE
from retrieval_heads.suites.suite import Suite

STREAM = {"scores": ["random"], "keep": [0.5], "draws": 1, "sink": 16}
"""Of half of the KV heads."""
PREDECESSOR_SECONDS = 150  # its engine's start included; cells that are not done by then are told as not measured


def rounds(bench: Bench, way: str, kind: str, grid: Grid) -> None:
    """Bare vLLM and the plugin in turn, in another order each time; both warmed up before."""
    bench.by_bare(bench.suite(grid.lengths[:1], grid.depths[:4]))
    bench.by_plugin(bench.suite(grid.lengths[:1], grid.depths[:4], kind=kind))
    runs: list[tuple[str, Callable[[Suite], Took], str]] = [
        ("bare", bench.by_bare, "niah"),
        (way, bench.by_plugin, kind),
    ]
    for number in range(bench.sizes.rounds):
        for name, run, asked in runs[:: 1 if number % 2 else -1]:
            took = run(bench.suite(grid.lengths, grid.depths, seeds=grid.seeds, kind=asked))
            bench.tell(name, beside=way, round=number, seconds=took.seconds, **took.figures)


def sweep(bench: Bench) -> None:
    """The grid through the plugin, as a run that scores no heads starts its engine, beside bare vLLM."""
    bench.start_bare()
    bench.use(traced=False)
    rounds(bench, "sweep", "niah", bench.sizes.grid)


def short_sweep(bench: Bench) -> None:
    """Many short samples through the plugin, no heads scored."""
    bench.start_bare()
    bench.use(traced=False)
    rounds(bench, "short_sweep", "niah", bench.sizes.short)


def short_detect(bench: Bench) -> None:
    """Many short samples with heads scored."""
    bench.start_bare()
    bench.use(traced=True)
    rounds(bench, "short_detect", "detect", bench.sizes.short)


def samples(bench: Bench) -> None:
    """As many samples as the paper takes, generated and detected on the traced engine, in turn."""
    bench.use(traced=True)
    grid = bench.sizes.samples
    for number in range(min(2, bench.sizes.rounds)):
        for kind in ("niah", "detect")[:: 1 if number % 2 else -1]:
            took = bench.by_plugin(bench.suite(grid.lengths, grid.depths, seeds=grid.seeds, kind=kind))
            bench.tell("samples", kind=kind, count=len(took.results), seconds=took.seconds, **took.figures)


def windows(bench: Bench) -> None:
    """Sweep and detection on a model most of whose layers have windows, each beside bare vLLM."""
    bench.stop()
    bench.take_shape("gemma-3-4b", GEMMA_3_4B)
    try:
        for way, kind in (("windows_sweep", "niah"), ("windows_detect", "detect")):
            bench.start_bare()
            bench.use(traced=kind == "detect")
            rounds(bench, way, kind, bench.sizes.windows)
    finally:
        bench.stop()
        bench.take_shape("qwen3-8b", QWEN3_8B)


def single(bench: Bench) -> None:
    """The grid one cell at a time."""
    bench.use(traced=False)
    took = bench.by_plugin(bench.suite(bench.sizes.lengths, bench.sizes.depths), one_at_a_time=True)
    bench.tell("single", seconds=took.seconds, **took.figures)


def memory(bench: Bench) -> None:
    """What the first detection at this length takes more than its generation: allocated memory is not given back."""
    bench.use(traced=True)
    bench.by_plugin(bench.suite([bench.sizes.memory], [50]))
    before = bench.memory()
    bench.by_plugin(bench.suite([bench.sizes.memory], [50], kind="detect"))
    bench.tell("memory", length=bench.sizes.memory, more_mb=bench.memory() - before)


def detect(bench: Bench) -> None:
    """The grid with four scores of every head on each answer, generation included, beside bare vLLM."""
    bench.start_bare()
    bench.use(traced=True)
    rounds(bench, "detect", "detect", bench.sizes.grid)
    bench.tell("recomputed", at_most=bench.recomputed, block_size=bench.info["block_size"])


def long(bench: Bench) -> None:
    """One sample at a time with and without detection, up to the longest that fits."""
    bench.use(traced=True)
    for length in bench.sizes.long:
        # The first of a length compiles and allocates for it.
        for turn in range(-1, bench.sizes.turns):
            for kind in ("niah", "detect")[:: 1 if turn % 2 else -1]:
                took = bench.by_plugin(bench.suite([length], [50], kind=kind))
                if turn >= 0:
                    bench.tell("sample", kind=kind, length=length, round=turn, seconds=took.seconds)


def growth(bench: Bench) -> None:
    """Time against the number of cells, and the exponents of that and of what `long` found."""
    bench.use(traced=True)
    length, depths = bench.sizes.lengths[0], bench.sizes.depths
    for count in bench.sizes.cells:
        suite = bench.suite([length], depths, seeds=count // len(depths), kind="detect")
        bench.tell("cells", length=length, cells=count, seconds=bench.by_plugin(suite).seconds)
    fits = {"cells": [(line["cells"], line["seconds"]) for line in bench.lines if line["what"] == "cells"]}
    for kind in ("niah", "detect"):
        samples = [line for line in bench.lines if line["what"] == "sample" and line["kind"] == kind]
        fits[f"length, {kind}"] = [(line["length"], line["seconds"]) for line in samples]
    for against, points in fits.items():
        if len({x for x, _ in points}) > 1:
            exponent = numpy.polyfit(*numpy.log(numpy.array(points)).T, 1)[0]
            bench.tell("exponent", against=against, points=len(points), exponent=float(exponent))


def kernel(bench: Bench) -> None:
    """The scoring kernel by itself, against the roofs measured in the same run."""
    if not bench.is_cpu:
        bench.stop()
    script = PARTS.parent / "kernel.py"
    option, variables = "--only=roofline", {}
    if bench.is_cpu:
        option, variables = "--cpu", {"TRITON_INTERPRET": "1"}  # where Triton is imported already, it is too late
    for line in bench.child(sys.executable, script, option, **variables):
        bench.tell("kernel", **{("measured" if key == "what" else key): value for key, value in line.items()})


def paper(bench: Bench) -> None:
    """The paper's algorithm on transformers, on one cell of each length."""
    if not bench.is_cpu:
        bench.stop()  # its weights and cache want the room
    depth = bench.sizes.depths[len(bench.sizes.depths) // 2]
    lengths = bench.sizes.lengths[:1] if bench.is_cpu else bench.sizes.lengths
    suite = bench.suite(lengths, [depth], kind="detect")
    arguments = [] if bench.is_cpu else ["--random"]
    lines = bench.child(sys.executable, PARTS / "paper.py", suite.path, bench.model, *arguments)
    for line in lines:
        scores = line.pop("scores")
        told = {"cell": line["cell"], "length": line["length"], "seconds": line["seconds"]}
        bench.tell("paper", **told, layers=len(scores), heads=sum(map(len, scores)))
        line["scores"] = scores
    if not bench.is_cpu:
        return  # its random weights are others than the engine's
    bench.use(traced=True)
    ours = bench.by_plugin(suite).results
    apart = [
        abs(one - other)
        for result, line in zip(ours, lines, strict=True)
        for rows in zip(result.head_scores["copy_reference"], line["scores"], strict=True)
        for one, other in zip(*rows, strict=True)
    ]
    same = all(result.answer.token_ids == line["answer"] for result, line in zip(ours, lines, strict=True))
    bench.tell("paper agrees", same_answers=same, apart_at_most=max(apart), highest=max(map(max, lines[0]["scores"])))


def predecessor(bench: Bench, python: str | None) -> None:
    """PyPI's `retrieval-heads` on one cell of each length, where the interpreter of an environment with it is named."""
    if python is None:
        raise NotRun("no environment of its own was named: --predecessor PYTHON")
    variables = {"PYTHONPATH": ""}  # its packages are named as ours
    version = "import importlib.metadata as m; print(m.version('retrieval-heads'))"
    found = subprocess.run([python, "-c", version], env={"PYTHONPATH": ""}, capture_output=True, text=True)
    if found.stdout.strip() != "0.1.2":
        raise NotRun(f"{python} has no retrieval-heads 0.1.2 but {found.stdout.strip() or 'none'}")
    suite = bench.suite(sorted(bench.sizes.lengths), [50])
    samples = []
    from retrieval_heads.prompts.tokenizer import load_tokenizer
    from retrieval_heads.tasks.builder import CellBuilder

    tokenizer: Any = load_tokenizer({"model": bench.model})
    builder = CellBuilder(tokenizer, {}, {}, 1 << 20)
    for cell in suite.cells:
        request = builder.request(suite.question, cell)
        start, end = request.facts.needle_span
        samples.append(
            {
                "prompt": tokenizer.decode(request.ids),
                "needle": suite.needles[0].needle,
                "needle_token_pos": start,
                # It scores an answer that is there already; which tokens they are changes nothing in its time.
                "completion_tokens": (request.ids[start:end] * bench.sizes.answer)[: bench.sizes.answer],
            }
        )
    bench.stop()
    # As its own command line starts the engine. nnsight says `enforce_eager` itself.
    ours = ("enforce_eager", "compilation_config")
    arguments = {key: value for key, value in bench.engine_args.items() if key not in ours}
    arguments["enable_prefix_caching"] = False
    asked = bench.folder / "predecessor.json"
    asked.write_text(json.dumps({"model": bench.model, "arguments": arguments, "samples": samples}))
    lines, why = bench.child_until(PREDECESSOR_SECONDS, python, PARTS / "predecessor.py", asked, **variables)
    if lines:
        bench.tell("predecessor start", **lines.pop(0))
    for cell, line in zip(suite.cells, lines, strict=False):
        bench.tell("predecessor", length=cell.place.get("length"), **line)
    for cell in suite.cells[len(lines) :]:
        bench.tell("predecessor not measured", length=cell.place.get("length"), why=why and why[-300:])
    if why is not None and not (lines and why.startswith("stopped")):
        raise RuntimeError(why[-300:])


def stream(bench: Bench) -> None:
    """The longest prompts with half of the KV heads streaming behind the context, and in all rows, and with none."""
    bench.use(traced=True)
    lengths, count, recent = bench.sizes.lengths[-1:], bench.sizes.rounds, 64 if bench.is_cpu else 256
    ways: list[tuple[str, dict[str, Any] | None]] = [
        ("none", None),
        ("behind the context", {"prefill": False}),
        ("every row", {"prefill": True}),
    ]
    for number in range(-1, count):  # the first compiles and allocates
        for way, how in ways[:: 1 if number % 2 else -1]:
            suite = bench.suite(lengths, bench.sizes.depths)
            if how is not None:
                suite = bench.suite(
                    lengths, bench.sizes.depths, kind="compress", compress={**STREAM, "recent": recent, **how}
                )
                suite = replace(suite, cells=tuple(cell for cell in suite.cells if cell.place.arm != NONE))
            took = bench.by_plugin(suite)
            if number >= 0:
                bench.tell("stream", way=way, round=number, seconds=took.seconds, **took.figures)


def start(bench: Bench) -> None:
    """Engine start to first result, of the plain and of the traced engine; phases before it tell it of theirs.

    On a GPU then where it goes, of engines that find all files in memory.
    """
    for traced in (False, True):
        if not any(line["what"] == "start" and line["traced"] == (traced or bench.is_cpu) for line in bench.lines):
            bench.use(traced=traced)
    if bench.is_cpu:  # `python benchmarks/engine_start.py` tells it there
        return
    bench.stop()
    model = {"model": bench.model, **bench.engine_args}
    for traced, is_profiled in ((True, True), (True, False), (False, False)):
        line = measured(model, traced=traced, is_profiled=is_profiled)
        bench.tell("parts of start", traced=traced, is_profiled=is_profiled, **line)
