"""The scoring kernel by itself: right against the torch path, and how much of the copy bandwidth it reaches.

    python benchmarks/kernel.py                      # CUDA: right, fast, and other ways to cut the work
    python benchmarks/kernel.py --only correct --part 0/4    # a quarter of the shapes: compiling is what takes long
    python benchmarks/kernel.py --only speed
    python benchmarks/kernel.py --only roofline      # the share of the roof that binds, from 8 to 128 rows
    python benchmarks/kernel.py --only write         # what heads write, at 8k and 128k: time, bytes of values, memory
    python benchmarks/kernel.py --only top           # what it costs to look for the greatest keys as well (`r2`)
    python benchmarks/kernel.py --cpu                # a few small shapes in Triton's interpreter, no times

Needs torch, triton and `src` on PYTHONPATH. Prints one JSON line per measurement, then a table; exits 1 when a result
is wrong. Times are CUDA graph replays over layers whose K is 1 GB and more in all, so that nothing is read from L2
that a previous replay left there; bytes are those of K, each read once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

if "--cpu" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch
import triton

from retrieval_heads.tracing import attention_torch, attention_triton, written_triton
from retrieval_heads.tracing.attention_triton import Tiling, tiling
from retrieval_heads.tracing.emissions import Emission
from retrieval_heads.tracing.rows import Stretch

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp8": torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class Shape:
    rows: int
    tokens: int
    query_heads: int
    kv_heads: int
    head_size: int = 128
    block_size: int = 16
    dtype: str = "bfloat16"
    cache: str = "bfloat16"
    layout: str = "NHD"
    window: int | None = None
    cap: float | None = None
    sinks: bool = False
    alibi: bool = False
    top: int = 0

    def k_bytes(self) -> int:
        seen = min(self.tokens, (self.window or self.tokens) + self.rows)
        return seen * self.kv_heads * self.head_size * int(DTYPES[self.cache].itemsize)

    def flops(self) -> int:
        return 2 * self.rows * self.query_heads * self.tokens * self.head_size


def inputs(shape: Shape, device: str, whole: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `score_rows` as vLLM would have them: K is half of each cell, blocks in random order."""
    blocks = -(-shape.tokens // shape.block_size)
    size = [blocks + 1, shape.kv_heads, shape.block_size, 2 * shape.head_size]
    if shape.layout == "NHD":
        size = [size[0], size[2], size[1], size[3]]

    def numbers(*size: int) -> Any:
        if whole:  # exact in every dtype, with many equal scores
            return torch.randint(-1, 2, size, device=device).float()
        return torch.randn(size, device=device)

    cache = torch.empty(size, dtype=DTYPES[shape.cache], device=device)
    for part in cache.split(4096):  # in parts: float32 numbers of a whole cache would take twice its memory
        part.copy_(numbers(*part.shape))
    if shape.layout == "NHD":
        cache = cache.transpose(1, 2)
    q = numbers(shape.rows, shape.query_heads, shape.head_size).to(DTYPES[shape.dtype])
    ids = (torch.randperm(blocks, device=device) + 1).int()
    options: dict[str, Any] = {
        "scale": shape.head_size**-0.5,
        "span": (shape.tokens // 3, shape.tokens // 3 + 25),
        "sliding_window": shape.window,
        "soft_cap": shape.cap,
        "sinks": torch.randn(shape.query_heads, device=device) if shape.sinks else None,
        "alibi_slopes": 0.5 ** torch.arange(1, shape.query_heads + 1, device=device) if shape.alibi else None,
        "k_scale": 0.5 if shape.cache == "fp8" else None,
        "top": shape.top,
    }
    return (q, cache[..., : shape.head_size], ids, shape.tokens - shape.rows), options


def correctness(shape: Shape, device: str) -> dict[str, Any]:
    """Differences from the torch path, on data whose ties are exact and on normal data."""
    line: dict[str, Any] = {"what": "correct", **asdict(shape)}
    started = time.perf_counter()
    try:
        for whole in (True, False):
            arguments, options = inputs(shape, device, whole)
            ours = attention_triton.score_rows(*arguments, **options)
            reference = attention_torch.score_rows(*arguments, **options)
            kind = "whole" if whole else "normal"
            unequal = int((ours.argmax != reference.argmax).sum())  # a mean could be rounded to just below 1
            line[f"{kind}_argmax_equal"] = 1 - unequal / ours.argmax.numel()
            for name in ("logsumexp", "span_logsumexp"):
                apart = getattr(ours, name).double() - getattr(reference, name).double()
                apart[getattr(ours, name) == getattr(reference, name)] = 0.0  # -inf both
                line[f"{kind}_{name}_apart"] = apart.abs().max().item()
            if shape.top:  # of normal numbers, keys that nearly tie across the last place may be on either side
                near = torch.isclose(ours.top_logsumexp, reference.top_logsumexp, atol=1e-3, equal_nan=True)
                line[f"{kind}_top_equal"] = near.float().mean().item()
        apart_most = max(value for name, value in line.items() if name.endswith("_apart"))
        # ALiBi under a cap ranks by tanh, whose rounding breaks exact ties either way.
        exact = line["whole_argmax_equal"] == 1.0 or (shape.alibi and shape.cap is not None)
        line["ok"] = exact and line["normal_argmax_equal"] > 0.995 and apart_most < 1e-3
        if shape.top:
            is_exact = line["whole_top_equal"] == 1.0 or (shape.alibi and shape.cap is not None)
            line["ok"] = line["ok"] and is_exact and line["normal_top_equal"] > 0.98
    except Exception as error:  # a shape that fails to compile is a result, and the others must still run
        line.update(ok=False, error=f"{type(error).__name__}: {error}"[:400])
    return {**line, "seconds": round(time.perf_counter() - started, 2)}


def shapes_to_check() -> Iterator[Shape]:
    base = Shape(rows=32, tokens=2500, query_heads=32, kv_heads=8)
    for size, rows in itertools.product((64, 80, 96, 128, 192, 256), (3, 9, 16, 32, 100)):
        yield replace(base, head_size=size, rows=rows)
    for group in (1, 2, 3, 5, 7, 16):
        yield replace(base, query_heads=2 * group, kv_heads=2)
        yield replace(base, query_heads=2 * group, kv_heads=2, layout="HND", rows=7)
    for block_size in (32, 48, 64, 128, 256, 544):
        yield replace(base, block_size=block_size)
        yield replace(base, block_size=block_size, rows=4, layout="HND")
    for dtype, cache in (
        ("float16", "float16"),
        ("float32", "float32"),
        ("bfloat16", "fp8"),
        ("float16", "fp8"),
        ("float32", "fp8"),
        ("float32", "bfloat16"),
    ):
        for size in (64, 128, 256):
            yield replace(base, dtype=dtype, cache=cache, head_size=size)
    for rows in (4, 16, 32):
        for options in (
            {"window": 1},
            {"window": 1000},
            {"cap": 30.0},
            {"sinks": True},
            {"alibi": True},
            {"alibi": True, "cap": 30.0},
            {"window": 128, "cap": 50.0, "sinks": True},
        ):
            yield replace(base, rows=rows, **options)
    for tokens in (128, 129, 4096, 70_001):
        yield replace(base, rows=128, tokens=tokens)
    for size, rows in itertools.product((64, 128, 256), (3, 32)):
        yield replace(base, head_size=size, rows=rows, top=25)
    for options in ({"window": 1000}, {"cap": 30.0}, {"alibi": True}, {"sinks": True}, {"dtype": "float32"}):
        yield replace(base, **options, top=25)
    yield replace(base, cache="fp8", top=25)
    yield replace(base, tokens=70_001, top=25)
    yield Shape(rows=1, tokens=1, query_heads=1, kv_heads=1)
    yield Shape(rows=128, tokens=9000, query_heads=16, kv_heads=1)


def best_of(run: Callable[[], None], times: int = 7) -> float:
    """Median seconds by CUDA events, after a warm-up."""
    run()
    seconds: list[float] = []
    for _ in range(times):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return statistics.median(seconds)


def ceilings() -> dict[str, Any]:
    """What this device copies (bytes read and written) and multiplies (bfloat16), measured."""
    source = torch.randn(1 << 29, device="cuda")  # 2 GB
    target = torch.empty_like(source)
    copied = best_of(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    multiplied = best_of(lambda: torch.mm(a, b))
    return {
        "what": "ceilings",
        "device": torch.cuda.get_device_name(),
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_gb_s": round(2 * source.nbytes / copied / 1e9, 1),
        "bf16_tflop_s": round(2 * 8192**3 / multiplied / 1e12, 1),
    }


@dataclass(frozen=True)
class Stack:
    """Layers of one request: arguments of `score_layers`, of which each layer's can be scored alone too."""

    q: Any
    caches: list[Any]
    ids: Any
    first_position: int
    options: dict[str, Any]

    def together(self, cut: Tiling | None = None) -> None:
        options = dict(self.options)
        stretch = Stretch(self.first_position, self.q.shape[1], options.pop("span"), options.pop("top"))
        sinks = options.pop("sinks")
        sinks = None if sinks is None else sinks.expand(len(self.caches), -1)
        attention_triton.score_layers(self.q, self.caches, self.ids[None], [stretch], **options, sinks=sinks, cut=cut)

    def alone(self, cut: Tiling | None = None) -> None:
        for q, cache in zip(self.q, self.caches, strict=True):
            attention_triton.score_rows(q, cache, self.ids, self.first_position, **self.options, cut=cut)


def stack(shape: Shape) -> Stack:
    """As many layers as 1 GB of K takes, 4 to 64: what is read was not read lately."""
    count = min(64, max(4, -(-(1 << 30) // shape.k_bytes())))
    layers = [inputs(shape, "cuda") for _ in range(count)]
    (_, _, ids, first_position), options = layers[0]
    q = torch.stack([arguments[0] for arguments, _ in layers])
    return Stack(q, [arguments[1] for arguments, _ in layers], ids, first_position, options)


def speed(shape: Shape, how: str, ceiling: dict[str, Any], layers: Stack, cut: Tiling | None = None) -> dict[str, Any]:
    """Seconds a layer, layers `together` in one call or each `alone`: on the device (in a graph), and from Python."""
    count = len(layers.caches)
    line: dict[str, Any] = {"what": "sweep" if cut else "speed", "how": how, **asdict(shape), "layers": count}
    run = layers.together if how == "together" else layers.alone
    try:
        run(cut)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        run(cut)
        host = time.perf_counter() - started
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(cut)
        seconds = best_of(graph.replay) / count
    except Exception as error:
        return {**line, "cut": asdict(cut) if cut else None, "error": f"{type(error).__name__}: {error}"[:300]}
    gb_s = shape.k_bytes() / seconds / 1e9
    tflop_s = shape.flops() / seconds / 1e12
    group = shape.query_heads // shape.kv_heads
    bytes_each = DTYPES[shape.cache].itemsize
    chosen = cut or tiling(
        shape.rows * group, shape.head_size, bytes_each, False, ceiling["multiprocessors"], is_capped=bool(shape.cap)
    )
    return {
        **line,
        "cut": asdict(chosen),
        "us": round(seconds * 1e6, 2),
        "host_us": round(host / count * 1e6, 1),
        "gb_s": round(gb_s, 1),
        "of_copy": round(gb_s / ceiling["copy_gb_s"], 3),
        "tflop_s": round(tflop_s, 1),
        "of_matmul": round(tflop_s / ceiling["bf16_tflop_s"], 3),
        "extra_mb": round(extra / 1e6, 2),
    }


def launches(shape: Shape, layers: Stack) -> dict[str, Any]:
    """Microseconds of each of the two launches, by torch's profiler: a layer alone, and all together."""
    line: dict[str, Any] = {"what": "launches", **asdict(shape), "layers": len(layers.caches)}
    try:
        for how, run in (("alone", layers.alone), ("together", layers.together)):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                run()
                torch.cuda.synchronize()
            line[how] = {
                event.key: round(event.device_time_total / event.count, 2)
                for event in profile.key_averages()
                if event.key.startswith("_")
            }
    except Exception as error:
        line["error"] = str(error)[:200]
    return line


def cuts(multiprocessors: int) -> Iterator[Tiling]:
    for stages in (2, 3):
        yield Tiling(128, 128, 4, stages, registers=255, programs=2 * multiprocessors)
        yield Tiling(128, 128, 8, stages, registers=128, programs=2 * multiprocessors)
        yield Tiling(128, 64, 4, stages, registers=168, programs=3 * multiprocessors)
        yield Tiling(128, 64, 8, stages, registers=128, programs=2 * multiprocessors)
        yield Tiling(64, 128, 4, stages, registers=168, programs=2 * multiprocessors)
        yield Tiling(64, 64, 4, stages, registers=128, programs=4 * multiprocessors)
        yield Tiling(32, 64, 4, stages, registers=128, programs=4 * multiprocessors, columns=64)
    yield Tiling(128, 32, 8, 4, registers=128, programs=2 * multiprocessors)
    yield Tiling(128, 32, 8, 4, registers=128, programs=2 * multiprocessors, columns=32)


def say(line: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(line), flush=True)
    return line


def table(lines: list[dict[str, Any]]) -> None:
    columns = ["how", "rows", "tokens", "query_heads", "kv_heads", "block_size", "cache", "us", "host_us"]
    columns += ["gb_s", "of_copy", "tflop_s", "of_matmul", "extra_mb"]
    print("\n" + " ".join(f"{name:>11}" for name in columns))
    for line in lines:
        print(" ".join(f"{line.get(name, line.get('error', '-'))!s:>11.11}" for name in columns))


def on_cpu() -> int:
    base = Shape(rows=5, tokens=90, query_heads=4, kv_heads=2, head_size=16)
    checks = [
        base,
        replace(base, head_size=80, window=20, layout="HND", sinks=True),
        replace(base, block_size=48, cache="fp8", cap=20.0),
        replace(base, dtype="float32", cache="float32", alibi=True, tokens=5),
        replace(base, top=25),
    ]
    lines = [say(correctness(shape, "cpu")) for shape in checks]
    return 0 if all(line["ok"] for line in lines) else 1


def check_all(part: int, parts: int) -> int:
    checks = [say(correctness(shape, "cuda")) for shape in list(shapes_to_check())[part::parts]]
    wrong = [line for line in checks if not line["ok"]]
    print(f"\n{len(checks) - len(wrong)} of {len(checks)} shapes right (part {part} of {parts})")
    for line in wrong:
        print("WRONG", json.dumps(line))
    return 1 if wrong else 0


TARGET = Shape(32, 8192, query_heads=32, kv_heads=8)


def time_all(ceiling: dict[str, Any]) -> None:
    shapes = [
        Shape(rows, tokens, query_heads=32, kv_heads=32 // group)
        for group, tokens, rows in itertools.product((4, 1, 8), (8192, 32_768, 131_072), (32, 64, 128))
    ]
    variants = [
        replace(TARGET, block_size=64),
        replace(TARGET, tokens=131_072, block_size=64),
        replace(TARGET, layout="HND"),
        replace(TARGET, cache="fp8", tokens=32_768),
        replace(TARGET, rows=8, tokens=32_768),
        replace(TARGET, head_size=256, kv_heads=4, query_heads=16, tokens=32_768),
        replace(TARGET, head_size=64, tokens=32_768),
        replace(TARGET, cap=50.0, tokens=32_768),
        replace(TARGET, window=1024, tokens=32_768),
    ]
    lines: list[dict[str, Any]] = []
    for shape in shapes + variants:
        layers = stack(shape)
        lines.extend(say(speed(shape, how, ceiling, layers)) for how in ("together", "alone"))
        if shape.query_heads == 4 * shape.kv_heads and shape.rows == 32:
            say(launches(shape, layers))
        del layers
    table(lines)


def top_keys(ceiling: dict[str, Any]) -> None:
    """With and without the greatest keys: the passes over the keys that `r2` takes beside the scoring."""
    for tokens, top in itertools.product((8192, 32_768, 131_072), (0, 25, 60)):
        shape = replace(TARGET, tokens=tokens, top=top)
        say(speed(shape, "together", ceiling, stack(shape)))


def roofline(ceiling: dict[str, Any]) -> None:
    """Below and beyond the ridge, by which roof binds: the time to read K once, or to multiply it with the rows.

    A byte of a bfloat16 K takes rows × group operations: 2 × rows × query heads × head size over 2 × KV heads × head
    size, for each key.
    """
    for rows, tokens in itertools.product((8, 32, 64, 128), (8192, 32_768, 131_072)):
        shape = replace(TARGET, rows=rows, tokens=tokens)
        line = speed(shape, "together", ceiling, stack(shape))
        if "error" not in line:
            roof = "copy" if line["of_copy"] >= line["of_matmul"] else "matmul"
            line |= {
                "operations_per_byte": shape.flops() / shape.k_bytes(),
                "roof": roof,
                "of_roof": line[f"of_{roof}"],
            }
        say(line)


def write_all() -> None:
    """`write` of a needle of 25 tokens at the middle of contexts that grow, layers of Qwen3-8B's shape: W_O is
    4096 × 4096. Values read are the needle's, whatever the context is.
    """
    hidden, rows, needle, count = 4096, 32, 25, 36
    for tokens in (8192, 131_072):
        shape = replace(TARGET, tokens=tokens, rows=rows)
        blocks = -(-tokens // shape.block_size)
        layers = min(count, max(4, (32 << 30) // (2 * shape.k_bytes())))
        size = (layers, blocks + 1, shape.kv_heads, shape.block_size, 2 * shape.head_size)
        caches = torch.zeros(size, dtype=torch.bfloat16, device="cuda")
        ids = (torch.randperm(blocks, device="cuda") + 1).int()[None]
        first, start = tokens - rows, tokens // 2
        emissions = (Emission(first, tuple(range(rows)), ((start, start + needle),)),)

        def numbers(*size: int) -> Any:
            return torch.randn(size, device="cuda").bfloat16()

        arguments = {
            "k_caches": [layer[..., : shape.head_size] for layer in caches],
            "v_caches": [layer[..., shape.head_size :] for layer in caches],
            "block_table": ids,
            "emissions": emissions,
            "q": numbers(layers, rows, shape.query_heads, shape.head_size),
            "logsumexp": torch.full((layers, rows, shape.query_heads), 10.0, device="cuda"),
            "outputs": numbers(layers, rows, shape.query_heads, shape.head_size),
            "projections": [numbers(hidden, shape.query_heads * shape.head_size) for _ in range(layers)],
            "unembedding": numbers(rows, hidden),
            "scale": shape.head_size**-0.5,
        }

        def run(arguments: dict[str, Any] = arguments) -> None:
            written_triton.score_written(**arguments)

        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        run()
        host = time.perf_counter() - started
        torch.cuda.synchronize()
        seconds = best_of(run)
        values = len(emissions[0].needle()) * shape.kv_heads * shape.head_size * 2
        projection = hidden * shape.query_heads * shape.head_size * 2
        say(
            {
                "what": "write",
                "tokens": tokens,
                "rows": rows,
                "needle": needle,
                "layers": layers,
                "us": round(seconds / layers * 1e6, 2),
                "host_us": round(host / layers * 1e6, 1),
                "value_bytes": values,
                "context_value_bytes": shape.k_bytes(),
                "projection_bytes": projection,
                "projection_gb_s": round(projection * layers / seconds / 1e9, 1),
                "extra_mb": round((torch.cuda.max_memory_allocated() - before) / 1e6, 2),
            }
        )
        del caches, arguments
        torch.cuda.empty_cache()


def sweep_all(ceiling: dict[str, Any]) -> None:
    print("\nhow rows tokens kv_heads | us of_copy of_matmul | block_m block_n warps stages registers programs columns")
    for shape, how in (
        (TARGET, "together"),
        (TARGET, "alone"),
        (replace(TARGET, tokens=131_072), "together"),
        (replace(TARGET, rows=128, tokens=32_768), "together"),
        (replace(TARGET, kv_heads=32, tokens=32_768), "together"),
    ):
        layers = stack(shape)
        swept = [speed(shape, how, ceiling, layers, cut) for cut in cuts(ceiling["multiprocessors"])]
        del layers
        for line in sorted(swept, key=lambda line: float(line.get("us", math.inf))):
            numbers = [line.get(name, line.get("error")) for name in ("us", "of_copy", "of_matmul")]
            print(how, shape.rows, shape.tokens, shape.kv_heads, "|", *numbers, "|", *line["cut"].values(), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="small shapes in Triton's interpreter")
    parser.add_argument(
        "--only", choices=["correct", "speed", "sweep", "roofline", "write", "top"], help="one of the parts"
    )
    parser.add_argument("--part", default="0/1", help="I/N: every N-th shape of `correct`, from the I-th")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.cpu:
        return on_cpu()
    torch.backends.cuda.matmul.allow_tf32 = False  # the reference is float32
    failed = 0
    if options.only in (None, "correct"):
        failed = check_all(*(int(number) for number in options.part.split("/")))
    if options.only != "correct":
        ceiling = say(ceilings())
        if options.only == "roofline":
            roofline(ceiling)
        if options.only in (None, "write"):
            write_all()
        if options.only == "top":
            top_keys(ceiling)
        if options.only in (None, "speed"):
            time_all(ceiling)
        if options.only in (None, "sweep"):
            sweep_all(ceiling)
    return failed


if __name__ == "__main__":
    sys.exit(main())
