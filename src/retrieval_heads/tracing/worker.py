"""vLLM workers whose model runner nnsight instruments, and who can be asked for that runner from a traced block.

A block that nnsight runs inside the forward has no handle on the runner, which knows block tables, positions and
each request's parameters; so the worker leaves it in this module. Checked on vLLM 0.26.0 and 0.32.0 with
nnsight 0.8.1.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from greenlet import GreenletExit
from nnsight.intervention.interleaver import Mediator
from nnsight.intervention.source import STATE
from nnsight.modeling.vllm.model_runners.GPUModelRunner import NNsightGPUModelRunner, Request
from nnsight.modeling.vllm.workers.GPUWorker import NNsightGPUWorker
from nnsight.tracing.tracer import _saves
from vllm.platforms import current_platform

from retrieval_heads.plain import Fields

PROBE = "rh_probe"
"""The edit that scores replays, and the key of a replay's `extra_args` that says what to score."""

STREAM = "rh_stream"
"""The edit of requests some of whose heads stream, and the key of their `extra_args` that says which and how."""

FIRST_ROW = "first_row"
"""Under that key, the position from which on they do."""

KEEP = "rh_keep"
"""The key of the `extra_args` of a request whose rows are to be kept (`kept_rows`): a name for them, the first row, and
the names of the scores that they are for.
"""

_runner: Any = None


def runner() -> Any:
    """The model runner of this process's worker."""
    return _runner


@dataclass(frozen=True)
class Scheduled:
    """A replay, or a request whose heads stream, in a step.

    Args:
        extra_args: The request's.
        state: What the edit keeps of it from step to step, and what went wrong with it under `error`.
        row: Its row in the batch.
        start: Of its tokens among all of the forward.
        tokens: How many.
    """

    extra_args: Fields
    state: dict[str, Any]
    row: int
    start: int
    tokens: int


@dataclass
class _Carried:
    """A request of such an edit, until what came of it is collected."""

    name: Request
    edit: str
    extra_args: Fields
    state: dict[str, Any] = field(default_factory=dict)


class Conducted:
    """A model runner on which the edits `STREAM` and `PROBE` run once a step, over all of the step's requests of them.

    nnsight would run them once for every request: a greenlet each, handed every layer's values one by one, some 10 ms
    of host work a replay of 36 layers. So these requests ask nnsight for no edit; the runner starts an edit's block
    itself, as a worker of nobody's, which is given whole batches.
    """

    nnsight_model: Any
    nnsight_requests: Any
    input_batch: Any

    carried: dict[str, _Carried]
    scheduled: dict[str, list[Scheduled]]
    """By edit, what the step that runs has to do with it."""
    kept_rows: Any
    """The `kept_rows.KeptRows`, where rows are kept."""
    _conductors: dict[str, Any]

    def conduct(self) -> None:
        """Begin: there are none yet."""
        self.carried, self.scheduled, self._conductors, self.kept_rows = {}, {}, {}, None

    def _update_states(self, scheduler_output: Any) -> Any:
        """Once the batch of a step is settled, find its requests of each edit, and start it where there are any."""
        deferred = super()._update_states(scheduler_output)  # type: ignore[misc]  # of the runner it is mixed into
        if self.kept_rows is not None:  # before a new request comes, which may have the name of one that has gone
            self.kept_rows.forget(scheduler_output.finished_req_ids)
        for new in scheduler_output.scheduled_new_reqs:
            extra_args = getattr(new.sampling_params, "extra_args", None) or {}
            edit = next((one for one in (STREAM, PROBE) if one in extra_args), None)
            if edit is not None and new.req_id not in self.carried:
                self.carried[new.req_id] = _Carried(Request(new.req_id), edit, extra_args)
            if self.kept_rows is not None and KEEP in extra_args:
                self.kept_rows.ask(new.req_id, *extra_args[KEEP])
        if self.kept_rows is not None:
            self.kept_rows.begin(self._batch(scheduler_output.num_scheduled_tokens))
        if not self.carried:
            return deferred
        for request, row, start, position, tokens in self._batch(scheduler_output.num_scheduled_tokens):
            if (one := self.carried.get(request)) is not None and _has_rows(one, position + tokens):
                found = Scheduled(one.extra_args, one.state, row, start, tokens)
                self.scheduled.setdefault(one.edit, []).append(found)
        for edit in self.scheduled:
            self._start_conductor(edit)
        return deferred

    def _batch(self, tokens: Mapping[str, int]) -> Iterator[tuple[str, int, int, int, int]]:
        """Of each request of a step, its name, its row, where its tokens start among all of the forward, the position
        of the first of them, and how many they are.
        """
        start, computed = 0, self.input_batch.num_computed_tokens_cpu
        # The forward's tokens follow the batch, which is condensed and reordered after the scheduler has counted.
        for row, request in enumerate(one for one in self.input_batch.req_ids if one in tokens):
            yield request, row, start, int(computed[row]), tokens[request]
            start += tokens[request]

    def _start_conductor(self, edit: str) -> None:
        requests, interleaver = self.nnsight_requests, self.nnsight_model.interleaver
        template = next(requests.templates[key] for key, name in requests.names.items() if name == edit)
        conductor = self._conductors[edit] = Mediator(template.code, template.glbls, dict(template.lcls))
        conductor.row = 0  # nnsight narrows to it what comes after the forward; the block has ended by then
        try:
            conductor.start(interleaver)
        except Exception as error:
            conductor.exception = error
        else:
            interleaver.mediators = [*interleaver.mediators, conductor]
            interleaver.reindex()

    def execute_model(self, *arguments: Any, **options: Any) -> Any:
        """A step; what an edit raised in it is the error of each of its requests, and of nobody else."""
        try:
            return super().execute_model(*arguments, **options)  # type: ignore[misc]
        finally:
            if self.kept_rows is not None:
                self.kept_rows.end()
            conductors, self._conductors = self._conductors, {}
            scheduled, self.scheduled = self.scheduled, {}
            for edit, conductor in conductors.items():
                error = None if conductor.exception is None else failure(conductor.exception)
                if conductor.alive:
                    error = f"{conductor.pending} was not reached: layers ran in another order than they stand in"
                    conductor.worker.throw(GreenletExit)
                if error is not None:
                    for one in scheduled[edit]:
                        one.state.setdefault("error", error)

    def collect_carried(self, finished: set[str]) -> dict[str, tuple[dict[str, Any], str | None]]:
        """The figures of finished replays, and what went wrong with these or with requests whose heads were to stream,
        by the name that the engine knows a request by.
        """
        found = {}
        for request, one in list(self.carried.items()):
            if one.name.named(finished):
                del self.carried[request]
                scored = one.state.get("replay")
                saves = {} if scored is None else {name: save.arrived() for name, save in scored.saves.items()}
                found[one.name.key(finished)[0]] = saves, one.state.get("error")
        return found


