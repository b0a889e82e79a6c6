"""What is measured, on what, and by which way: grids, the plugin's engine, bare vLLM."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import yaml

from retrieval_heads.engine.client import EngineClient, EngineDied, EngineProcess
from retrieval_heads.engine.messages import Hello
from retrieval_heads.engine.results import Answered
from retrieval_heads.models import locate_model
from retrieval_heads.scoring import score_answer
from retrieval_heads.suites.suite import Suite, load_suite

PARTS = Path(__file__).parent
ON_RAY = "retrieval_heads.engine.backends.on_ray:OnRay"
DEPTHS = tuple(range(0, 101, 10))
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

# Windows of 1,024 tokens in five layers of six.
GEMMA_3_4B = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 1024,
    "layer_types": ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(34)],
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

DECODE_GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
# With weights that two ranks share: dummy ones are drawn by each rank for itself.
QWEN3_0_6B = {
    **QWEN3_8B,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "vocab_size": 49152,
    "torch_dtype": "float32",
}

# Where no single GPU holds the weights.
LLAMA_70B = {
    **QWEN3_8B,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
}

PATIENCE = 180  # seconds for bare vLLM's start, or for a grid
SCORES = ("copy", "copy_reference", "mass", "query", "write")  # of models without gated delta layers


class NotRun(Exception):
    """Why a phase was not run, which is no failure."""


@dataclass(frozen=True)
class Grid:
    """Cells that are asked together.

    Args:
        lengths: Of the prompts, in tokens.
        depths: Of the needles, in percent.
        seeds: How many.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    seeds: int = 1


@dataclass(frozen=True)
class Sizes:
    """How much is asked.

    Args:
        lengths: Of the grid's prompts, in tokens.
        depths: Of its needles, in percent.
        answer: Tokens of each answer.
        rounds: Of bare vLLM and the plugin in turn.
        turns: Of one long sample with and without detection.
        long: Lengths asked one sample at a time, the longest first.
        memory: Length of the sample whose detection's memory is measured.
        cells: Counts of cells of the shortest length, multiples of its depths.
        short: A grid of short prompts, whose replays are as many and cost as much each.
        samples: The paper's own size of experiment.
        windows: Of the model whose layers have windows.
        big: Of the model that stands on several GPUs.
    """

    lengths: tuple[int, ...] = (4096, 8192, 16_384, 32_768)
    depths: tuple[int, ...] = DEPTHS
    answer: int = 32
    rounds: int = 5
    turns: int = 3
    long: tuple[int, ...] = (131_072 - 32, 65_536, 32_768, 16_384, 8192, 4096)
    memory: int = 32_768
    cells: tuple[int, ...] = (11, 44, 176, 352)
    short: Grid = Grid((1024, 2048), tuple(range(0, 101, 2)))
    samples: Grid = Grid((1024, 2048, 4096, 8192), tuple(range(0, 99, 7)), seeds=10)
    windows: Grid = Grid((4096, 16_384), tuple(range(0, 101, 20)))
    big: Grid = Grid((8192, 16_384, 32_768, 65_536), (10, 50, 90))

    @property
    def grid(self) -> Grid:
        """The grid that most rows are about."""
        return Grid(self.lengths, self.depths)


SMALL = Sizes(
    lengths=(192, 256),
    depths=(0, 60),
    answer=6,
    rounds=1,
    turns=1,
    long=(320, 160),
    memory=256,
    cells=(2, 4),
    short=Grid((160,), (0, 50, 100)),
    samples=Grid((160, 192), (0, 100), seeds=2),
    windows=Grid((192,), (0, 60)),
)


@dataclass(frozen=True)
class Took:
    """One run of a grid.

    Args:
        seconds: From the first submission to the last result.
        figures: What the engine counted meanwhile: tokens, and seconds between its steps.
        results: What each cell came to.
    """

    seconds: float
    figures: dict[str, Any]
    results: list[dict[str, Any]] = field(repr=False, default_factory=list)


