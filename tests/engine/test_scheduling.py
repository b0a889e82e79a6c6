"""When replays wait for each other, and which steps of a traced engine may be CUDA graphs; no engine runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
from nnsight.modeling.vllm.model_runners.GPUModelRunner import NNsightGPUModelRunner
from vllm.v1.core.sched.interface import PauseState

from retrieval_heads.engine.backends.scheduler import MAX_CACHED, PATIENCE, TOGETHER, _Capped
from retrieval_heads.engine.backends.vllm import uncompiled
from retrieval_heads.tracing.traced import with_graphs
from retrieval_heads.tracing.worker import TracedGPUModelRunner

pytestmark = pytest.mark.engine

GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
FEW_GRAPHS = {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512], **GRAPHS}


def request(**extra_args: Any) -> Any:
    return SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra_args))


PROMPT, REPLAY = request(), request(**{MAX_CACHED: 100})


class Vllms:
    """vLLM's scheduler, as far as it is asked: tells whether it was paused."""

    def __init__(self) -> None:
        self._pause_state = PauseState.UNPAUSED
        self.running: list[Any] = [PROMPT]
        self.waiting: list[Any] = []
        coordinator = SimpleNamespace(find_longest_cache_hit=None)
        self.kv_cache_manager = SimpleNamespace(coordinator=coordinator, get_computed_blocks=None)

    def schedule(self, throttle_prefills: bool = False) -> PauseState:
        return self._pause_state


class Ours(_Capped, Vllms):
    pass


@pytest.mark.parametrize("running", [[PROMPT], [PROMPT, REPLAY]])
def test_a_few_replays_wait_while_answers_are_still_being_written(running: list[Any]) -> None:
    scheduler = Ours()
    scheduler.running, scheduler.waiting = running, [REPLAY] * (TOGETHER - 1)
    assert scheduler.schedule() is PauseState.PAUSED_NEW
    assert scheduler._pause_state is PauseState.UNPAUSED, "the pause ends with the step"


@pytest.mark.parametrize(
    ("waiting", "running"),
    [
        ([REPLAY, PROMPT], [PROMPT]),  # what the replay needs may be evicted by the prompt
        ([REPLAY] * TOGETHER, [PROMPT]),
        ([REPLAY], []),
        ([REPLAY], [REPLAY]),
        ([PROMPT], [PROMPT]),
        ([], [PROMPT]),
    ],
)
def test_nothing_is_held_up_by_waiting_replays(waiting: list[Any], running: list[Any]) -> None:
    scheduler = Ours()
    scheduler.running, scheduler.waiting = running, waiting
    assert scheduler.schedule() is PauseState.UNPAUSED


def test_a_replay_waits_no_longer_than_that() -> None:
    scheduler = Ours()
    scheduler.waiting = [REPLAY]
    steps = [scheduler.schedule() for _ in range(PATIENCE + 2)]
    assert steps == [PauseState.PAUSED_NEW] * PATIENCE + [PauseState.UNPAUSED, PauseState.PAUSED_NEW]


def test_a_pause_of_vllms_own_stays() -> None:
    scheduler = Ours()
    scheduler.waiting, scheduler._pause_state = [REPLAY], PauseState.PAUSED_ALL
    assert scheduler.schedule() is PauseState.PAUSED_ALL


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"dtype": "float32"}, {"dtype": "float32", "compilation_config": FEW_GRAPHS}),
        ({"enforce_eager": False}, {"compilation_config": FEW_GRAPHS}),
        ({"enforce_eager": True, "dtype": "float32"}, None),
        ({"compilation_config": 3}, {"compilation_config": FEW_GRAPHS}),
        (
            {"compilation_config": {"max_cudagraph_capture_size": 16}},
            {"compilation_config": {"max_cudagraph_capture_size": 16, **GRAPHS}},
        ),
        (
            {"speculative_config": {"method": "ngram"}},
            {"speculative_config": {"method": "ngram"}, "compilation_config": GRAPHS},
        ),
        ({"compilation_config": {"cudagraph_mode": "NONE"}}, None),
        (
            {"compilation_config": {"cudagraph_mode": "FULL", "cudagraph_capture_sizes": [1, 8]}},
            {"compilation_config": {"cudagraph_capture_sizes": [1, 8], **GRAPHS}},
        ),
    ],
)
def test_decode_steps_are_graphs_unless_that_is_refused(asked: dict[str, Any], given: dict[str, Any] | None) -> None:
    assert with_graphs(asked) == given


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"dtype": "float32"}, {"compilation_config": GRAPHS}),
        ({"enforce_eager": None}, {"compilation_config": GRAPHS}),
        ({"enforce_eager": False}, {}),
        ({"enforce_eager": True}, {}),
        ({"compilation_config": {"mode": 3}}, {}),
        ({"optimization_level": 2}, {}),
    ],
)
def test_a_plain_engine_is_not_compiled_unless_that_is_said(asked: dict[str, Any], given: dict[str, Any]) -> None:
    assert uncompiled(asked) == given


@pytest.mark.parametrize(("mediators", "options"), [([], {}), (["a replay's"], {"force_eager": True})])
def test_a_step_with_an_edit_is_eager(
    mediators: list[str], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "_determine_batch_execution_and_padding"
    # As the installed vLLM's: an argument that it does not take fails here.
    vllms = create_autospec(getattr(NNsightGPUModelRunner, name), side_effect=lambda _, **told: told)
    monkeypatch.setattr(NNsightGPUModelRunner, name, vllms)
    runner = object.__new__(TracedGPUModelRunner)
    runner.nnsight_model = SimpleNamespace(interleaver=SimpleNamespace(mediators=mediators))
    step = {"num_tokens": 8, "num_reqs": 2, "num_scheduled_tokens_np": None, "max_num_scheduled_tokens": 4}
    assert runner._determine_batch_execution_and_padding(**step) == {**step, **options}
