"""Runs the oracle's models through the engine: their answers, and their heads as the probe scores them.

The heads once rightly, and once for each mistake that a detector can make. One process for all of the models: the
imports take longer than an engine of this size.

usage: python oracle_run.py OUT
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from oracle import (
    BACK_2,
    BACK_7,
    COPY,
    ECHO,
    ELSEWHERE,
    FIRST,
    HEADS,
    OPPOSITE,
    PREVIOUS_TOKEN,
    SELF,
    SILENT,
    UNIFORM,
    Design,
    Prompt,
    build,
    make_prompt,
)
from stepping import finish, look_at_models_here

from retrieval_heads.engine.answers import measured_scores
from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.prompts.requests import Request
from retrieval_heads.runs.facts import PromptFacts
from retrieval_heads.runs.mask import Mask, Stream

# Planted heads stand where `head // group` and `head % KV heads` differ, for 2 and for 4 KV heads: 1, 3, 4 and 6.
LOWEST = (SELF, FIRST, UNIFORM, PREVIOUS_TOKEN, BACK_2, BACK_7, SELF, FIRST)
COPYING = (UNIFORM, ECHO, BACK_2, SELF, FIRST, BACK_7, COPY, FIRST)
DECOYS = (ELSEWHERE, SELF, BACK_2, ECHO, UNIFORM, ELSEWHERE, FIRST, BACK_7)
JOINING = (SELF, COPY, BACK_2, ECHO, COPY, UNIFORM, FIRST, BACK_7)
FOOLING = (SILENT, SELF, OPPOSITE, ECHO, UNIFORM, ELSEWHERE, FIRST, BACK_7)
LAST = (SELF, ELSEWHERE, FIRST, COPY, ECHO, BACK_7, COPY, UNIFORM)

ONE = Design((LOWEST, COPYING, DECOYS))
MIXED = Design((LOWEST, COPYING, JOINING), kv_heads=4, sliding=(0, 2), window=256)
DESIGNS = {
    "gqa-1": ONE,
    "gqa-2-bfloat16": replace(ONE, kv_heads=4, dtype="bfloat16"),
    "gqa-4": replace(ONE, kv_heads=2),
    "fooling": Design((LOWEST, COPYING, FOOLING), kv_heads=4),
    "several": Design((LOWEST, COPYING, JOINING, LAST), kv_heads=4),
    "windows": MIXED,
    "windows-bfloat16": replace(MIXED, dtype="bfloat16"),
    "windows-in-one-group": MIXED,
    "windows-everywhere": replace(MIXED, sliding=(0, 1, 2)),
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    # Windowed layers keep the blocks that no row sees, as all layers share a block table.
    "windows-in-one-group": {"disable_hybrid_kv_cache_manager": True},
}
PROMPTS = {
    f"{length}-{depth}": make_prompt(length, depth, words=words)
    for length, words in ((200, 3), (1000, 16), (4000, 8))
    for depth in (0.05, 0.5, 0.95)
}
MISTAKEN_PROMPT = "1000-0.5"
MISTAKEN = [
    (mistake, design)
    for mistake, designs in {
        "no_span_check": ["gqa-1", "gqa-2-bfloat16"],
        "no_token_check": ["gqa-1", "gqa-2-bfloat16"],
        "one_step_late": ["gqa-1", "gqa-2-bfloat16"],
        "position_off_by_one": ["gqa-1", "gqa-2-bfloat16"],
        "span_shifted": ["gqa-1", "gqa-2-bfloat16"],
        "heads_transposed": ["gqa-1", "gqa-2-bfloat16"],
        "other_kv_heads": ["gqa-2-bfloat16", "gqa-4", "several"],
        "naive_cache_read": ["gqa-1", "gqa-2-bfloat16"],
        "no_window_mask": ["windows-in-one-group"],
    }.items()
    for design in designs
]
MASKED_PROMPT = "200-0.5"
MASKED = {
    design: {
        **{f"L{layer}H{head}": [(layer, head)] for layer in range(len(built.heads)) for head in range(HEADS)},
        "decoys": [
            (layer, head)
            for layer, kinds in enumerate(built.heads)
            for head, kind in enumerate(kinds)
            if kind not in (PREVIOUS_TOKEN, COPY)
        ],
    }
    for design, built in DESIGNS.items()
    if design in ("gqa-2-bfloat16", "gqa-4", "several")
}
"""By design and name, heads that are masked together."""
MODES = ("zero", "uniform")
STREAMING = ("gqa-1", "gqa-2-bfloat16", "gqa-4")
"""Designs, of one copying head, of which heads stream."""
STREAMED = [prompt for prompt in PROMPTS if not prompt.startswith("4000")]
"""Prompts that they are asked."""
WINDOWS = [Stream(4, 100), Stream(4, 100, prefill=True), Stream(20, 500), Stream(4, 100, "context")]


def streaming(design: Design) -> dict[str, list[tuple[int, int]]]:
    """By name, heads that stream: those of the copying head's KV head, and all others."""
    group = HEADS // design.kv_heads
    ((layer, head),) = design.of(COPY)
    copying = [(layer, head // group * group + each) for each in range(group)]
    every = [(number, each) for number in range(len(design.heads)) for each in range(HEADS)]
    return {"copying": copying, "others": [each for each in every if each not in copying]}


def main(out: str) -> None:
    look_at_models_here()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, design in DESIGNS.items():
            found[name] = run(name, design, build(design, Path(folder) / name))
            gc.collect()  # the engine before the next one
    torch.save(found, out)
    sys.stdout.flush()
    os._exit(0)  # nothing of the engine is worth an orderly end


def run(name: str, design: Design, model: Path) -> dict[str, Any]:
    import mistakes  # it imports the probe, and that vLLM; what else is here is also read by the tests

    engine = Engine(
        str(model),
        {
            "dtype": design.dtype,
            "block_size": 32,
            "max_model_len": 4352,
            "max_num_batched_tokens": 1024,  # long prompts take several steps
            "kv_cache_memory_bytes": 128 << 20,
            **ARGUMENTS.get(name, {}),
        },
        traced=True,
    )
    for prompt, each in PROMPTS.items():
        engine.add(prompt, each.ids, {"max_tokens": len(each.needle) + 3, "temperature": 0.0})
    answers = {prompt: finished.token_ids for prompt, finished in finish(engine).items()}
    found = {
        "layers": [asdict(layer) for layer in engine.info.layers or ()],
        "scores": measured_scores((), engine.scores),
        "answers": answers,
        "replays": replay(engine, PROMPTS, answers),
        "mistakes": {},
        "masked": masked(engine, PROMPTS[MASKED_PROMPT], MASKED.get(name, {})),
        "streamed": streamed(engine, design) if name in STREAMING else {},
    }
    for mistake in [mistake for mistake, design_name in MISTAKEN if design_name == name]:
        one = {MISTAKEN_PROMPT: PROMPTS[MISTAKEN_PROMPT]}
        with getattr(mistakes, mistake)(PROMPTS[MISTAKEN_PROMPT]):
            found["mistakes"][mistake] = replay(engine, one, answers)[MISTAKEN_PROMPT]
    return found


def replay(engine: Engine, prompts: Mapping[str, Prompt], answers: Mapping[str, list[int]]) -> dict[str, Any]:
    for name, prompt in prompts.items():
        rows = replace(request_of(prompt).rows(answers[name]), positions=True)
        engine.replay(name, [*prompt.ids, *answers[name][:-1]], rows, prompt.question_span[0])
    return {
        name: {
            **vars(finished),
            "head_scores": None if (found := finished.head_scores) is None else torch.from_numpy(found),
        }
        for name, finished in finish(engine).items()
    }


def masked(engine: Engine, prompt: Prompt, masks: Mapping[str, list[tuple[int, int]]]) -> dict[str, Any]:
    """Answers by mode and mask."""
    sampling = {"max_tokens": len(prompt.needle) + 3, "temperature": 0.0}
    for mode in MODES:
        for name, heads in masks.items():
            engine.add(f"{mode} {name}", prompt.ids, sampling, Mask(mode, tuple(heads)))
    finished = finish(engine)
    assert not any(each.error for each in finished.values()), [each.error for each in finished.values()]
    return {name: each.token_ids for name, each in finished.items()}


def streamed(engine: Engine, design: Design) -> dict[tuple[str, int, str], list[int]]:
    """Answers by the heads that stream, the number of the window and the prompt."""
    for heads, each in streaming(design).items():
        for number, window in enumerate(WINDOWS):
            for name in STREAMED:
                prompt = PROMPTS[name]
                mask = Mask("stream", tuple(each), stream=replace(window, context=prompt.question_span[0]))
                sampling = {"max_tokens": len(prompt.needle) + 3, "temperature": 0.0}
                engine.add(f"{heads}/{number}/{name}", prompt.ids, sampling, mask)
    finished = finish(engine)
    assert not any(each.error for each in finished.values()), [each.error for each in finished.values()]
    return {
        (heads, int(number), prompt): each.token_ids
        for name, each in finished.items()
        for heads, number, prompt in [name.split("/")]
    }


def request_of(prompt: Prompt) -> Request:
    facts = PromptFacts(needle_span=prompt.needle_span, question_span=prompt.question_span)
    return Request(list(prompt.ids), {}, facts)


if __name__ == "__main__":
    main(*sys.argv[1:])
