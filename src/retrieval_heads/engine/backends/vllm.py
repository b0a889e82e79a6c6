"""The one place that touches vLLM's engine. Checked on vLLM 0.26.0 and 0.32.0."""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

from retrieval_heads.engine.backends.arguments import check_arguments, check_sampling, refuse_unknown
from retrieval_heads.engine.backends.backend import Backend, Capabilities, Finished, Info, Prompt
from retrieval_heads.engine.backends.kept_replays import KeptReplays, Replay
from retrieval_heads.engine.backends.kv_cache import kv_bytes_per_token, untouched
from retrieval_heads.engine.backends.reasons import plain_reason, worker_reason
from retrieval_heads.engine.backends.shares import Shares
from retrieval_heads.engine.backends.versions import SUPPORTED, check_versions, refuse_unsupported
from retrieval_heads.engine.phase import enter
from retrieval_heads.errors import EngineError
from retrieval_heads.heads.looks import Rows
from retrieval_heads.hub import check_model
from retrieval_heads.models import locate_model
from retrieval_heads.plain import Fields
from retrieval_heads.prompts.prompt import PromptText
from retrieval_heads.runs.mask import Mask, Stream

UNCOMPILED: Final[Fields] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
"""How vLLM compiles what a plain engine on CUDA runs, where nobody says: nothing, decode steps being CUDA graphs.

For Qwen3-8B's shape on an H200 compiling takes 43 s at the start and spares 0.2 to 0.4 s of 14: it pays after half an
hour of steps and more.
"""

PRIMED_TOKENS = 16
"""Of a prompt, that an answer is decoded after."""

_NO_ANSWER = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
"""Sampling parameters of a request of which only its prompt's forward is wanted."""


