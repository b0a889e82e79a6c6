"""Answers, masked answers and head scores with every row's argmax, on so many ranks; a process of its own for each.

usage: python ranks.py MODEL DTYPE RANKS OUT [EXECUTOR]

The executor is vLLM's: `mp`, unless said, or `ray`, which takes the cluster of RAY_ADDRESS.

What is replayed are random tokens after each prompt: the same on every count of ranks, whatever these answer.
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any

import numpy

from retrieval_heads.engine.answers import measured_scores
from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.heads.looks import Rows
from retrieval_heads.runs.mask import Mask

LENGTHS = (2048, 4096, 6144, 8192)
EACH = 2
ANSWER, MASKED = 32, 4
GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_tokens": ANSWER}


def main(model: str, dtype: str, ranks: str, out: str, executor: str = "mp") -> None:
    engine = Engine(
        model,
        {
            "dtype": dtype,
            "max_model_len": 8448,
            "tensor_parallel_size": int(ranks),
            "gpu_memory_utilization": 0.85,
            "kv_cache_memory_bytes": 12 << 30,
            "enforce_eager": True,
            **({"distributed_executor_backend": executor} if int(ranks) > 1 else {}),
            # vLLM's own would look for the other node's GPU among this node's, since both nodes are of one host.
            **({"disable_custom_all_reduce": True} if executor == "ray" else {}),
        },
        traced=True,
    )
    names = measured_scores((), engine.scores)
    draw = random.Random(0).randrange
    prompts = {f"{n}": [draw(100, 40_000) for _ in range(length)] for n, length in enumerate(LENGTHS * EACH)}
    layers = [layer.heads for layer in engine.info.layers]
    masked = [(layer, head) for layer in range(0, len(layers), 2) for head in range(0, layers[layer], 3)]
    mask = Mask("zero", tuple(masked))
    for name, ids in prompts.items():
        engine.add(name, ids, GREEDY)
    for name in list(prompts)[:MASKED]:
        engine.add(f"masked {name}", prompts[name], GREEDY, mask)
    answered = finish(engine)
    answers = {name: answered[name].token_ids for name in prompts}
    traced = {name: [draw(100, 40_000) for _ in range(ANSWER)] for name in prompts}
    found: dict[str, Any] = {
        "answers": numpy.array(list(answers.values())),
        "masked": numpy.array([answered[f"masked {name}"].token_ids for name in list(prompts)[:MASKED]]),
    }
    for way in ("together", "alone", "cold"):
        replays = {}
        if way == "cold":  # prompts are computed again, in other batches
            assert engine._engine.reset_prefix_cache()
        for name, ids in prompts.items():
            replay(engine, name, ids, traced[name])
            if way == "alone":
                replays.update(finish(engine))
        replays.update(finish(engine))
        figures = numpy.stack([replays[name].head_scores for name in prompts])
        count = len(names)
        found[f"{way}/scores"], found[f"{way}/positions"] = figures[:, :count], figures[:, count:]
    numpy.savez(out, names=numpy.array(names), **found)
    sys.stdout.flush()
    os._exit(0)  # nothing of the engine is worth an orderly end


def finish(engine: Engine) -> dict[str, Any]:
    found = {}
    while engine.has_work:
        for each in engine.step():
            assert each.error is None, each.error
            found[each.id] = each
    return found


def replay(engine: Engine, name: str, ids: list[int], answer: list[int]) -> None:
    start, end = len(ids) // 2, len(ids) // 2 + 64
    question = (len(ids) - 40, len(ids) - 10)
    rows = Rows(len(ids), tuple(answer), (start, end), tuple(ids[start:end]), question, positions=True)
    engine.replay(name, [*ids, *answer[:-1]], rows, question[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
