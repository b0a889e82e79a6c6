"""Time one needle-in-a-haystack grid asked in three ways: what does the plugin cost beside bare vLLM?

    python benchmarks/niah.py --rounds 5

- bare: `vllm.LLM.generate` with all prompts in one call.
- plugin: pytest, its engine process and one item for each cell; from the first submission to the last record
  written, as `answer_seconds` in `run.json` has it. Building the prompts and scoring the answers are inside.
- single: `vllm.LLM.generate` with one prompt after the other.

The ways alternate and each run starts an engine of its own, so that caches are as cold for all. Starting it is in
none of the figures. The same token ids are asked with the same sampling, which is checked. One JSON line for each
run goes to standard output, the table behind them. `others` in a line is the share of the machine that other
processes took meanwhile: above a tenth, do not trust the run.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from retrieval_heads.runs.record import read_records
from retrieval_heads.suites.reading import overrides, read_settings
from retrieval_heads.suites.suite import Suite, load_suite

CHECKOUT = Path(__file__).parents[1]
WAYS: tuple[Literal["bare", "plugin", "single"], ...] = ("bare", "plugin", "single")
CHILD = "RH_BENCHMARK_WAY"


@dataclass(frozen=True)
class Timed:
    """One run of the grid.

    Args:
        seconds: Engine start excluded.
        prompt_tokens: Of all prompts together.
        cached_tokens: How many of those the prefix cache gave.
        answers: Hash of each prompt's ids, and the ids of its answer.
    """

    seconds: float
    prompt_tokens: int
    cached_tokens: int
    answers: Mapping[str, list[int]] = field(repr=False)


@dataclass(frozen=True)
class Benchmark:
    """Ask a grid in three ways and compare how long that takes."""

    suite: Path = CHECKOUT / "suites/niah/ci.yaml"
    """The grid."""
    config: Path = CHECKOUT / "configs/smollm2.yaml"
    """The model."""
    set: tuple[str, ...] = ()
    """Overrides, as `--rh-set` takes them: model.dtype=float32."""
    rounds: int = 5
    """How often each way is run."""
    ways: tuple[Literal["bare", "plugin", "single"], ...] = WAYS
    """What is run; the ratios are to bare."""

    def run(self) -> None:
        """Measure, and print."""
        took: dict[str, list[Timed]] = {way: [] for way in self.ways}
        for turn in range(self.rounds):
            first = turn % len(self.ways)
            for way in (*self.ways[first:], *self.ways[:first]):
                others = OthersShare()
                one = self.by_plugin() if way == "plugin" else self.by_child(way)
                took[way].append(one)
                told = {key: value for key, value in asdict(one).items() if key != "answers"}
                print(json.dumps({"round": turn, "way": way, **told, "others": others.so_far()}), flush=True)
        check_alike(took)
        print_table(took)

    @property
    def loaded(self) -> Suite:
        """The suite, with config and overrides laid over it."""
        return load_suite(self.suite, read_settings(self.config), overrides(self.set))

    def by_plugin(self) -> Timed:
        """Through pytest."""
        with tempfile.TemporaryDirectory() as folder:
            settings = (*self.set, f"output_dir={folder}")
            command = [sys.executable, "-m", "pytest", str(self.suite), "--rh-config", str(self.config)]
            command += [f"--rh-set={one}" for one in settings]
            quietly([*command, "--rh-verdict", "none", "-p", "no:cacheprovider"])
            facts = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
            records = [one for one in read_records(Path(folder) / "results.jsonl") if one.recipe]
        return Timed(
            seconds=facts["answer_seconds"],
            prompt_tokens=sum(record.prompt_tokens or 0 for record in records),
            cached_tokens=sum(record.cached_tokens or 0 for record in records),
            answers={record.recipe.prompt_hash: record.token_ids for record in records if record.recipe},
        )

    def by_child(self, way: str) -> Timed:
        """In a process of its own, which is this script again."""
        with tempfile.NamedTemporaryFile(suffix=".json") as told:
            quietly([sys.executable, *sys.argv], {CHILD: f"{way}:{told.name}"})
            return Timed(**json.loads(Path(told.name).read_text(encoding="utf-8")))

    def answer(self, way: str) -> Timed:
        """Ask bare vLLM, in this process."""
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # as the plugin does
        from vllm import LLM, SamplingParams, TokensPrompt

        from retrieval_heads.models import locate_model
        from retrieval_heads.tasks.builder import CellBuilder

        model = self.loaded.settings.model
        assert model.model, "the config names no model"
        llm = LLM(model=locate_model(model.model), **{"enable_prefix_caching": True, **model.engine_args})
        builder = CellBuilder(llm.get_tokenizer(), model.model_dump(), {}, llm.llm_engine.model_config.max_model_len)
        requests = list(fitting(self.loaded, builder))
        prompts = [TokensPrompt(prompt_token_ids=request.ids) for request in requests]
        sampling = [SamplingParams(**request.sampling) for request in requests]

        began = time.perf_counter()
        if way == "bare":
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
        else:
            outputs = [llm.generate(*one, use_tqdm=False)[0] for one in zip(prompts, sampling, strict=True)]
        seconds = time.perf_counter() - began
        return Timed(
            seconds=round(seconds, 3),
            prompt_tokens=sum(len(request.ids) for request in requests),
            cached_tokens=sum(output.num_cached_tokens or 0 for output in outputs),
            answers={
                request.facts.recipe.prompt_hash: list(output.outputs[0].token_ids)
                for request, output in zip(requests, outputs, strict=True)
            },
        )


class OthersShare:
    """How busy other processes keep the machine's cores, from 0 to 1, while one of ours runs."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._busy, self._own = self._busy_seconds(), self._own_seconds()

    def so_far(self) -> float | None:
        """Since it was made; `None` where the system does not tell."""
        busy, own = self._busy_seconds(), self._own_seconds()
        if busy is None or self._busy is None:
            return None
        cores = (os.cpu_count() or 1) * (time.perf_counter() - self._began)
        return round(max(0.0, (busy - self._busy) - (own - self._own)) / cores, 3)

    @staticmethod
    def _busy_seconds() -> float | None:
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        user, nice, system, _, _, irq, softirq = map(int, stat.read_text(encoding="ascii").split()[1:8])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _own_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