class Bench:
    """Bare vLLM, the plugin's engine, and what was measured so far."""

    def __init__(
        self,
        *,
        is_cpu: bool,
        rounds: int | None = None,
        turns: int | None = None,
        is_eager: bool = False,
        counts: Sequence[int] = (1, 2, 4, 8),
        scores: Sequence[str] = (),
        is_named: bool = False,
    ) -> None:
        self.is_cpu = is_cpu
        self.is_named = is_named
        """Whether the phases were named: one that is of no use on a CPU is run there all the same."""
        self.scores = scores
        self._counts = counts
        self.sizes = SMALL if is_cpu else Sizes(rounds=rounds or Sizes.rounds, turns=turns or Sizes.turns)
        self.folder = Path(tempfile.mkdtemp(prefix="rh-gpu-"))
        self.model = self._tokenizer = locate_model("SmolLM2-135M-Instruct")
        self.engine_args: dict[str, Any] = {
            "max_model_len": 512,
            "dtype": "float32",
            "enforce_eager": True,
            "block_size": 32,
            # Said, it spares vLLM its warm-up.
            "kv_cache_memory_bytes": 1 << 30,
        }
        self._is_eager = is_eager
        if not is_cpu:
            self.take_shape("qwen3-8b", QWEN3_8B)
        self.seed = self.recomputed = 0
        self.lines: list[dict[str, Any]] = []
        self.info: dict[str, Any] = {}
        self._using: dict[str, Any] | None = None
        self._process: EngineProcess | None = None
        self._bare: subprocess.Popen[bytes] | None = None
        self._bare_starts = False

    def take_shape(self, name: str, config: dict[str, Any]) -> None:
        """Have engines that start from now on load dummy weights of this shape. On a CPU there is SmolLM2 alone."""
        if self.is_cpu:
            return
        self.model = self._shape(f"{name}-shape", config)
        kv_bytes = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2
        self.engine_args = {
            "max_model_len": min(131_072, config["max_position_embeddings"]),
            "dtype": "bfloat16",
            # The same for all: what a traced engine can do, which is everything but compile the model.
            **({"enforce_eager": True} if self._is_eager else {"compilation_config": DECODE_GRAPHS}),
            "load_format": "dummy",
            "gpu_memory_utilization": 0.45,
            # As many blocks for both: 355,000 tokens of K and V. The grid fills 300,000; with fewer, requests were
            # preempted.
            "kv_cache_memory_bytes": 355_000 * kv_bytes,
        }

    def tell(self, what: str, **figures: Any) -> None:
        """One JSON line."""
        line = {"what": what, **{k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figures.items()}}
        self.lines.append(line)
        print(json.dumps(line), flush=True)

    def use(self, *, traced: bool, replicas: int = 1, is_on_ray: bool = False, **arguments: Any) -> None:
        """Have the plugin's engine process run, one at a time; it stays for the phases that follow.

        On a CPU every engine is the traced one, which does what the other does: starting takes most of the time there.

        Raises:
            NotRun: This tree's engine process knows nothing of replicas.
        """
        wanted = {"traced": traced or self.is_cpu, "replicas": replicas, **arguments}
        if is_on_ray:
            wanted["is_on_ray"] = True
        if self._using == wanted:
            return
        self.stop_engine()
        log = self.folder / f"engine-{len(self.lines)}.log"
        self._process = EngineProcess()
        began = time.monotonic()
        hello = Hello(
            {"model": self.model, **self.engine_args, **arguments},
            traced=bool(wanted["traced"]),
            haystacks=["pydoc"],
            replicas=replicas,
            **({"backend": ON_RAY, "options": self._cluster()} if is_on_ray else {}),
        )
        self._process.launch(hello, log)
        self.info = dict(self._process.wait_ready())
        if replicas > 1 and self.info.get("replicas") != replicas:
            raise NotRun("the engine process starts no replicas")
        ready = time.monotonic() - began
        self._client = EngineClient(self._process.address)
        self._using = wanted
        length = self.sizes.lengths[0]
        first, second = (self.by_plugin(self.suite([length], [50])).seconds for _ in range(2))
        told = {key: value for key, value in self.info.items() if not key.endswith("layers") and key != "identities"}
        times = {"ready_seconds": ready, "first_result_seconds": first, "second_result_seconds": second}
        self.tell("start", **{**wanted, "length": length, **times, **told, "by_vllm": _parts_of_start(log)})

    def _cluster(self) -> dict[str, Any]:
        """What the `engine` section says of a Ray cluster of this machine alone, started where there is none."""
        import ray

        if not ray.is_initialized():
            gpus, room = self.gpus(), 1 << 28  # nothing large crosses
            there = {"num_gpus": gpus, "num_cpus": max(2, gpus), "object_store_memory": room}
            ray.init(**there, include_dashboard=False, log_to_driver=False)
        return {"address": ray.get_runtime_context().gcs_address, **({"gpus": 0} if self.is_cpu else {})}

    def suite(self, lengths: Any, depths: Any, *, seeds: int = 1, kind: str = "niah", **more: Any) -> Suite:
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
                "context_lengths": list(lengths),
                "document_depths": list(depths),
                "seeds": list(range(first, first + seeds)),
            },
            # At the exact token, so that each seed's cells share as much with each other as any other seed's.
            "boundary": "token",
            "generation": {"max_tokens": self.sizes.answer, "ignore_eos": True},
            **more,
        }
        if kind == "detect" and self.scores:
            content["scores"] = list(self.scores)
        file.write_text(yaml.safe_dump(content))
        return load_suite(file)

    def by_bare(self, suite: Suite) -> Took:
        """One call of `LLM.generate`; building the prompts is not in it."""
        self.start_bare()
        reply = self._ask_bare({"suite": str(suite.path)})
        assert reply.pop("answer_tokens") == [self.sizes.answer] * len(suite.cells)
        return Took(reply.pop("seconds"), reply)

    def by_plugin(self, suite: Suite, *, one_at_a_time: bool = False) -> Took:
        """The same through engine process and client; heads are scored where the suite's kind says so."""
        cells = {f"{suite.path.stem}/{cell.id}": cell for cell in suite.cells}
        before, results = self._client.counters(), []
        began = time.monotonic()
        for part in [{key: cell} for key, cell in cells.items()] if one_at_a_time else [cells]:
            self._client.submit(suite.question, part)
            for key in part:
                result = self._client.result(key)
                assert isinstance(result, Answered), result
                score_answer(result.answer.text, suite.needles[0].reference, suite.needles[0].question)
                results.append(result)
        seconds = time.monotonic() - began
        after = self._client.counters()
        for result in results:
            assert len(result.answer.token_ids) == self.sizes.answer
            if suite.settings.kind == "detect":
                self._check_heads(result)
        counted = ("prompt_tokens", "cached_tokens", "reusable_tokens", "steps", "step_seconds", "feed_gap_seconds")
        return Took(
            seconds, {name: getattr(after.done, name) - getattr(before.done, name) for name in counted}, results
        )

    def memory(self) -> float:
        """MB in use: of the GPU, or on a CPU by the engine's processes."""
        if not self.is_cpu:
            import torch

            free, total = torch.cuda.mem_get_info()
            return float(total - free) / 1e6
        engine = psutil.Process(self._client.counters().process)
        return sum(one.memory_info().rss for one in [engine, *engine.children(recursive=True)]) / 1e6

    def gpus(self) -> int:
        """How many GPUs there are; 0 with `--cpu`."""
        if self.is_cpu:
            return 0
        import torch

        return int(torch.cuda.device_count())

    def counts(self) -> list[int]:
        """How many replicas or ranks are measured: those asked for that the GPUs suffice for."""
        return [count for count in self._counts if count <= self.gpus()]

    def host_memory(self) -> float:
        """MB that the plugin's engine takes of the host, with all that it started; what they share is counted once."""
        engine = psutil.Process(self._client.counters().process)
        return sum(one.memory_full_info().pss for one in [engine, *engine.children(recursive=True)]) / 1e6

    def with_one_killed(self, suite: Suite) -> dict[str, Any]:
        """Ask a suite and kill one replica of the engine, with its ranks, once a third of it is answered; what became
        of the rest.
        """
        cells = {f"{suite.path.stem}/{cell.id}": cell for cell in suite.cells}
        counters = self._client.counters()
        before = counters.finished
        self._client.submit(suite.question, cells)
        while self._client.counters().finished < before + len(cells) // 3:
            time.sleep(0.05)
        killed = time.monotonic()
        for one in self._a_replica(counters.process):
            one.kill()
        ended: dict[str, int] = {}
        again = 0
        reasons = set()
        for key in cells:
            try:
                result = self._client.result(key)
                status = "done" if isinstance(result, Answered) else result.status
                again += isinstance(result, Answered) and bool(result.lost_replica)
            except EngineDied as error:
                status = "engine died"
                reasons.add(str(error).splitlines()[0])
            ended[status] = ended.get(status, 0) + 1
        told = {"cells": len(cells), "ended": ended, "asked_again": again, "why": sorted(reasons)}
        return {**told, "seconds": time.monotonic() - killed}

    def _a_replica(self, router: int) -> list[psutil.Process]:
        """The processes of one replica; of Ray's, its actor, with which the rest ends."""
        if self._using and self._using.get("is_on_ray"):
            every = psutil.Process().children(recursive=True)
            return [next(one for one in every if " ".join(one.cmdline()).startswith("ray::EngineActor"))]
        replica = max(psutil.Process(router).children(), key=lambda one: one.create_time())
        return [*replica.children(recursive=True), replica]

    def child(self, *command: Any, **variables: str) -> list[dict[str, Any]]:
        """The JSON lines that a command prints.

        Raises:
            RuntimeError: It failed; its last words.
        """
        lines, why = self.child_until(None, *command, **variables)
        if why is not None:
            raise RuntimeError(why)
        return lines

    def child_until(
        self, seconds: float | None, *command: Any, **variables: str
    ) -> tuple[list[dict[str, Any]], str | None]:
        """The JSON lines that a command printed in so many seconds, and why there are no more unless it ended well."""
        log, why = self.folder / f"child-{uuid4().hex}.log", None  # several may run at once
        printed = log.with_suffix(".out")
        with log.open("w") as errors, printed.open("w") as out:
            done = subprocess.Popen(
                [*map(str, command)],
                env={**os.environ, **variables},
                stdout=out,
                stderr=errors,
                start_new_session=True,
            )
            try:
                done.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(done.pid, signal.SIGKILL)  # with the engine that it started
                done.wait()
                why = f"stopped after {seconds:.0f} s"
            else:
                if done.returncode:
                    why = f"{command[1]} ended with {done.returncode}: {_tail(printed)[-500:]}{_tail(log)}"
        return [json.loads(line) for line in printed.read_text().splitlines() if line.startswith("{")], why

    def stop_engine(self) -> None:
        """End the plugin's engine."""
        if self._process is not None:
            self._process.end()
        self._process = self._using = None

    def stop(self) -> None:
        """End everything."""
        self.stop_engine()
        if self._bare is not None:
            os.killpg(self._bare.pid, signal.SIGKILL)  # by closing its input it ends only where it still listens
            self._bare.wait()
        self._bare = None
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()

    def log_tails(self) -> str:
        """Last words of everything that was started."""
        return "".join(f"{log.name}: {_tail(log)}\n" for log in sorted(self.folder.glob("*.log")))

    def start_bare(self) -> None:
        """Have bare vLLM start, without waiting until it has; it stays for the phases that follow."""
        if self._bare is not None:
            return
        variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if self.is_cpu else {}
        with (self.folder / "bare.log").open("w") as log:
            self._bare = subprocess.Popen(
                [sys.executable, str(PARTS / "bare.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **variables},
                start_new_session=True,
            )
        self._tell_bare({"model": self.model, "arguments": self.engine_args})
        self._bare_starts = True

    def _tell_bare(self, message: dict[str, Any]) -> None:
        assert self._bare is not None
        assert self._bare.stdin is not None
        self._bare.stdin.write(json.dumps(message).encode() + b"\n")
        self._bare.stdin.flush()

    def _ask_bare(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._bare_starts:
            self._hear_bare()
            self._bare_starts = False
        self._tell_bare(message)
        return self._hear_bare()

    def _hear_bare(self) -> dict[str, Any]:
        assert self._bare is not None
        assert self._bare.stdout is not None
        heard, _, _ = select.select([self._bare.stdout], [], [], PATIENCE)
        line = self._bare.stdout.readline() if heard else b""
        if not line:
            raise RuntimeError("bare vLLM ended" if heard else f"bare vLLM said nothing for {PATIENCE} s")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _check_heads(self, result: Answered) -> None:
        """All scores of all heads; how many tokens a replay computed, which is a block and the rows at most."""
        heads = sum(layer["heads"] for layer in self.info["layers"])
        assert result.replay is not None
        scores = result.head_scores or {}
        counts = {name: sum(map(len, rows)) for name, rows in scores.items()}
        assert counts == dict.fromkeys(self.scores or [*SCORES, *counts], heads), counts
        self.recomputed = max(self.recomputed, result.replay.computed_tokens)

    def random_model(self, name: str, shape: dict[str, Any], dtype: str) -> str:
        """A folder with a model's shape, random weights and SmolLM2's tokenizer."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = self._shape(f"{name}-random", shape)
        torch.manual_seed(0)
        with torch.device("cpu" if self.is_cpu else "cuda"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=getattr(torch, dtype))
        model.save_pretrained(folder)
        del model
        torch.cuda.empty_cache()
        return folder

    def _shape(self, name: str, config: dict[str, Any]) -> str:
        """A folder with a model's shape and SmolLM2's tokenizer."""
        folder = self.folder / name
        if folder.exists():
            return str(folder)
        folder.mkdir()
        for file in Path(self._tokenizer).iterdir():
            if "token" in file.name or file.name in ("vocab.json", "merges.txt", "chat_template.jinja"):
                (folder / file.name).symlink_to(file.resolve())
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)


def _parts_of_start(log: Path) -> dict[str, float]:
    """Seconds of the engine's own start, as far as this vLLM says them in its log."""
    said = {
        "load": r"(?:Loading weights|Model loading) took .*?([\d.]+) s",
        "profile": r"init engine .* took ([\d.]+) s",
        "graphs": r"Graph capturing finished in ([\d.]+) s",
    }
    found = {part: re.findall(pattern, log.read_text(errors="replace")) for part, pattern in said.items()}
    return {part: float(seconds[-1]) for part, seconds in found.items() if seconds}


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
