"""The phases of `benchmarks/gpu.py` that need several GPUs: replicas, ranks, both, and a replica that dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy

from real_size.bench import LLAMA_70B, PARTS, QWEN3_0_6B, QWEN3_8B, SCORES, Bench, NotRun

SEEDS = 8
"""Of the replicas' grid: 352 cells, which eight replicas share evenly."""
ROUNDS = 2


def replicas(bench: Bench) -> None:
    """The grid of eight seeds on 1, 2, 4 and 8 traced engines, each on a GPU of its own, with and without detection."""
    _several(bench, 1)
    for count in bench.counts():
        bench.use(traced=True, replicas=count)
        for kind in ("niah", "detect"):
            bench.by_plugin(bench.suite(bench.sizes.lengths[:1], bench.sizes.depths[:4], seeds=count, kind=kind))
            for number in range(min(ROUNDS, bench.sizes.rounds)):
                took = bench.by_plugin(bench.suite(bench.sizes.lengths, bench.sizes.depths, seeds=SEEDS, kind=kind))
                told = {"replicas": count, "kind": kind, "round": number, "seconds": took.seconds}
                bench.tell("replicas", **told, **took.figures, host_mb=bench.host_memory())


def ray(bench: Bench) -> None:
    """The same grid on replicas of this host and on those that Ray places, in turn, the most replicas first, of which
    one of Ray's is then killed in the middle of a grid. With `--cpu`, where it is named, one and two of each.
    """
    counts = [1, 2] if bench.is_cpu and bench.is_named else [count for count in bench.counts() if count > 1]
    if not counts:
        raise NotRun(f"2 GPUs are needed, {bench.gpus()} are there")
    seeds = 2 if bench.is_cpu else SEEDS
    grid = partial(bench.suite, bench.sizes.lengths, bench.sizes.depths, seeds=seeds)
    for count in sorted(counts, reverse=True):
        for by in ("processes", "ray"):
            bench.use(traced=True, replicas=count, is_on_ray=by == "ray")
            for kind in ("niah", "detect"):
                bench.by_plugin(bench.suite(bench.sizes.lengths[:1], bench.sizes.depths[:4], seeds=count, kind=kind))
                for number in range(min(ROUNDS, bench.sizes.rounds)):
                    took = bench.by_plugin(grid(kind=kind))
                    told = {"by": by, "replicas": count, "kind": kind, "round": number, "seconds": took.seconds}
                    bench.tell("ray", **told, **took.figures)
        if count == max(counts):
            bench.tell("ray_lost", replicas=count, **bench.with_one_killed(grid(kind="detect")))
            bench.stop_engine()


def ranks(bench: Bench) -> None:
    """In float32, on Qwen3-0.6B's shape: answers, masked answers, the argmax of every head and row, on 1 to 8 ranks."""
    _ranks(bench, "float32", "qwen3-0.6b", QWEN3_0_6B)


def ranks_bfloat16(bench: Bench) -> None:
    """The same in bfloat16, on Qwen3-8B's shape."""
    _ranks(bench, "bfloat16", "qwen3-8b", QWEN3_8B)


def ray_ranks(bench: Bench) -> None:
    """Two ranks on two nodes of a Ray cluster, each of one GPU, by vLLM's own Ray executor, beside two ranks of one
    node: float32, Qwen3-0.6B's shape. Both nodes are of this host, which Ray does not know.
    """
    _several(bench)
    bench.stop()
    model = bench.random_model("qwen3-0.6b", QWEN3_0_6B, "float32")
    first = _on_ranks(bench, model, "float32", [0, 1])
    with _nodes(_visible(bench)[:2]) as address:
        other = _on_ranks(bench, model, "float32", [0, 1], "ray", RAY_ADDRESS=address)
    bench.tell("ray_ranks", **_apart(first, other))


@contextmanager
def _nodes(gpus: Sequence[str]) -> Iterator[str]:
    """A Ray cluster with a node for each of these GPUs; its address."""
    from ray.cluster_utils import Cluster

    nodes = [{"num_gpus": 1, "num_cpus": 2, "env_vars": {"CUDA_VISIBLE_DEVICES": gpu}} for gpu in gpus]
    cluster = Cluster(initialize_head=True, head_node_args={**nodes[0], "include_dashboard": False})
    try:
        for node in nodes[1:]:
            cluster.add_node(**node)
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def _ranks(bench: Bench, dtype: str, name: str, shape: dict[str, Any]) -> None:
    """Weights are read from a file: dummy ones would be others on each rank.

    How far one rank is from itself when replays go one by one, or when nothing of them is cached, is the noise.
    """
    _several(bench)
    bench.stop()
    model = bench.random_model(name, shape, dtype)
    found = {}
    for counts in _side_by_side(bench):
        with ThreadPoolExecutor() as pool:
            asked = {count: pool.submit(_on_ranks, bench, model, dtype, gpus) for count, gpus in counts.items()}
        found.update({count: run.result() for count, run in asked.items()})
    first = found[min(found)]
    for way in ("alone", "cold"):
        bench.tell("ranks", dtype=dtype, ranks=min(found), against=f"itself, {way}", **_apart(first, first, way))
    for count in sorted(found)[1:]:
        bench.tell("ranks", dtype=dtype, ranks=count, against=f"{min(found)}", **_apart(first, found[count]))