def fitting(suite: Suite, builder: Any) -> Iterator[Any]:
    """The requests of the cells that the model can be asked."""
    from retrieval_heads.prompts.requests import CellSkipped

    for cell in suite.cells:
        try:
            yield builder.request(suite.question, cell)
        except CellSkipped as reason:
            print(f"{cell.name}: {reason}", file=sys.stderr)


def quietly(command: list[str], variables: Mapping[str, str] | None = None) -> None:
    """Run a command; its output is shown only where it fails."""
    done = subprocess.run(
        command, env={**os.environ, **(variables or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")


def check_alike(took: Mapping[str, list[Timed]]) -> None:
    """Stop where two runs asked different prompts; tell how many answers differ."""
    first = took["bare"][0].answers
    for way, runs in took.items():
        for one in runs:
            if one.answers.keys() != first.keys():
                sys.exit(f"{way} asked other prompts than bare did: nothing is compared")
        same = sum(one.answers[prompt] == ids for one in runs for prompt, ids in first.items())
        print(f"# {way}: {same} of {len(first) * len(runs)} answers are those of the first bare run", file=sys.stderr)


def print_table(took: Mapping[str, list[Timed]]) -> None:
    """Median, range and the ratio to bare vLLM: of the medians, and the median of the rounds' own ratios."""
    medians = {way: statistics.median(one.seconds for one in runs) for way, runs in took.items()}
    print(f"\n{'':<8}{'median s':>10}{'min':>9}{'max':>9}{'tokens/s':>10}{'cached':>9}{'ratio':>8}{'by round':>10}")
    for way, runs in took.items():
        seconds = [one.seconds for one in runs]
        by_round = statistics.median(one.seconds / bare.seconds for one, bare in zip(runs, took["bare"], strict=True))
        speed, cached = runs[0].prompt_tokens / medians[way], statistics.median(one.cached_tokens for one in runs)
        print(
            f"{way:<8}{medians[way]:>10.2f}{min(seconds):>9.2f}{max(seconds):>9.2f}{speed:>10.0f}{cached:>9.0f}"
            f"{medians[way] / medians['bare']:>8.3f}{by_round:>10.3f}"
        )


if __name__ == "__main__":
    benchmark = tyro.cli(Benchmark, description=__doc__)
    if child := os.environ.get(CHILD):
        asked_way, _, told_to = child.partition(":")
        Path(told_to).write_text(json.dumps(asdict(benchmark.answer(asked_way))), encoding="utf-8")
    else:
        benchmark.run()
