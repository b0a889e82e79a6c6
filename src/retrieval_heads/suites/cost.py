"""What a suite will cost: prompt tokens, those that prefix caching saves, memory and time."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from retrieval_heads.errors import EngineError, RetrievalHeadsError
from retrieval_heads.prompts.prompt import Tokenizer
from retrieval_heads.prompts.reuse import Reuse
from retrieval_heads.reading import read_object
from retrieval_heads.runs.record import read_records
from retrieval_heads.suites.suite import Suite

DEFAULT_BLOCK = 16
"""Tokens of a block of vLLM's KV cache where the settings do not say (CPU builds use 128)."""


@dataclass(frozen=True)
class EarlierRun:
    """What an earlier run of the same model tells."""

    path: Path
    tokens_per_second: float
    """Prompt tokens computed in a second, answers included in the time."""
    block: int | None
    """Tokens of a block of its KV cache."""


@dataclass(frozen=True)
class Plan:
    """A suite's cost.

    Args:
        prompt_tokens: Over all cells that can be asked.
        computed_tokens: What is left of them when every prefix seen before is cached.
        block: Tokens of a cache block; only whole blocks are reused.
        longest: Prompt and answer tokens of the longest cell.
        kv_bytes: What that cell takes in the KV cache; `None` where the model does not say its shape.
        skipped: Cells that do not fit, by reason.
    """

    prompt_tokens: int
    computed_tokens: int
    block: int
    longest: tuple[int, int]
    kv_bytes: int | None
    skipped: Mapping[str, int]

    def lines(self, earlier: EarlierRun | None) -> Iterator[tuple[str, str]]:
        """The plan for a terminal, as name and text."""
        for reason, count in self.skipped.items():
            yield "skipped", f"{count:,}: {reason}"
        yield (
            "prompt tokens",
            f"{self.prompt_tokens:,}; {self.computed_tokens:,} to compute where prefixes are reused "
            f"(blocks of {self.block})",
        )
        memory = f": {self.kv_bytes / 2**20:,.0f} MiB of KV cache" if self.kv_bytes is not None else ""
        yield "longest cell", f"{self.longest[0]:,} tokens and an answer of up to {self.longest[1]:,}{memory}"
        if earlier is None:
            yield "time", "unknown: no earlier run of this model in reports/"
        else:
            speed = earlier.tokens_per_second
            yield (
                "time",
                f"about {_duration(self.computed_tokens / speed)}, at the {speed:,.0f} tokens/s of {earlier.path}",
            )


def plan_suite(suite: Suite, tokenizer: Tokenizer, earlier: EarlierRun | None = None) -> Plan:
    """Build every prompt and add up.

    Args:
        suite: Its model is named.
        tokenizer: The model's.
        earlier: A run of the same model; it knows the engine's block size where the settings do not say.

    Raises:
        PromptError: A prompt cannot be built.
        ConfigError: The haystack cannot be read.
    """
    from retrieval_heads.prompts.requests import CellSkipped
    from retrieval_heads.prompts.tokenizer import kv_bytes_per_token
    from retrieval_heads.tasks.builder import CellBuilder

    model = suite.settings.model.model_dump()
    said = model.get("max_model_len")
    limit = said if isinstance(said, int) and said > 0 else sys.maxsize  # vLLM alone knows what auto comes to
    builder = CellBuilder(tokenizer, model, {}, limit)
    sizes = (model.get("block_size"), earlier and earlier.block)
    block = next((size for size in sizes if isinstance(size, int) and size > 0), DEFAULT_BLOCK)
    reuse = Reuse(block)
    total = computed = 0
    longest, skipped = (0, 0), Counter[str]()
    # On a terminal alone: a log gets the lines of the plan.
    for cell in tqdm(suite.cells, desc=suite.id, unit="cell", disable=None, leave=False):
        try:
            request = builder.request(suite.question, cell)
        except CellSkipped as reason:
            skipped[str(reason)] += 1
            continue
        total += len(request.ids)
        computed += len(request.ids) - (reuse.add(request.prefix, len(request.ids)) if request.prefix else 0)
        longest = max(longest, (len(request.ids), int(request.sampling["max_tokens"])))
    try:
        kv_bytes = sum(longest) * kv_bytes_per_token(model)
    except EngineError:
        kv_bytes = None
    return Plan(total, computed, block, longest, kv_bytes, skipped)


def earlier_run(reports: Path, model: str) -> EarlierRun | None:
    """What is known of the newest finished run of a model; `None` without one."""
    for file in sorted(reports.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            facts = read_object(file)
            if facts.get("model") != model or facts.get("status") != "finished" or facts.get("reused_cells"):
                continue
            records = read_records(file.with_name("results.jsonl"))
            seconds, block = float(str(facts["answer_seconds"])), facts.get("block_size")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RetrievalHeadsError):
            continue  # another run may tell
        tokens = sum((record.prompt_tokens or 0) - (record.cached_tokens or 0) for record in records)
        if tokens and seconds > 0:
            return EarlierRun(file.parent, tokens / seconds, block if isinstance(block, int) else None)
    return None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