class Engine(Backend):
    """vLLM's engine, stepped by hand in this process.

    Args:
        model: A folder or a hub name.
        arguments: vLLM's engine arguments, as the user gave them.
        options: Of the `engine` section, none.
        traced: Have nnsight instrument it, so that requests can be probed or masked. It is slower (7–9 % on CPU); its
            model is not compiled.

    Raises:
        EngineError: This vLLM is not supported, or has no such argument; vLLM's own errors come as they are.
    """

    capabilities: ClassVar = Capabilities(scores_heads=True, masks_heads=True, replicas=True, sleeps=True)

    @classmethod
    def check_installed(cls, *, traced: bool) -> None:
        """See that vLLM, and nnsight where heads are scored or masked, are of versions that are supported."""
        check_versions(traced=traced)

    @classmethod
    def check_arguments(cls, model: Fields, options: Fields) -> None:
        """See that vLLM takes the engine arguments among the keys of the `model` section."""
        check_arguments(model)

    @classmethod
    def check_sampling(cls, generation: Fields) -> None:
        """See that vLLM takes the sampling parameters of a suite."""
        check_sampling(generation)

    @classmethod
    def check_model(cls, model: Fields) -> bool:
        """See that there is a folder, packaged model or model of the hub of that name."""
        return check_model(model)

    @classmethod
    def locate(cls, name: str) -> str:
        """A packaged model's folder, or the name as it is."""
        return locate_model(name)

    @classmethod
    def gpus(cls) -> list[str] | None:
        """The GPUs that this process may use; `None` where vLLM computes elsewhere. CUDA is not initialised.

        Raises:
            EngineError: There is no vLLM, or not one that is supported.
        """
        _supported_version()
        from vllm.platforms import current_platform

        if not current_platform.is_cuda_alike():
            return None
        import torch

        count = torch.cuda.device_count()
        said = os.environ.get("CUDA_VISIBLE_DEVICES")
        return [one.strip() for one in said.split(",")][:count] if said else [str(number) for number in range(count)]

    @classmethod
    def kept(cls, model: Fields) -> Fields:
        """With priorities, and where the platform has it with vLLM's sleep mode, whose allocator is another."""
        _supported_version()
        from vllm.platforms import current_platform

        is_there = getattr(current_platform, "is_cumem_allocator_available", lambda: True)
        asleep = {"enable_sleep_mode": True} if current_platform.is_sleep_mode_available() and is_there() else {}
        return {"scheduling_policy": "priority", **asleep, **model}

    @classmethod
    def reason(cls, error: BaseException) -> str:
        """What vLLM refuses a model for, as one sentence."""
        return plain_reason(error)

    def __init__(
        self,
        model: str,
        arguments: Fields,
        options: Fields | None = None,
        *,
        traced: bool = False,
    ) -> None:
        # The engine core in this process: its steps are ours to order, and one kill ends everything.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        began = time.perf_counter()
        enter("importing vLLM")
        with _uncollected() if "vllm.v1.engine.llm_engine" not in sys.modules else nullcontext():
            self.version = _supported_version()
            from vllm import SamplingParams
            from vllm.engine.arg_utils import EngineArgs
            from vllm.platforms import current_platform
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.llm_engine import LLMEngine

            self.start_seconds = {"import": time.perf_counter() - began}
            """What the start took: importing vLLM, the engine (load, profile, caches), and what tracing adds to it."""
            if traced:
                importlib.import_module("retrieval_heads.tracing.traced")

        refuse_unknown("model", arguments, _names(EngineArgs), f"engine argument in vLLM {self.version}")
        defaults: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": False}
        if current_platform.is_cpu() and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            # The default fraction of memory can be refused; this holds 186,000 tokens of SmolLM2-135M. Said as an
            # argument it also spares an eager engine its warm-up.
            defaults["kv_cache_memory_bytes"] = 4 << 30
        chosen = uncompiled(arguments) if current_platform.is_cuda() and not traced else {}
        arguments = {**defaults, **chosen, **arguments}
        self.scores: tuple[str, ...] = ()
        self.traced: Any = None
        """The `retrieval_heads.tracing.traced.TracedModel`, where there is one."""
        self._edits: list[str] | None = None
        self._edited: set[str] = set()
        """Unfinished requests that carry an edit."""
        self._queued: dict[str, float] = {}
        """When each unfinished request was queued."""
        self._shares = Shares()
        self._scheduled: Mapping[str, int] = {}
        """Of the requests that the last step worked on, by vLLM's names, the tokens that it computed."""
        self._names: dict[str, str] = {}
        """Of each unfinished request, by what vLLM calls it."""
        self._hashes: Any = None
        """The `retrieval_heads.engine.backends.scheduler.BlockHashes`, where there are any."""
        self._to_replay: set[str] = set()
        """Requests added with `is_replayed` whose replay has not come."""
        self._finished: set[str] = set()
        """Requests that the last step finished."""
        self._kept: KeptReplays | None = None
        """Where rows are kept."""
        self.has_moved = True
        """Whether the last step computed something, as far as can be seen."""
        self._progress: object = None
        loaded = time.perf_counter()
        enter("loading the model, with its heads instrumented" if traced else "loading the model")
        with untouched() if current_platform.is_cpu() else nullcontext():
            if traced:
                self._engine = self._traced(model, arguments)
            else:
                # The batch sizes that vLLM gives `LLM`, not the smaller ones of a bare engine.
                self._engine = LLMEngine.from_engine_args(
                    EngineArgs(model=model, **arguments), usage_context=UsageContext.LLM_CLASS
                )
        self.start_seconds["engine"] = time.perf_counter() - loaded - self.start_seconds.get("tracing", 0.0)
        if traced:  # nnsight's import is of that as well
            self.start_seconds["tracing"] += loaded - began - self.start_seconds["import"]
        self._sampling_params = SamplingParams
        self._watch_scheduler()
        config = self._engine.vllm_config
        self.takes_turns = config.scheduler_config.policy == "priority"
        self.tokenizer: Any = self._engine.get_tokenizer()
        hf_config = config.model_config.hf_config
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        model_traced: Any = self.traced  # which has been set meanwhile
        self.info = Info(
            engine=f"vllm {self.version}",
            device=current_platform.get_device_name() or current_platform.device_type,
            dtype=dtype,
            max_model_len=config.model_config.max_model_len,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            block_size=config.cache_config.block_size,
            model_revision=config.model_config.revision or getattr(hf_config, "_commit_hash", None) or "",
            loaded={
                "dtype": dtype,
                "quantization": config.model_config.quantization or "none",
                "kv_cache_dtype": str(config.cache_config.cache_dtype),
                "revision": _commit(model, config.model_config, hf_config),
            },
            layers=model_traced and tuple(model_traced.layers),
            maskable_layers=model_traced and tuple(model_traced.maskable),
            start_seconds=self.start_seconds,
            chosen=chosen,
            warnings=(model_traced.refusal,) if model_traced and model_traced.refusal else (),
            more={
                "architecture": ", ".join(getattr(hf_config, "architectures", None) or ["unknown"]),
                "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
                "enable_prefix_caching": bool(config.cache_config.enable_prefix_caching),
                "enforce_eager": bool(config.model_config.enforce_eager),
                "kv_bytes_per_token": kv_bytes_per_token(self._engine),
            },
        )

    def _traced(self, model: str, arguments: Fields) -> Any:
        from vllm.platforms import current_platform

        from retrieval_heads.tracing.traced import TracedModel

        scheduler = "CappedScheduler" if current_platform.is_cpu() else "CappedAsyncScheduler"
        asked = {
            "enable_chunked_prefill": True,
            # Replays go ahead of waiting prompts, while what they need is still in the cache.
            "scheduling_policy": "priority",
            "scheduler_cls": f"retrieval_heads.engine.backends.scheduler.{scheduler}",
            **arguments,
        }
        traced = TracedModel(model, asked)
        self.scores = tuple(traced.scores)
        self.start_seconds["tracing"] = traced.install_seconds
        self.traced, self._edits, self.keeps_rows = traced, [], traced.keeps_rows
        if traced.keeps_rows:
            self._kept = KeptReplays(traced.score_kept, self._replay, self._forget)
        core = getattr(traced.engine.engine_core, "engine_core", None)
        if core is not None and core.request_block_hasher is not None:  # else vLLM's core is a process of its own
            from retrieval_heads.engine.backends.scheduler import BlockHashes

            core.request_block_hasher = self._hashes = BlockHashes(core.request_block_hasher)
        return traced.engine

    def replay(self, request: str, ids: Sequence[int], rows: Rows, first_row: int, *, of: str | None = None) -> None:
        """Queue a replay, ahead of everything that waits: one forward over a prompt and its answer, probed. Where the
        rows of an answer that the last step finished were kept, the next step scores them, and computes nothing.

        Args:
            request: Its name.
            ids: Prompt and answer, without the answer's last token.
            rows: What head scores read of it.
            first_row: The first token that must be computed rather than read from the cache; where a layer's scores
                need the whole context computed, none is read.
            of: The request that it repeats, if that was added with `is_replayed`.

        Raises:
            EngineError: vLLM refuses the request, or no head of the model can be scored. Where rows are kept a refusal
                comes as the replay's `Finished.error`.
        """
        if self.traced.refusal is not None:
            raise EngineError(self.traced.refusal)
        asked = Replay(ids, rows, first_row, of)
        if self._kept is None or not self._kept.take(request, asked):
            self._replay(request, asked)
        self._to_replay.discard(of or "")

    def _replay(self, request: str, asked: Replay) -> None:
        from retrieval_heads.engine.backends import scheduler
        from retrieval_heads.tracing.worker import PROBE

        cap = 0 if self.traced.needs_whole_context else asked.first_row
        # Of nnsight's edits none runs for it: the probe runs once a step, for all replays.
        probed = {"nnsight_edits": [], PROBE: asked.rows.to_json(), scheduler.MAX_CACHED: cap}
        if asked.of is not None:
            probed[scheduler.HASHED_AS] = asked.of
        self._add(request, asked.ids, {**_NO_ANSWER, "extra_args": probed}, priority=-1)
        self._edited.add(request)

    def add(
        self,
        request: str,
        prompt: Prompt,
        sampling: Fields,
        mask: Mask | None = None,
        *,
        is_replayed: bool = False,
        rows: Rows | None = None,
        turn: int = 0,
    ) -> None:
        """Queue a request.

        Args:
            request: Its name.
            prompt: Its prompt's token ids.
            sampling: vLLM's sampling parameters.
            mask: The heads that have no say in it; for the mode `mean` its `reference` has been measured.
            is_replayed: Whether a `replay` of it will follow.
            rows: What that will read, with no answer yet, where rows are to be kept for it (`keeps_rows`).
            turn: Of what waits, the lowest goes first.

        Raises:
            EngineError: vLLM has no such sampling parameter, refuses the request, or cannot mask a head.
        """
        assert not isinstance(prompt, PromptText), "vLLM takes token ids"
        known = _names(self._sampling_params)
        refuse_unknown("generation", sampling, known, f"sampling parameter in vLLM {self.version}")
        edited: dict[str, Any] = {}
        salt = None
        kept = None if self._kept is None or mask is not None or sampling.get("n") not in (None, 1) else rows
        if mask is not None and mask.stream is not None:
            edited, salt = self._streaming(mask, mask.stream)
        elif mask is not None:
            edited, salt = self._masked(mask, len(prompt))
        elif self._edits is not None:
            # Without a list of edits, nnsight runs every one on every request.
            edited = {"nnsight_edits": self._edits}
            if is_replayed:
                from retrieval_heads.engine.backends.scheduler import HASHED

                edited[HASHED] = request
            if kept is not None:
                from retrieval_heads.tracing.worker import KEEP

                edited[KEEP] = [request, kept.first, list(kept.scores)]
        if edited:
            sampling = {**sampling, "extra_args": {**(sampling.get("extra_args") or {}), **edited}}
        if is_replayed:
            self._to_replay.add(request)
        self._add(request, prompt, sampling, priority=turn, salt=salt)
        if mask is not None:
            self._edited.add(request)
        if self._kept is not None and kept is not None:
            self._kept.keep(request)

    def measure(self, request: str, ids: Sequence[int], reference: str) -> None:
        """Queue a piece of a reference text: every head's output on its tokens goes into that reference's mean.

        Raises:
            EngineError: vLLM refuses the request.
        """
        from retrieval_heads.tracing import ablate

        edited = {"nnsight_edits": [ablate.REFERENCE_EDIT], ablate.ARGUMENT: {"reference": reference}}
        # Tokens that came from the cache would be missing from the mean: the salt keeps it out.
        self._add(request, ids, {**_NO_ANSWER, "extra_args": edited}, priority=-1, salt=request)

    def _streaming(self, mask: Mask, stream: Stream) -> tuple[dict[str, Any], str | None]:
        """The `extra_args` of a request whose heads stream, and its cache salt where the context's rows do so too.

        Else the context's keys are those of a request without a mask: they are shared, and the salt is of what follows.
        """
        from retrieval_heads.engine.backends.scheduler import SALTED
        from retrieval_heads.tracing.stream import HOW, LAYERS
        from retrieval_heads.tracing.worker import FIRST_ROW, STREAM

        self._check_masks()
        if stream.sink < 0 or stream.recent < 1 or stream.anchor not in ("row", "context"):
            raise EngineError(
                f"mask: a stream of sink {stream.sink}, recent {stream.recent}, anchor {stream.anchor}; expected are a "
                "sink of 0 or more, a recent of 1 or more (a row sees itself), and the anchor row or context"
            )
        check_groups(mask.heads, self.traced.groups)
        places = {layer: place for place, layer in enumerate(self.traced.groups)}
        by_layer: dict[int, list[int]] = {}
        for layer, head in mask.heads:
            by_layer.setdefault(places[layer], []).append(head)
        # Heads as pairs: between processes a mapping's keys become text.
        asked = {FIRST_ROW: stream.first_row, HOW: stream.to_json(), LAYERS: [list(one) for one in by_layer.items()]}
        salt = json.dumps(mask.to_json(), sort_keys=True)
        edited: dict[str, Any] = {"nnsight_edits": [], STREAM: asked}
        if stream.first_row == 0 or self._hashes is None or self._hashes.block_size is None:
            return edited, salt
        return {**edited, SALTED: [salt, stream.first_row]}, None

    def _check_masks(self) -> None:
        """Refuse where no head can be masked."""
        if self._edits is None:
            raise EngineError("this engine cannot mask heads: no suite of kind detect, ablate or compress is selected")
        if self.traced.refusal is not None:
            raise EngineError(self.traced.refusal)

    def _masked(self, mask: Mask, prompt_tokens: int) -> tuple[dict[str, Any], str]:
        """The `extra_args` of a masked request, and its cache salt: without one, its keys would be read by requests
        that are masked otherwise or not at all, and theirs by it.
        """
        from retrieval_heads.tracing import ablate

        self._check_masks()
        places = {layer: place for place, layer in enumerate(self.traced.maskable)}
        if unknown := [layer for layer, _ in mask.heads if layer not in places]:
            raise EngineError(f"the heads of layer {unknown[0]} cannot be masked: it has no output projection")
        if mask.mode == "uniform" and (odd := [layer for layer, _ in mask.heads if layer in self.traced.queryless]):
            raise EngineError(
                f"the mode uniform cannot mask heads of layer {odd[0]}: no query makes them see all alike"
            )
        fields = {
            "mode": mask.mode,
            "heads": [[places[layer], head] for layer, head in mask.heads],
            "reference": mask.reference,
            "prompt_tokens": prompt_tokens,
        }
        salted = fields if mask.mode == "uniform" else {**fields, "prompt_tokens": 0}
        return {"nnsight_edits": [ablate.EDIT], ablate.ARGUMENT: fields}, json.dumps(salted, sort_keys=True)

    def _add(
        self,
        request: str,
        ids: Sequence[int],
        sampling: Fields,
        *,
        priority: int = 0,
        salt: str | None = None,
    ) -> None:
        from vllm import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        prompt = TokensPrompt(prompt_token_ids=list(ids))
        if salt is not None:
            prompt["cache_salt"] = salt
        try:
            # Made for this request alone, so that vLLM need not copy each list in it.
            alone = {"output_kind": RequestOutputKind.FINAL_ONLY, "skip_clone": True}
            parameters = self._sampling_params(**sampling, **alone)
            name = self._engine.add_request(request, prompt, parameters, priority=priority)
        except (ValueError, TypeError) as error:
            raise EngineError(f"vLLM refuses the request: {error}") from None
        self._queued[request] = time.monotonic()
        self._names[name or request] = request
        self._prime_decoding(name, ids)
        if (sampling.get("extra_args") or {}).get("nnsight_edits"):
            self._edited.add(request)

    def _prime_decoding(self, name: str, ids: Sequence[int]) -> None:
        """Have an answer decoded after its prompt's last tokens alone.

        vLLM decodes the whole prompt with the first token of the answer, and again with each that adds no text, in
        the thread that steps the engine: 3 ms a request and step at 16k tokens, during which a GPU has nothing to do.
        The last tokens tell whether a space or half a character goes before the answer, where they make text.
        """
        state = self._engine.output_processor.request_states.get(name)
        detokenizer: Any = getattr(state, "detokenizer", None)
        if hasattr(detokenizer, "stream"):  # that of a fast tokenizer
            primed = primed_stream(detokenizer.tokenizer, ids, detokenizer.skip_special_tokens)
            detokenizer.stream = primed or detokenizer.stream

    def drop(self, requests: Sequence[str]) -> None:
        """Work no more on requests."""
        self._engine.abort_request(list(requests))
        if edited := self._edited.intersection(requests):
            self._edited -= edited
            self.traced.collect(sorted(edited))  # what the workers keep of them
        self._finished.update(requests)  # no replay of theirs will come
        if self._kept is not None:
            self._kept.drop(requests)
        for request in requests:
            self._queued.pop(request, None)
            self._shares.forget(request)
        self._names = {name: request for name, request in self._names.items() if request in self._queued}

    def sleep(self) -> str:
        """Give the GPU's memory back: weights go to the host's memory, what the KV cache holds is forgotten."""
        if not self._engine.vllm_config.model_config.enable_sleep_mode:
            return ""
        weights = sum(self._engine.collective_rpc(_weight_bytes))
        self._engine.reset_prefix_cache()
        self._engine.sleep(level=1)
        return f"its GPU memory is given back, {weights / (1 << 30):.1f} GiB of weights are in the host's"

    def wake(self) -> None:
        """Take it again."""
        self._engine.wake_up()

    @property
    def has_work(self) -> bool:
        """Whether a request is unfinished."""
        is_to_score = self._kept is not None and self._kept.are_waiting
        return is_to_score or bool(self._engine.has_unfinished_requests())

    def step(self) -> list[Finished]:
        """Score what replays read of rows that were kept, then run the model once over whatever is scheduled; the
        requests that this finished.

        Replays of these are queued before the next step, or never.
        """
        self._forget_hashes()
        scored = [] if self._kept is None else self._kept.finish()
        if scored and not self._engine.has_unfinished_requests():
            self.has_moved, self._finished = True, set()
            return scored
        began = time.perf_counter()
        stepped = self._engine.step() if self.traced is None else self.traced.step()
        seconds = time.perf_counter() - began
        outputs = {output.request_id: output for output in stepped if output.finished}
        edited = self._edited & outputs.keys()
        self._edited -= edited
        collected = self.traced.collect(sorted(edited)) if edited else {}
        self._finished = set(outputs)
        if self._kept is not None:
            self._kept.end(outputs)
        own = self._look(seconds, outputs)
        return scored + [
            _finished(output, self._queued.pop(name, None), own.get(name), *collected.get(name, ()))
            for name, output in outputs.items()
        ]

    @property
    def _scheduler(self) -> Any:
        """vLLM's; `None` where its core is a process of its own."""
        return getattr(getattr(self._engine.engine_core, "engine_core", None), "scheduler", None)

    def _watch_scheduler(self) -> None:
        """Have each step leave what it computes of which request, which nothing else tells of cached prompts."""
        scheduler = self._scheduler
        if scheduler is None:
            return
        schedule = scheduler.schedule

        def watched(*given: Any, **named: Any) -> Any:
            output = schedule(*given, **named)
            self._scheduled = {**self._scheduled, **output.num_scheduled_tokens}
            return output

        scheduler.schedule = watched

    def _look(self, seconds: float, outputs: Mapping[str, Any]) -> Mapping[str, float]:
        """See what a step computed: of each request that it finished, what it took of all its steps.

        Nothing is seen where vLLM's core is a process of its own, whose steps come back when they have moved.
        """
        scheduler = self._scheduler
        if scheduler is None:
            self.has_moved = True
            return {}
        at = [(request.request_id, request.num_computed_tokens) for request in scheduler.running]
        scheduled, self._scheduled = self._scheduled, {}
        progress = (at, len(scheduler.waiting))
        self.has_moved = bool(outputs) or progress != self._progress
        self._progress = progress
        if any(name not in self._names for name, _ in at):  # of a vLLM that does not say what it calls a request
            return {}
        self.reached = {
            self._names[request.request_id]: min(request.num_computed_tokens, request.num_prompt_tokens)
            for request in scheduler.running
        }
        computed = {self._names[name]: tokens for name, tokens in scheduled.items() if name in self._names}
        if outputs:
            self._names = {name: request for name, request in self._names.items() if request not in outputs}
        return self._shares.stepped(seconds, computed, outputs)

    def _forget_hashes(self) -> None:
        """Of prompts that were answered and not replayed: the answer was an error, or vLLM refused the replay."""
        for request in self._to_replay & self._finished:
            self._to_replay.discard(request)
            self._forget(request)

    def _forget(self, request: str) -> None:
        """The hashes of its prompt, which no replay will ask for."""
        if self._hashes is not None:
            self._hashes.forget(request)


