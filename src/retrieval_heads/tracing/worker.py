"""vLLM workers whose model runner nnsight instruments, and who can be asked for that runner from a traced block.

A block that nnsight runs inside the forward has no handle on the runner, which knows block tables, positions and
each request's parameters; so the worker leaves it in this module. Checked on vLLM 0.26.0 and 0.32.0 with
nnsight 0.8.1.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from nnsight.modeling.vllm.model_runners.GPUModelRunner import NNsightGPUModelRunner
from nnsight.modeling.vllm.workers.GPUWorker import NNsightGPUWorker
from nnsight.tracing.tracer import _saves
from vllm.platforms import current_platform

_runner: Any = None


def runner() -> Any:
    """The model runner of this process's worker."""
    return _runner


class _Collects:
    """What both workers can be asked for beyond what nnsight's can."""

    model_runner: Any

    def collect_edits(self, finished: Sequence[str]) -> bytes:
        """What named edits saved of finished requests, and what they raised; both are forgotten here.

        nnsight's `collect_nnsight` waits until the device has done all that it was given: at every step that ends a
        request, the step that vLLM launched ahead would be waited for and none be ready after it. (Of several ranks
        vLLM itself waits for that step before it asks them.)

        Returns:
            Pickled, by request: its saved tensors, `OnItsWay`s once, by name; and nnsight's error or `None`.
        """
        requests, wanted = self.model_runner.nnsight_requests, set(finished)
        requests.harvest(wanted)
        found = {}
        for request in [one for one in requests.requests.values() if one.named(wanted)]:
            del requests.requests[request.id]
            saves = {name: value for taken in request.harvested.values() for name, value in taken["saves"].items()}
            errors = [request.error, *(taken["error"] for taken in request.harvested.values())]
            for value in saves.values():
                _saves().discard(id(value))
            arrived = {name: value.arrived() for name, value in saves.items()}
            found[request.key(wanted)[0]] = arrived, next((error for error in errors if error is not None), None)
        return pickle.dumps(found)


class TracedGPUModelRunner(NNsightGPUModelRunner):
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
        _runner = self.model_runner


if current_platform.is_cpu():
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.cpu_worker import CPUWorker

    class TracedCPUModelRunner(NNsightGPUModelRunner, CPUModelRunner):
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
            _runner = self.model_runner


def worker_class() -> str:
    """The name that vLLM is given for its worker."""
    return f"{__name__}.{'TracedCPUWorker' if current_platform.is_cpu() else 'TracedGPUWorker'}"