def _side_by_side(bench: Bench) -> Iterator[dict[int, list[int]]]:
    """How many ranks are tried at once, each count with the numbers of its GPUs."""
    counts = bench.counts()
    while counts:
        batch: dict[int, list[int]] = {}
        taken = 0
        while counts and taken + counts[0] <= bench.gpus():
            count = counts.pop(0)
            batch[count] = list(range(taken, taken + count))
            taken += count
        yield batch


def _on_ranks(bench: Bench, model: str, dtype: str, gpus: list[int], executor: str = "mp", **variables: str) -> Any:
    out = bench.folder / f"ranks-{dtype}-{executor}-{len(gpus)}.npz"
    visible = _visible(bench)
    bench.child(
        sys.executable,
        PARTS / "ranks.py",
        *(model, dtype, len(gpus), out, executor),
        **{"CUDA_VISIBLE_DEVICES": ",".join(visible[number] for number in gpus), **variables},
    )
    return numpy.load(out)


def _visible(bench: Bench) -> list[str]:
    """What CUDA calls each GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(bench.gpus())))).split(",")


def _apart(one: Any, other: Any, way: str = "together") -> dict[str, Any]:
    """How far two runs on the same answers are from each other."""
    names = one["names"].tolist()
    looks = one["together/positions"] == other[f"{way}/positions"]
    differences = numpy.abs(one["together/scores"] - other[f"{way}/scores"])  # [prompts, scores, layers, heads]
    return {
        "argmax_equal": float(looks.mean()),
        "argmaxes": int(looks.size),
        **{f"{name}_apart": float(differences[:, names.index(name)].max()) for name in SCORES},
        **{
            f"{name}_mean": float(abs(one["together/scores"][:, names.index(name)]).mean())
            for name in ("mass", "write")
        },
        "answers_equal": int((one["answers"] == other["answers"]).all(axis=1).sum()),
        "masked_equal": int((one["masked"] == other["masked"]).all(axis=1).sum()),
        "masked_differ_from_unmasked": int((one["masked"] != one["answers"][: len(one["masked"])]).any(axis=1).sum()),
        "answers": len(one["answers"]),
        "masked": len(one["masked"]),
    }


def big(bench: Bench) -> None:
    """A model of 70 billion parameters on all GPUs, which stands on no single one: detection beside the sweep."""
    _several(bench)
    bench.stop()
    bench.take_shape("llama-70b", LLAMA_70B)
    try:
        count = max(bench.counts())
        room = bench.engine_args["kv_cache_memory_bytes"] // count  # of each rank's own heads
        bench.use(traced=True, tensor_parallel_size=count, gpu_memory_utilization=0.9, kv_cache_memory_bytes=room)
        grid = bench.sizes.big
        for number in range(-1, min(ROUNDS, bench.sizes.rounds)):  # the first of each compiles for its lengths
            for kind in ("niah", "detect")[:: 1 if number % 2 else -1]:
                took = bench.by_plugin(bench.suite(grid.lengths, grid.depths, kind=kind))
                bench.tell("big", kind=kind, round=number, seconds=took.seconds, **took.figures)
    finally:
        bench.stop()
        bench.take_shape("qwen3-8b", QWEN3_8B)


def both(bench: Bench) -> None:
    """Two replicas, each of half of the GPUs; then one of them is killed in the middle of a grid."""
    _several(bench, 4)
    bench.use(traced=True, replicas=2, tensor_parallel_size=bench.gpus() // 2)
    for number in range(-1, min(ROUNDS, bench.sizes.rounds)):
        for kind in ("niah", "detect")[:: 1 if number % 2 else -1]:
            took = bench.by_plugin(bench.suite(bench.sizes.lengths, bench.sizes.depths, seeds=2, kind=kind))
            bench.tell("both", kind=kind, round=number, seconds=took.seconds, **took.figures)
    ended = bench.with_one_killed(bench.suite(bench.sizes.lengths, bench.sizes.depths, seeds=2, kind="detect"))
    bench.tell("killed", **ended)
    bench.stop_engine()


def _several(bench: Bench, least: int = 2) -> None:
    if bench.gpus() < least:
        raise NotRun(f"{least} {'GPU is' if least == 1 else 'GPUs are'} needed, {bench.gpus()} are there")
