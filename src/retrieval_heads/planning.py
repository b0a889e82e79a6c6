"""What a suite will cost: prompt tokens, those that prefix caching saves, memory and time."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from retrieval_heads.errors import EngineError, RetrievalHeadsError
from retrieval_heads.results import read_records
from retrieval_heads.suite import Cell, Suite

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


def plan_suite(suite: Suite, tokenizer: Any, earlier: EarlierRun | None = None) -> Plan:
    """Build every prompt and add up.

    Args:
        suite: Its model is named.
        tokenizer: The model's.
        earlier: A run of the same model; it knows the engine's block size where the settings do not say.

    Raises:
        PromptError: A prompt cannot be built.
        ConfigError: The haystack cannot be read.
    """
    from retrieval_heads.engine.cells import CellBuilder, CellSkipped
    from retrieval_heads.tokenizer import kv_bytes_per_token

    model = suite.settings.model.model_dump()
    limit = int(model.get("max_model_len") or sys.maxsize)
    builder = CellBuilder(tokenizer, model, {}, limit)
    question = suite.question()
    block = int(model.get("block_size") or (earlier and earlier.block) or DEFAULT_BLOCK)
    seen = _Seen(block)
    total = computed = 0
    longest, skipped = (0, 0), Counter[str]()
    # On a terminal alone: a log gets the lines of the plan.
    for cell in tqdm(suite.cells, desc=suite.id, unit="cell", disable=None, leave=False):
        try:
            request = builder.request(question, asdict(cell))
        except CellSkipped as reason:
            skipped[str(reason)] += 1
            continue
        total += len(request.ids)
        frame = builder.prompts.frame(suite.settings.prompt, suite.needles[cell.needle].question)
        computed += len(request.ids) - seen.reused(cell, request.facts["recipe"], len(frame.head), len(frame.tail))
        longest = max(longest, (len(request.ids), int(request.sampling["max_tokens"])))
    try:
        kv_bytes = sum(longest) * kv_bytes_per_token(model)
    except EngineError:
        kv_bytes = None
    return Plan(total, computed, block, longest, kv_bytes, skipped)


class _Seen:
    """The prompts so far, by what decides how long a prefix two of them share."""

    def __init__(self, block: int) -> None:
        self._block = block
        self._deepest: dict[Any, int] = {}
        self._longest: dict[Any, int] = {}

    def reused(self, cell: Cell, recipe: Mapping[str, Any], head: int, tail: int) -> int:
        """Tokens of this prompt that an earlier one left in the cache, which holds everything; and remember it.

        Two prompts share all up to the needle that stands first; with needles at the same place, all up to the end of
        the shorter context.
        """
        insertion = recipe["insertion"]
        # An arm of an ablation shares no cache with another.
        start = (recipe["template_hash"], recipe["hash"], recipe["offset"], cell.arm)
        place = (*start, cell.needle, insertion)
        shared = 0
        if start in self._deepest:
            shared = head + min(insertion, self._deepest[start])
        if place in self._longest:
            shared = max(shared, min(cell.length, self._longest[place]) - tail)
        self._deepest[start] = max(insertion, self._deepest.get(start, 0))
        self._longest[place] = max(cell.length, self._longest.get(place, 0))
        return min(shared, cell.length - 1) // self._block * self._block


def earlier_run(reports: Path, model: str) -> EarlierRun | None:
    """What is known of the newest finished run of a model; `None` without one."""
    for file in sorted(reports.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            if facts.get("model") != model or facts.get("status") != "finished" or facts.get("reused_cells"):
                continue
            records = read_records(file.with_name("results.jsonl"))
            seconds = float(facts["answer_seconds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RetrievalHeadsError):
            continue  # another run may tell
        tokens = sum((record.prompt_tokens or 0) - (record.cached_tokens or 0) for record in records)
        if tokens and seconds > 0:
            return EarlierRun(file.parent, tokens / seconds, facts.get("block_size"))
    return None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