@contextmanager
def _uncollected() -> Iterator[None]:
    """While vLLM is imported, and of all that is there then: no search for garbage, which goes over it again and again,
    2 s of a start, and finds none.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def uncompiled(arguments: Fields) -> Fields:
    """What to add to vLLM's arguments so that no model is compiled; nothing where they say whether one is."""
    says = ("enforce_eager", "compilation_config", "optimization_level", "performance_mode")
    return {} if any(arguments.get(name) is not None for name in says) else {"compilation_config": UNCOMPILED}


def check_groups(heads: Sequence[tuple[int, int]], groups: Mapping[int, int]) -> None:
    """Refuse heads that cannot stream, and heads of a group that is not whole: its keys are kept as long as one of its
    heads sees them.

    Args:
        heads: Each (layer, head).
        groups: By layer, how many neighbouring heads share a KV head.

    Raises:
        EngineError: Which head, and which it shares keys with.
    """
    named = set(heads)
    for layer, head in sorted(named):
        if layer not in groups:
            raise EngineError(f"the heads of layer {layer} cannot stream: it keeps no key of each token that is known")
        first = head // groups[layer] * groups[layer]
        if missing := [one for one in range(first, first + groups[layer]) if (layer, one) not in named]:
            raise EngineError(
                f"head {layer}-{head} cannot stream without {layer}-{missing[0]}: heads {first} to "
                f"{first + groups[layer] - 1} of layer {layer} share a KV head, and stream together"
            )


