"""Answers of masked and unmasked requests and head scores, as `python ablation_run.py ASKED ANSWERED`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from stepping import finish, finish_with_logprobs

from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.heads.looks import Rows
from retrieval_heads.runs.mask import Mask

Answers = dict[str, tuple[list[int], int]]


def main(asked: str, answered: str) -> None:
    told: dict[str, Any] = json.loads(Path(asked).read_text(encoding="utf-8"))
    engine = Engine(told["model"], told["arguments"], traced=True)
    for number, ids in enumerate(told["reference"]):
        engine.measure(f"reference {number}", ids, "text")
    finish(engine)
    requests = {
        (name, prompt): (told["prompts"][prompt], Mask.of_json(mask) if mask else None)
        for name, prompt, mask in told["requests"]
    }
    for (name, prompt), (ids, mask) in requests.items():
        engine.add(f"{name} {prompt}", ids, told["sampling"], mask)
    found: dict[str, Any] = {"together": answers(engine), "alone": {}}
    if told["alone"]:
        assert engine._engine.reset_prefix_cache()
        for (name, prompt), (ids, mask) in requests.items():
            if prompt == told["alone"]:
                engine.add(f"{name} {prompt}", ids, told["sampling"], mask)
            found["alone"] |= answers(engine)
    if told["weighed"]:
        name, prompt = told["weighed"]
        ids, mask = requests[name, prompt]
        engine.add("weighed", ids, {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}, mask)
        found["logprob"] = finish(engine)["weighed"].prompt_logprob
    if told["replayed"]:
        engine.replay("replayed", **{**told["replayed"], "rows": Rows.of_json(told["replayed"]["rows"])})
        replayed = finish(engine)["replayed"]
        assert replayed.error is None, replayed.error
        found["head_scores"] = replayed.head_scores.tolist()
    if told["streamed"]:
        found["streamed"] = streamed(engine, told["streamed"], told["prompts"], told["sampling"])
    if told["shared"]:
        found["shared"] = shared(engine, *told["shared"], told["prompts"], told["sampling"])
    if told["unsalted"]:
        name, prompt = told["unsalted"]
        found["unsalted"] = unsalted(engine, *requests[name, prompt], told["sampling"])
    Path(answered).write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # nothing of the engine is worth an orderly end


def unsalted(engine: Engine, ids: list[int], mask: Mask, sampling: dict[str, Any]) -> Answers:
    """What the cache does to masked and unmasked requests, as shipped and with the salt left out."""
    edited, _ = engine._masked(mask, len(ids))
    without = {**sampling, "extra_args": edited}
    found: Answers = {}
    assert engine._engine.reset_prefix_cache()
    engine.add("unmasked first", ids, sampling)
    found |= answers(engine)
    engine.add("masked, salted", ids, sampling, mask)
    found |= answers(engine)
    engine.add("masked again, salted", ids, sampling, mask)
    found |= answers(engine)
    engine._add("masked, unsalted", ids, without)
    found |= answers(engine)
    assert engine._engine.reset_prefix_cache()
    engine._add("masked first, unsalted", ids, without)
    finish(engine)
    engine.add("unmasked after it", ids, sampling)
    return found | answers(engine)


def streamed(engine: Engine, masks: list[Any], prompts: dict[str, list[int]], sampling: dict[str, Any]) -> Any:
    """Of requests whose heads stream, all in one batch: their tokens and the likeliest ones' log probabilities."""
    assert engine._engine.reset_prefix_cache()
    for number, (prompt, mask) in enumerate(masks):
        engine.add(f"{number}", prompts[prompt], {**sampling, "logprobs": 20}, mask and Mask.of_json(mask))
    found = with_logprobs(engine)
    return [found[f"{number}"] for number in range(len(masks))]


def shared(
    engine: Engine, masks: dict[str, Any], order: list[str], prompts: dict[str, list[int]], sampling: dict[str, Any]
) -> list[Any]:
    """One request after the other: what the cache gave each, its tokens and log probabilities."""
    assert engine._engine.reset_prefix_cache()
    found = []
    for name in order:
        if name == "reset":
            assert engine._engine.reset_prefix_cache()
            continue
        prompt, mask = masks[name]
        engine.add(name, prompts[prompt], {**sampling, "logprobs": 20}, mask and Mask.of_json(mask))
        found.append([name, *with_logprobs(engine)[name]])
    return found


def with_logprobs(engine: Engine) -> dict[str, Any]:
    """By request, its tokens, what the cache gave of its prompt, and of each token the log probabilities by id."""
    finished, logprobs = finish_with_logprobs(engine)
    return {name: [*each, logprobs[name]] for name, each in answers_of(finished).items()}


def answers(engine: Engine) -> Answers:
    """Token ids of each request's answer, and how many tokens of its prompt the cache gave."""
    return answers_of(finish(engine))


def answers_of(finished: dict[str, Finished]) -> Answers:
    """The same of what has finished."""
    found = {}
    for name, each in finished.items():
        assert each.error is None, each.error
        found[name] = each.token_ids, each.cached_tokens
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
