"""A backend in the place of vLLM's: everything else of the engine process is real, on a toy tokenizer.

It answers with the needle when it finds one in the prompt. What else it does is told by `RH_STAND_IN`, an environment
variable with JSON (`Behaviour`). It proves nothing about models, only about what stands around them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy

from retrieval_heads.engine.backends.backend import Backend, Capabilities, Finished, Info
from retrieval_heads.engine.backends.on_ray import RaySettings, check_ray
from retrieval_heads.errors import EngineError
from retrieval_heads.heads.looks import Rows
from retrieval_heads.heads.score import head_score
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.mask import Mask
from toy_tokenizer import ByteTokenizer, ToyTokenizer, WordTokenizer

VARIABLE = "RH_STAND_IN"
REFERENCE = "stand_in_engine:StandIn"
"""Where the backend stands, for `retrieval_heads.engine.backends.backend.BACKENDS`."""
ON_RAY = "stand_in_engine:StandInOnRay"
LAYERS = (
    *(Layer(f"layers.{number}", number, heads=4) for number in range(4)),
    Layer("layers.4", 4, heads=0, kind="MambaMixer2"),
)
FERRY = "The ferry to Oslo leaves at dawn."


@dataclass(frozen=True)
class Behaviour:
    """What the stand-in does.

    Args:
        starts: A file that gets a line, the process id, for each process that starts an engine, or replicas of it.
        needles: What it answers with when it finds it in a prompt; else `answer`.
        answer: What it says when it finds none, or is asked at one of `wrong_lengths`.
        wrong_lengths: Prompt lengths at which it answers wrongly.
        fail: A message to fail with at the start; `crash` ends the process there.
        start_seconds: How long the start takes.
        delay: Seconds for each answer, one after the other; at 0 all are answered in one step.
        answers_from: How many requests it must have been given before it answers the first.
        die_after: How many answers it gives before it is killed; `fail_after`, before its step raises.
        stall_after: How many answers it gives before nothing moves any more, and how that comes (`stall`): a step that
            `sleep`s, steps that do nothing (`spin`), one that keeps the interpreter to itself (`hold`), a process that
            is stopped (`stop`).
        tokenizer: `words` or `bytes`.
        takes_start_token: Whether it names a start token, which no template writes and no prompt then has.
        retrieval_heads: Heads that copy, of four layers of four: masked, it answers wrongly.
        asked: A file that gets a line for each engine, at its end: how many requests it was given.
        gpus: The GPUs that can be seen; `None` for a CPU.
        bad_gpu: The one on which an engine fails, crashes or dies, and no other does.
        served: A file that gets a line for each request: the engine's GPU and the request's name.
        maskable: Layers whose heads can be masked.
        kv_heads: Of each of the layers; `None` is not known.
        unscored: Why no head of the model can be scored.
        worse_under, fail_under, die_under, bytes_under: Arguments of the model under which it answers wrongly, does not
            start, is killed after its first answer, or has the other tokenizer.
        drops: A file that gets a line for each request that it is told to drop.
        sleeps: A file that gets a line each time it goes to sleep or wakes; without one it cannot.
        says: What it prints at its start: `model`, its arguments, or the value of an environment variable.
    """

    starts: str = os.devnull
    needles: Sequence[str] = (FERRY,)
    answer: str = "I do not know."
    wrong_lengths: Sequence[int] = ()
    fail: str | None = None
    crash: bool = False
    start_seconds: float = 0
    delay: float = 0
    answers_from: int = 0
    die_after: int | None = None
    fail_after: int | None = None
    stall_after: int | None = None
    stall: str = "sleep"
    tokenizer: str = "words"
    takes_start_token: bool = False
    retrieval_heads: Sequence[Sequence[int]] = ()
    maskable: Sequence[int] = (0, 1, 2, 3)
    kv_heads: int | None = None
    unscored: str | None = None
    asked: str | None = None
    gpus: Sequence[str] | None = None
    bad_gpu: str | None = None
    served: str = os.devnull
    drops: str = os.devnull
    sleeps: str | None = None
    says: Sequence[str] = ()
    worse_under: Mapping[str, str] | None = None
    fail_under: Mapping[str, str] | None = None
    die_under: Mapping[str, str] | None = None
    bytes_under: Mapping[str, str] | None = None

    def environment(self) -> str:
        """For `VARIABLE`."""
        return json.dumps(vars(self))

    @classmethod
    def from_environment(cls) -> Behaviour:
        """What the process was told."""
        return cls(**json.loads(os.environ.get(VARIABLE) or "{}"))

    def note_start(self) -> None:
        """Say that this process starts something; once."""
        starts, process = Path(self.starts), str(os.getpid())
        if not starts.exists() or process not in starts.read_text().split():
            with starts.open("a") as file:
                file.write(f"{process}\n")


@dataclass
class StandIn(Backend):
    """What stands in for vLLM's engine."""

    model: str
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    traced: bool = False
    waiting: list[tuple[str, Sequence[int]]] = field(default_factory=list)
    masked: dict[str, Mask] = field(default_factory=dict)
    replayed: dict[str, int] = field(default_factory=dict)
    weighed: set[str] = field(default_factory=set)
    measured: set[str] = field(default_factory=set)
    answered: int = 0
    asked: int = 0
    number: int = 0
    has_moved: bool = True
    patience: int = 6000

    def _is_under(self, arguments: Mapping[str, str] | None) -> bool:
        return arguments is not None and all(self.arguments.get(key) == value for key, value in arguments.items())

    def __post_init__(self) -> None:
        self.told = Behaviour.from_environment()
        self.told.note_start()
        if self._is_under(self.told.worse_under):
            self.told = replace(self.told, needles=(), answer="Nobody told me.")
        if self._is_under(self.told.fail_under):
            self.told = replace(self.told, fail="it cannot be")
        if self._is_under(self.told.die_under):
            self.told = replace(self.told, die_after=1)
        if self._is_under(self.told.bytes_under):
            self.told = replace(self.told, tokenizer="bytes")
        self.gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if self.told.bad_gpu not in (None, self.gpu):
            self.told = replace(self.told, fail=None, crash=False, die_after=None, fail_after=None, stall_after=None)
        if self.told.asked and Path(self.told.asked).exists():
            self.number = len(Path(self.told.asked).read_text().split())
        for name in self.told.says:
            said = " ".join(f"{key} {value}" for key, value in self.arguments.items())
            print(f"told {said}" if name == "model" else os.environ[name], flush=True)
        time.sleep(self.told.start_seconds)
        if self.told.crash:
            print("the last words of the engine", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.told.fail:
            raise EngineError(self.told.fail)
        self.tokenizer: ToyTokenizer = ByteTokenizer() if self.told.tokenizer == "bytes" else WordTokenizer()
        if not self.told.takes_start_token:
            self.tokenizer.bos_token_id = None  # else every prompt would lack it
        self.info = Info(
            engine="stand-in 0",
            device="no device",
            dtype=str(self.arguments.get("dtype", "float32")),
            max_model_len=int(self.arguments.get("max_model_len", 8192)),
            max_num_seqs=8,
            max_num_batched_tokens=8192,
            block_size=16,
            model_revision="main",
            layers=tuple(replace(one, kv_heads=self.told.kv_heads if one.heads else None) for one in LAYERS)
            if self.traced
            else None,
            maskable_layers=tuple(self.told.maskable) if self.traced else None,
            warnings=(self.told.unscored,) if self.traced and self.told.unscored else (),
            start_seconds={"engine": self.told.start_seconds},
        )

    capabilities: ClassVar = Capabilities(scores_heads=True, masks_heads=True, replicas=True, sleeps=True)
    scores = ("copy", "copy_reference", "mass", "query", "qr", "induction", "echo")

    @classmethod
    def check_arguments(cls, model: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Refuse a misspelt key, as vLLM's backend does."""
        if "kv_cache_dtyp" in model:
            raise EngineError("model.kv_cache_dtyp: there is no such engine argument; did you mean 'kv_cache_dtype'?")

    @classmethod
    def gpus(cls) -> list[str] | None:
        """Those that it was told of."""
        told = Behaviour.from_environment()
        told.note_start()
        return None if told.gpus is None else list(told.gpus)

    def measure(self, request: str, ids: Sequence[int], reference: str) -> None:
        """Queue a piece of a reference."""
        self.measured.add(reference)
        self.waiting.append((request, ids))

    def replay(self, request: str, ids: Sequence[int], rows: Rows, first_row: int, *, of: str | None = None) -> None:
        """Queue a replay."""
        if self.told.unscored:
            raise EngineError(self.told.unscored)
        figures = sum(head_score(name).parts(rows) for name in rows.scores)
        self.replayed[request] = figures + 2 * rows.per_step * len(rows.answer)
        self.waiting.append((request, ids))

    def add(
        self,
        request: str,
        prompt: Sequence[int],
        sampling: Mapping[str, Any],
        mask: Mask | None = None,
        *,
        is_replayed: bool = False,
    ) -> None:
        """Queue a request."""
        if mask is not None:
            if mask.mode == "mean" and mask.reference not in self.measured:
                raise EngineError("the mean was never measured here")
            self.masked[request] = mask
        if "prompt_logprobs" in sampling:
            self.weighed.add(request)
        if "temprature" in sampling:
            raise EngineError("generation.temprature: there is no such sampling parameter")
        self.waiting.append((request, prompt))
        with Path(self.told.served).open("a") as served:
            served.write(f"{self.gpu}\t{request}\n")
        self.asked += 1
        if self.told.asked:
            told = Path(self.told.asked)
            before = told.read_text().split("\n")[: self.number] if told.exists() else []
            told.write_text("\n".join([*before, str(self.asked)]))

    def drop(self, requests: Sequence[str]) -> None:
        """Forget requests."""
        self.waiting = [one for one in self.waiting if one[0] not in requests]
        with Path(self.told.drops).open("a") as drops:
            drops.writelines(f"{request}\n" for request in requests)

    def sleep(self) -> str:
        """Say so."""
        return self._note("asleep") and "0.1 GiB are given back"

    def wake(self) -> None:
        """Say so."""
        self._note("awake")

    def _note(self, what: str) -> str:
        if self.told.sleeps is None:
            return ""
        with Path(self.told.sleeps).open("a") as file:
            file.write(f"{what}\n")
        return what

    def step(self) -> list[Finished]:
        """Answer everything that waits, or with a delay the first of it."""
        if self.asked < self.told.answers_from:
            return self._waiting_for_more()
        time.sleep(self.told.delay)
        count = 1 if self.told.delay else len(self.waiting)
        for limit in (self.told.die_after, self.told.fail_after, self.told.stall_after):
            if limit is not None:
                count = min(count, limit - self.answered)
        if self.waiting and count <= 0:
            if self.told.stall_after is not None:
                return self._stalled()
            self._wait_for_records()
            if self.told.fail_after is not None:
                raise RuntimeError("the stand-in's step fails")
            os.kill(os.getpid(), signal.SIGKILL)
        batch, self.waiting = self.waiting[:count], self.waiting[count:]
        self.answered += len(batch)
        return [self._finished(request, ids) for request, ids in batch]

    def _waiting_for_more(self) -> list[Finished]:
        """Answer nothing yet; fail when no more is asked in a minute of steps."""
        self.patience -= 1
        if self.patience == 0:
            raise RuntimeError(f"{self.asked} of {self.told.answers_from} requests were asked before the first answer")
        time.sleep(0.01)
        return []

    def _stalled(self) -> list[Finished]:
        """Do nothing, in one way or another."""
        self.has_moved = False
        if self.told.stall == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)  # once let go on it would stop itself again, in the middle of its stacks
        elif self.told.stall == "hold":
            re.match(r"(a+)+$", "a" * 64 + "b")  # takes ages, and lets no other thread run meanwhile
        elif self.told.stall == "sleep":
            time.sleep(600)
        return []

    def _wait_for_records(self) -> None:
        """Until what was answered stands in the run's results, so that tests can count it."""
        results = Path("reports/latest/results.jsonl")
        give_up = time.monotonic() + 20
        while self.answered and time.monotonic() < give_up:
            if results.exists() and results.read_bytes().count(b"\n") >= self.answered:
                break
            time.sleep(0.05)

    def _finished(self, request: str, ids: Sequence[int]) -> Finished:
        prompt, answer = self.tokenizer.decode(ids), self.told.answer
        heads = [list(head) for head in self.told.retrieval_heads]
        mask = self.masked.get(request)
        is_blind = mask is not None and any(list(head) in heads for head in mask.heads)
        if len(ids) not in self.told.wrong_lengths and not is_blind:
            answer = next((needle for needle in self.told.needles if needle in prompt), answer)
        return Finished(
            id=request,
            text=answer,
            token_ids=self.tokenizer.encode(answer),
            finish_reason="stop",
            prompt_tokens=len(ids),
            cached_tokens=0,
            seconds=0.25,
            own_seconds=0.125,
            prompt_logprob=-2.0 if request in self.weighed else None,
            head_scores=self._head_scores(self.replayed[request]) if request in self.replayed else None,
        )

    def _head_scores(self, figures: int) -> Any:
        """1 for a head that copies, else 0, by every score and at each step: always the needle's first token."""
        copying = [list(head) for head in self.told.retrieval_heads]
        scores = [[float([layer, head] in copying) for head in range(4)] for layer in range(4)]
        return numpy.array([scores] * figures)


class StandInOnRay(StandIn):
    """The same, placed by Ray."""

    capabilities: ClassVar = replace(StandIn.capabilities, is_on_ray=True)
    indifferent: ClassVar = frozenset(RaySettings.model_fields)

    @classmethod
    def check_installed(cls, *, traced: bool) -> None:
        """See that Ray is there."""
        check_ray()

    @classmethod
    def check_arguments(cls, model: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """See that a cluster takes what is asked of it."""
        RaySettings.of(options)
