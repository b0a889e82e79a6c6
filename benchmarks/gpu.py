"""Sweep and detection at real size beside bare vLLM and others' ways, on one GPU: every row of docs/performance.md.

    python benchmarks/gpu.py                   # Qwen3-8B's shape with dummy weights, 44 cells of 4k to 32k tokens
    python benchmarks/gpu.py --only sweep detect
    python benchmarks/gpu.py --eager --only sweep single detect
    python benchmarks/gpu.py --cpu             # SmolLM2, a few small cells: results count, times mean nothing
    python benchmarks/gpu.py --only ray --counts 4    # Ray's replicas beside this host's processes
    python benchmarks/gpu.py --only sweep detect --scores copy copy_reference mass query write r2
    python benchmarks/gpu.py --seconds 390     # begin no phase that was not begun by then

- bare: `vllm.LLM.generate`, all prompts in one call, prefix caching.
- sweep: the engine process that pytest talks to, as a run that scores no heads starts it, through the plugin's own
  client: submit all, then wait for each result and score it. What pytest adds to an item is not in it (under a
  millisecond).
- detect: the same with the engine that nnsight instruments and every head of every layer scored on every answer;
  generation included.

All three get the same arguments of vLLM's: decode steps are CUDA graphs, and no model is compiled, since a traced one
cannot be. `--eager` has none of them use graphs. Two engines fit on the GPU with room for every cell, so sweep and
detect alternate with bare one after the other. Every round has a seed of its own, so that no engine finds a prompt of
an earlier round in its cache. The haystack is tokenized before. A JSON line for each measurement, then the table:
ratios are medians of the rounds' own ratios. A phase that fails is told and the others go on; the exit status is 1
then.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial

from real_size import phases, several_gpus
from real_size.bench import Bench, NotRun
from real_size.table import table

PHASES: dict[str, Callable[[Bench], None]] = {
    # Those that share an engine stand together. Paper and predecessor want the whole GPU.
    "sweep": phases.sweep,
    "short_sweep": phases.short_sweep,
    "single": phases.single,
    "memory": phases.memory,
    "detect": phases.detect,
    "short_detect": phases.short_detect,
    "samples": phases.samples,
    "stream": phases.stream,
    "long": phases.long,
    "growth": phases.growth,
    "start": phases.start,
    "windows": phases.windows,
    "replicas": several_gpus.replicas,
    "ray": several_gpus.ray,
    "ranks": several_gpus.ranks,
    "ray_ranks": several_gpus.ray_ranks,
    "ranks_bfloat16": several_gpus.ranks_bfloat16,
    "both": several_gpus.both,
    "big": several_gpus.big,
    "paper": phases.paper,
    "kernel": phases.kernel,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="SmolLM2 on a few small cells")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs, in none of the engines")
    parser.add_argument("--only", nargs="+", choices=[*PHASES, "predecessor"], help="these phases alone")
    parser.add_argument("--rounds", type=int, help="of bare vLLM and the plugin in turn (5)")
    parser.add_argument("--turns", type=int, help="of a long sample with and without detection (3)")
    parser.add_argument(
        "--counts", nargs="+", type=int, default=[1, 2, 4, 8], help="of replicas and ranks, as far as GPUs suffice"
    )
    parser.add_argument("--scores", nargs="+", default=[], help="head scores of detections; the usual ones if left out")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no phase after so many seconds")
    parser.add_argument(
        "--predecessor", metavar="PYTHON", help="interpreter of an environment with retrieval-heads 0.1.2"
    )
    asked = parser.parse_args()
    bench = Bench(
        is_cpu=asked.cpu,
        rounds=asked.rounds,
        turns=asked.turns,
        is_eager=asked.eager,
        counts=asked.counts,
        scores=asked.scores,
        is_named=asked.only is not None,
    )
    every = {**PHASES, "predecessor": partial(phases.predecessor, python=asked.predecessor)}
    until, failed = time.monotonic() + asked.seconds, False
    try:
        for name, run in every.items():
            if asked.only is None or name in asked.only:
                failed |= guarded(bench, name, run, until)
        print()
        lengths, depths = bench.sizes.lengths, len(bench.sizes.depths)
        print("\n".join(table(bench.lines, len(lengths) * depths, sum(lengths) * depths)), flush=True)
    finally:
        bench.stop()
    sys.exit(failed)


def guarded(bench: Bench, name: str, run: Callable[[Bench], None], until: float) -> bool:
    """Run a phase and tell how it ended; whether it failed."""
    began = time.monotonic()
    try:
        if began > until:
            raise NotRun("there was no time left")
        run(bench)
    except NotRun as reason:
        bench.tell("phase", phase=name, status="not run", why=str(reason))
        return False
    except Exception as error:  # the others must still run
        traceback.print_exc()
        print(bench.log_tails(), file=sys.stderr)
        bench.stop()
        bench.tell("phase", phase=name, status="failed", why=f"failed: {type(error).__name__}: {error}"[:300])
        return True
    bench.tell("phase", phase=name, status="done", why=None, phase_seconds=time.monotonic() - began)
    return False


if __name__ == "__main__":
    main()