def _has_rows(one: _Carried, end: int) -> bool:
    """Whether a step that ends behind so many of a request's tokens has rows that its edit is about: of a context none
    may stream.
    """
    return one.edit != STREAM or end > int(one.extra_args[STREAM][FIRST_ROW])


def failure(error: BaseException) -> str:
    """What an error is told as."""
    return f"{type(error).__name__}: {error}"


class _Collects:
    """What both workers can be asked for beyond what nnsight's can."""

    model_runner: Any

    def collect_edits(self, finished: Sequence[str]) -> bytes:
        """What replays and named edits gave of finished requests, and what they raised; both are forgotten here.

        nnsight's `collect_nnsight` waits until the device has done all that it was given: at every step that ends a
        request, the step that vLLM launched ahead would be waited for and none be ready after it. (Of several ranks
        vLLM itself waits for that step before it asks them.)

        Returns:
            Pickled, by request: its saved values by name; and the error or `None`.
        """
        requests, wanted = self.model_runner.nnsight_requests, set(finished)
        found = self.model_runner.collect_carried(wanted)
        requests.harvest(wanted)
        for request in [one for one in requests.requests.values() if one.named(wanted)]:
            del requests.requests[request.id]
            saves = {name: value for taken in request.harvested.values() for name, value in taken["saves"].items()}
            errors = [request.error, *(taken["error"] for taken in request.harvested.values())]
            for value in saves.values():
                _saves().discard(id(value))
            found[request.key(wanted)[0]] = saves, next((error for error in errors if error is not None), None)
        return pickle.dumps(found)

    def instrument_only(self, paths: Sequence[str]) -> None:
        """Have nnsight give up the modules that no edit reads or writes: it stands in the way of every call of each.

        Args:
            paths: Of the modules that edits do, as nnsight names them.
        """
        kept = set(paths)
        own = set(self.model_runner.model.modules())  # beside them nnsight has some for what comes after the forward
        for envoy in self.model_runner.nnsight_model.modules():
            module = envoy._module
            state = module.__dict__.get(STATE)
            if envoy.path in kept or module not in own or state is None or state.original is not type(module).forward:
                continue
            del module.__dict__[STATE], module.__dict__["forward"]  # its class' is in force again


class TracedGPUModelRunner(Conducted, NNsightGPUModelRunner):
    """nnsight's runner, which need not be eager in steps that no edit runs in."""

    def _determine_batch_execution_and_padding(self, *arguments: Any, **options: Any) -> Any:
        """A step with an edit runs the model's Python, where hooks are: in a CUDA graph there are none."""
        if self.nnsight_model.interleaver.mediators:
            options["force_eager"] = True
        return super()._determine_batch_execution_and_padding(*arguments, **options)


class TracedGPUWorker(_Collects, NNsightGPUWorker):
    """nnsight's worker on CUDA."""

    def init_device(self) -> None:
        """Build the runner and remember it."""
        global _runner
        super().init_device()
        self.model_runner.__class__ = TracedGPUModelRunner
        self.model_runner.conduct()
        _runner = self.model_runner


if current_platform.is_cpu():
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.cpu_worker import CPUWorker

    class TracedCPUModelRunner(Conducted, NNsightGPUModelRunner, CPUModelRunner):
        """vLLM's CPU runner with nnsight's steps round it: both derive from the same GPU runner."""

    class TracedCPUWorker(_Collects, CPUWorker):
        """What nnsight has for CUDA alone, on CPU."""

        collect_nnsight = NNsightGPUWorker.collect_nnsight
        nnsight_request_count = NNsightGPUWorker.nnsight_request_count
        nnsight_register = NNsightGPUWorker.nnsight_register
        nnsight_clear_registered = NNsightGPUWorker.nnsight_clear_registered

        def init_device(self) -> None:
            """Build the runner, have nnsight instrument it, and remember it."""
            global _runner
            super().init_device()
            if type(self.model_runner) is not CPUModelRunner:
                raise NotImplementedError(f"nnsight cannot instrument {type(self.model_runner).__qualname__}")
            self.model_runner.__class__ = TracedCPUModelRunner
            self.model_runner.conduct()
            _runner = self.model_runner


def worker_class() -> str:
    """The name that vLLM is given for its worker."""
    return f"{__name__}.{'TracedCPUWorker' if current_platform.is_cpu() else 'TracedGPUWorker'}"