def _commit(model: str, model_config: Any, hf_config: Any) -> str | None:
    """The commit of a hub's model, which a branch's name does not tell; `None` where it cannot be told."""
    if found := getattr(hf_config, "_commit_hash", None):
        return str(found)
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=model_config.revision)
    except ValueError:  # a folder's path is no hub name
        return None
    return Path(cached).parent.name if isinstance(cached, str) else None


def primed_stream(tokenizer: Any, ids: Sequence[int], skip_special_tokens: bool) -> Any:
    """A `tokenizers.decoders.DecodeStream` that goes on after a prompt's ids; `None` where its last tell too little.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        ids: The prompt's.
        skip_special_tokens: Whether special tokens make no text.
    """
    from tokenizers.decoders import DecodeStream

    last = list(ids[-PRIMED_TOKENS:])
    text = tokenizer.decode(last, skip_special_tokens=skip_special_tokens)
    if not text or text.endswith("\ufffd"):  # nothing but special tokens, or bytes that begin within a character
        return None
    return DecodeStream(ids=last, skip_special_tokens=skip_special_tokens)


def _finished(
    output: Any, queued: float | None, own: float | None, saves: Fields | None = None, error: Any = None
) -> Finished:
    try:
        return _read(output, queued, own, saves, error)
    except Exception as unreadable:  # of this request alone: the others go on
        traceback.print_exc()
        why = f"vLLM's output cannot be read ({type(unreadable).__name__}: {unreadable})"
        return Finished(output.request_id, "", [], "", 0, 0, 0.0, error=why)


