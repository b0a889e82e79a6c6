"""Asks a planted model with every fault of `faulty` in turn, on one engine: sixty prompts of 200 tokens each time.

usage: python faults_run.py OUT
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from faulty import FAULTS
from oracle import Design, build, make_prompt
from oracle_run import COPYING, DECOYS, LOWEST
from stepping import finish, look_at_models_here

from retrieval_heads.engine.backends.vllm import Engine

DESIGN = Design((LOWEST, COPYING, DECOYS), sliding=(1,), window=512)
"""The layer that copies sees a window, which holds every prompt."""
PROMPTS = {f"{depth}": make_prompt(200, depth / 59) for depth in range(60)}


def main(out: str) -> None:
    look_at_models_here()
    with tempfile.TemporaryDirectory() as folder:
        model = build(DESIGN, Path(folder) / "planted")
        engine = Engine(
            str(model),
            {
                "dtype": "float32",
                "block_size": 32,
                "max_model_len": 512,
                "kv_cache_memory_bytes": 128 << 20,
                "enable_prefix_caching": False,
                "enforce_eager": True,
            },
        )
    found = {"reference": answers(engine, "reference"), "again": answers(engine, "again")}
    for name, fault in FAULTS.items():
        with fault(engine):
            found[name] = answers(engine, name)
    found["afterwards"] = answers(engine, "afterwards")
    Path(out).write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # nothing of the engine is worth an orderly end


def answers(engine: Engine, run: str) -> dict[str, list[int]]:
    for name, prompt in PROMPTS.items():
        engine.add(f"{run} {name}", prompt.ids, {"max_tokens": len(prompt.needle) + 3, "temperature": 0.0})
    return {name.partition(" ")[2]: list(each.token_ids) for name, each in finish(engine).items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
