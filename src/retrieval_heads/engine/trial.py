"""One step of a small copy of a model, in a process of its own: heads scored on an answer, and a head masked.

Run as a module, it is that process: a `Trial` on standard input, and a line of JSON on standard output for each stage
that it has ended.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

from retrieval_heads.engine.answers import scores_of
from retrieval_heads.engine.backends.backend import Backend, Finished, find
from retrieval_heads.engine.backends.reasons import plain_reason
from retrieval_heads.engine.backends.small_copy import SmallCopy
from retrieval_heads.errors import EngineError
from retrieval_heads.heads.looks import Rows
from retrieval_heads.heads.score import head_score
from retrieval_heads.plain import Json, Plain
from retrieval_heads.redaction import without_secrets
from retrieval_heads.runs.mask import Mask
from retrieval_heads.suites.settings import DEFAULT_BACKEND

_PATIENCE = 900
"""Seconds."""
_START, _ANSWER, _SCORE, _MASK = "starting", "answering", "scoring heads", "masking a head"
_PROMPT_TOKENS = 128
_NEEDLE, _DISTRACTOR, _QUESTION = (40, 48), (72, 80), (112, 120)
_ANSWER_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Trial(Plain):
    """What the process is told.

    Args:
        folder: The copy's.
        arguments: vLLM's engine arguments.
        vocabulary: Its tokens.
        traced: Whether heads are scored and masked, or only an answer is generated, by vLLM alone.
    """

    folder: str
    arguments: dict[str, Json]
    vocabulary: int
    traced: bool


@dataclass(frozen=True)
class Outcome:
    """How it went.

    Args:
        lines: What was done, or why not.
        is_ours: Whether what failed is ours: vLLM alone runs the copy.
    """

    lines: tuple[str, ...]
    is_ours: bool = False


def try_step(copy: SmallCopy) -> Outcome:
    """Have a copy's heads scored and masked in a process of its own; where its engine does not answer, see whether
    vLLM alone does.
    """
    trial = Trial(copy.folder, copy.arguments, copy.vocabulary, traced=True)
    done, reason = _run(trial)
    if reason is None:
        return Outcome(tuple(done))
    if len(done) < 2:
        _, alone = _run(replace(trial, traced=False))
        if alone is not None:
            return Outcome((f"no step was run: vLLM alone cannot run this copy here ({alone})",))
        reason += "; vLLM alone answers"
    return Outcome((*done, reason), is_ours=True)


def _run(trial: Trial) -> tuple[list[str], str | None]:
    """What was done, a line for each stage, and why the next was not; `None` where none is left."""
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", __name__]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        asked = json.dumps(trial.to_json()).encode()
        try:
            ended = subprocess.run(
                command,
                input=asked,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                timeout=_PATIENCE,
                check=False,
            )
            output, status = ended.stdout, ended.returncode
            how = _ending(status)
        except subprocess.TimeoutExpired as late:
            output, status, how = late.stdout or b"", 1, f"its process had not ended after {_PATIENCE} seconds"
        stages = [_START, _ANSWER, *([_SCORE, _MASK] if trial.traced else [])]
        done: list[str] = []
        for line in output.decode("utf-8", "replace").splitlines():
            message = json.loads(line)
            if "error" in message:
                return done, f"{stages[len(done)]} failed: {message['error']}"
            done.append(message["done"])
        if status == 0 and len(done) == len(stages):
            return done, None
        stage = stages[min(len(done), len(stages) - 1)]
        return done, "; ".join([f"{stage} failed: {how}", *_last_lines(log)])


def _ending(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status} and gave no reason"
    name = signal.Signals(-status).name
    return f"its process was ended by {name}{', as one that takes too much memory is' if name == 'SIGKILL' else ''}"


def _last_lines(log: IO[bytes]) -> list[str]:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return [f"its last lines were: {without_secrets(' / '.join(lines[-5:]))}"] if lines else []


def main() -> None:
    """Do the trial that stands on standard input."""
    trial = Trial.of_json(json.loads(sys.stdin.buffer.read()))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no message
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        for line in _stages(trial):
            print(json.dumps({"done": line}), file=out, flush=True)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": str(EngineError(plain_reason(error)))}), file=out, flush=True)
    out.flush()
    os._exit(0)  # nothing of the engine is worth an orderly end


def _stages(trial: Trial) -> Iterator[str]:
    """Each ends with what was done."""
    engine = find(DEFAULT_BACKEND)(trial.folder, trial.arguments, {}, traced=trial.traced)
    info = engine.info
    yield f"started: {info.engine}, {info.device}, {info.dtype}"
    prompt = random.Random(0).choices(range(8, trial.vocabulary // 2), k=_PROMPT_TOKENS)
    sampling = {"max_tokens": _ANSWER_TOKENS, "temperature": 0.0, "ignore_eos": True, "detokenize": False}
    needle = tuple(prompt[slice(*_NEEDLE)])
    rows = Rows(len(prompt), (), _NEEDLE, needle, _QUESTION, distractor_spans=(_DISTRACTOR,))
    kept: dict[str, Any] = {"rows": rows} if trial.traced and engine.keeps_rows else {}
    engine.add("answer", prompt, sampling, None, is_replayed=trial.traced, **kept)
    said = _finished(engine).token_ids
    yield f"{len(said)} tokens generated after a prompt of {len(prompt)}"
    if not trial.traced:
        return
    rows = replace(rows, answer=tuple(said))
    engine.replay("replay", [*prompt, *said[:-1]], rows, rows.first, of="answer")
    scored = _scored(engine, _finished(engine), rows)
    if kept:  # a stored answer is replayed all the same
        engine.replay("replay again", [*prompt, *said[:-1]], rows, rows.first, of=None)
        _scored(engine, _finished(engine), rows)
    yield scored
    maskable = info.maskable_layers or ()
    if not maskable:
        yield "no head can be masked, so none was"
        return
    engine.add("masked", prompt, sampling, Mask("zero", ((maskable[0], 0),)), is_replayed=False)
    count = len(_finished(engine).token_ids)
    yield f"head 0 of layer {maskable[0]} masked: {count} tokens generated without it"


def _finished(engine: Backend) -> Finished:
    """The one request that is queued, finished."""
    for _ in range(10_000):
        for finished in engine.step():
            if finished.error is not None:
                raise EngineError(finished.error)
            return finished
    raise EngineError("the engine ends no request")


def _scored(engine: Backend, finished: Finished, rows: Rows) -> str:
    layers = engine.info.layers or ()
    packed, _ = scores_of(finished, rows, engine.scores, layers)
    scores = packed.lists()
    for name, of_layers in scores.items():
        if head_score(name).is_share and (bad := _out_of_range(of_layers)) is not None:
            raise EngineError(f"{name} is {bad:g}; a share lies between 0 and 1")
    count = sum(layer.heads for layer in layers)
    named = ", ".join(scores)
    return f"{count} heads scored ({named}): every figure is a number, and every share lies between 0 and 1"


def _out_of_range(of_layers: Sequence[Sequence[float]]) -> float | None:
    return next((value for heads in of_layers for value in heads if not -1e-4 <= value <= 1 + 1e-4), None)


if __name__ == "__main__":
    main()