def _read(output: Any, queued: float | None, own: float | None, saves: Fields | None, error: Any) -> Finished:
    answer, times = output.outputs[0], output.metrics
    if times is not None:
        seconds = times.last_token_ts - times.scheduled_ts
    else:
        seconds = time.monotonic() - queued if queued is not None else 0.0
    return Finished(
        id=output.request_id,
        text=answer.text,
        token_ids=list(answer.token_ids),
        finish_reason=answer.finish_reason or "",
        prompt_tokens=len(output.prompt_token_ids),
        cached_tokens=output.num_cached_tokens or 0,
        seconds=round(seconds, 4),
        own_seconds=None if own is None else round(own, 4),
        head_scores=(saves or {}).get("head_scores"),
        prompt_logprob=_mean_logprob(output.prompt_token_ids, output.prompt_logprobs),
        error=worker_reason(error),
    )


def _mean_logprob(ids: Sequence[int], logprobs: Sequence[Any] | None) -> float | None:
    """Over a prompt's tokens but the first, which nothing predicts."""
    if not logprobs:
        return None
    known = [each[token].logprob for token, each in zip(ids, logprobs, strict=True) if each is not None]
    return sum(known) / len(known) if known else None


def _supported_version() -> str:
    try:
        from vllm import __version__ as version
    except ImportError as error:
        raise EngineError(
            f"vLLM cannot be imported ({error}); install one build of it: "
            "pip install 'pytest-retrieval-heads[cuda]' or 'pytest-retrieval-heads[cpu]'"
        ) from None
    refuse_unsupported("vLLM", version, SUPPORTED)
    return str(version)


def _weight_bytes(worker: Any) -> int:
    """In a worker: the bytes of its part of the model."""
    return sum(parameter.nbytes for parameter in worker.model_runner.model.parameters())


@cache
def _names(target: Any) -> Sequence[str]:
    """What a class of vLLM's takes; reading it takes a while, for which a GPU waits."""
    return tuple(inspect.signature(target).parameters)
