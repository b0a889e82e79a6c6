"""Where an engine's start goes: imports, vLLM's own start and its parts, tracing, the haystack, the first answer.

    python benchmarks/engine_start.py --rounds 3               # SmolLM2 of configs/smollm2.yaml, plain and traced
    python benchmarks/engine_start.py --only traced --set dtype=float32
    python benchmarks/engine_start.py --only traced --profile  # and which functions take it

Each start is a process of its own, which imports and makes the engine as the engine process does, and a JSON line. With
`--profile` that has functions within the start (some hold others), as `cProfile` counts them, which itself takes some
per cent: figures to compare are those without.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

WITHIN = (
    "create_engine_config",
    "_load_meta",
    "init_device",
    "load_model",
    "determine_available_memory",
    "profile_run",
    "initialize_kv_cache",
    "allocate_kv_cache",
    "_allocate_kv_cache_tensors",
    "compile_or_warm_up_model",
    "kernel_warmup",
    "capture_model",
    "_dummy_sampler_run",
    "get_tokenizer",
    "cached_tokenizer_from_config",
)
"""Functions of vLLM's and nnsight's, by name: the longest of each name is told."""
LONGEST = 20
WORDS = "The night guard of the Orrin museum keeps a spare key inside the brass telescope. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=["plain", "traced"])
    parser.add_argument("--set", nargs="+", default=[], help="of the model section, as KEY=VALUE in JSON or a word")
    parser.add_argument("--profile", action="store_true", help="also which functions take it")
    asked = parser.parse_args()
    said = {key: plain(value) for key, _, value in (one.partition("=") for one in asked.set)}
    config = Path(__file__).parents[1] / "configs/smollm2.yaml"
    for number in range(asked.rounds):
        for kind in [asked.only] if asked.only else ["plain", "traced"]:
            line = measured(config_of(config) | said, traced=kind == "traced", is_profiled=asked.profile)
            print(json.dumps({"round": number, "kind": kind, **line, "load": os.getloadavg()[0]}), flush=True)


def plain(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def config_of(path: Path) -> dict[str, Any]:
    from retrieval_heads.suites.reading import read_settings

    return dict(read_settings(path)["model"])


def measured(model: dict[str, Any], *, traced: bool, is_profiled: bool) -> dict[str, Any]:
    """What one start took, in a process of its own.

    Args:
        model: The `model` section of the settings.
        traced: Whether heads are scored.
        is_profiled: Whether functions are told.

    Raises:
        RuntimeError: It did not start; its last words.
    """
    order = {"model": model, "traced": traced, "is_profiled": is_profiled, "began": time.time()}
    child = subprocess.run(
        [sys.executable, __file__, "--child"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
    )
    lines = child.stdout.splitlines()
    if child.returncode or not lines:
        raise RuntimeError(f"the engine did not start: {child.stderr[-3000:]}")
    line: dict[str, Any] = json.loads(lines[-1])
    return line


class Clock:
    """Seconds by part, on the clock and of the process's own work, which is steadier where others work too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time one."""
        wall, own = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = round(time.perf_counter() - wall, 3)
        self.processor[name] = round(time.process_time() - own, 3)


def be_measured() -> None:
    """In a process of its own: start an engine, ask it twice, print what that took."""
    order = json.load(sys.stdin)
    clock = Clock()
    clock.seconds["python"] = round(time.time() - order["began"], 3)
    printed = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with clock.part("ours"):
        from retrieval_heads.engine.backends.vllm import Engine
        from retrieval_heads.tasks.builder import CellBuilder
    with clock.part("torch"):
        import torch  # noqa: F401
    model = dict(order["model"])
    name = model.pop("model")
    profiles = {"start": cProfile.Profile(), "first answer": cProfile.Profile()}

    @contextmanager
    def profiled(part: str) -> Iterator[None]:
        with profiles[part] if order["is_profiled"] and part in profiles else nullcontext():
            yield

    with profiled("start"), clock.part("start"):
        engine = Engine(Engine.locate(name), model, {}, traced=order["traced"])
    clock.seconds |= {part: round(seconds, 3) for part, seconds in engine.start_seconds.items()}
    with clock.part("haystack"):
        builder = CellBuilder(engine.tokenizer, {}, {}, engine.info.max_model_len)
        builder.tokenize(["pydoc"])
    for part in ("first answer", "second answer"):
        with profiled(part), clock.part(part):
            ids = engine.tokenizer(part + WORDS * 40).input_ids
            engine.add(part, ids, {"max_tokens": 8, "temperature": 0.0})
            while not engine.step():
                pass
    line: dict[str, Any] = {
        "seconds": clock.seconds,
        "processor": clock.processor,
        "beyond_import": round(beyond_import(clock.seconds), 3),
    }
    if order["is_profiled"]:
        line |= {part: functions(pstats.Stats(profile)) for part, profile in profiles.items()}
    print(json.dumps(line), file=printed, flush=True)
    os._exit(0)  # vLLM's orderly end takes seconds


def beyond_import(took: dict[str, float]) -> float:
    """Seconds from the end of vLLM's import to the engine that can be asked."""
    return sum(seconds for part, seconds in took.items() if part in ("engine", "tracing", "haystack"))


def functions(stats: Any) -> dict[str, Any]:
    """The named functions, those that take most by themselves, and who calls the collector of garbage."""
    within: dict[str, float] = {}
    for (_, _, name), (_, _, _, whole, _) in stats.stats.items():
        if name in WITHIN:
            within[name] = max(within.get(name, 0.0), round(whole, 3))
    own = sorted(stats.stats.items(), key=lambda each: -each[1][2])[:LONGEST]
    callers: dict[str, float] = {}
    for (_, _, name), (_, _, _, _, by) in stats.stats.items():
        if name == "<built-in method gc.collect>":
            callers = {f"{shortened(place)}:{who}": round(took[3], 3) for (place, _, who), took in by.items()}
    return {
        "within": within,
        "gc.collect": callers,
        "own": {f"{shortened(place)}:{name}": round(alone, 3) for (place, _, name), (_, _, alone, _, _) in own},
    }


def shortened(place: str) -> str:
    parts: Sequence[str] = Path(place).parts
    return "/".join(parts[-3:])


if __name__ == "__main__":
    be_measured() if sys.argv[1:] == ["--child"] else main()
