"""Answers, masked answers and head scores of a traced engine; a process of its own for each engine.

usage: python graphs_run.py OUT DTYPE eager|graphs
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.heads.looks import Rows
from retrieval_heads.models import locate_model
from retrieval_heads.runs.mask import Mask

NEEDLE, QUESTION = (100, 130), (500, 520)
MASK = Mask("zero", tuple((layer, head) for layer in range(0, 30, 2) for head in range(0, 9, 3)))
GREEDY = {"temperature": 0.0, "ignore_eos": True}


def main(out: str, dtype: str, how: str) -> None:
    arguments = {"dtype": dtype, "max_model_len": 2048, "kv_cache_memory_bytes": 2 << 30}
    engine = Engine(locate_model("SmolLM2-135M-Instruct"), {**arguments, "enforce_eager": how == "eager"}, traced=True)
    draw = random.Random(0).randrange
    prompts = {f"{number}": [draw(100, 40_000) for _ in range(600 + 37 * number)] for number in range(12)}
    for place, (name, ids) in enumerate(prompts.items()):  # which end one after the other
        engine.add(name, ids, {**GREEDY, "max_tokens": 8 + 2 * place}, is_replayed=True)
    for name in ("1", "4"):
        engine.add(f"masked {name}", prompts[name], {**GREEDY, "max_tokens": 24}, MASK)
    found: dict[str, Any] = {"answers": {}, "scores": {}, "is_eager": engine.info.more["enforce_eager"]}
    while engine.has_work:
        for each in engine.step():
            assert each.error is None, each.error
            if each.head_scores is not None:
                found["scores"][each.id] = each.head_scores.tolist()
                continue
            found["answers"][each.id] = each.token_ids
            if each.id in prompts:
                replay(engine, prompts[each.id], each)
    Path(out).write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # nothing of the engine is worth an orderly end


def replay(engine: Engine, ids: list[int], answer: Finished) -> None:
    rows = Rows(len(ids), tuple(answer.token_ids), NEEDLE, tuple(ids[slice(*NEEDLE)]), QUESTION)
    engine.replay(f"replay {answer.id}", [*ids, *answer.token_ids[:-1]], rows, QUESTION[0], of=answer.id)


if __name__ == "__main__":
    main(*sys.argv[1:])
