"""What becomes of vLLM's outputs, of which one may lack what another has. No engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from retrieval_heads.engine.backends.vllm import Engine


def output(name: str, **changed: Any) -> SimpleNamespace:
    """A finished request as vLLM tells it."""
    answer = SimpleNamespace(text="plum jam", token_ids=[1, 2], finish_reason="stop")
    times = SimpleNamespace(scheduled_ts=1.0, last_token_ts=3.5)
    told = {"outputs": [answer], "metrics": times, "prompt_token_ids": [1, 2, 3], "num_cached_tokens": None}
    return SimpleNamespace(request_id=name, finished=True, prompt_logprobs=None, **(told | changed))


def engine(*outputs: SimpleNamespace) -> Engine:
    """An engine whose next step gives these."""
    made = Engine.__new__(Engine)
    made.traced, made._edited, made._queued, made._finished = None, set(), {}, set()
    made._hashes, made._to_replay, made._progress = None, set(), None
    made._scheduled, made._names, made._kept = {}, {}, None
    made._engine = SimpleNamespace(step=lambda: list(outputs), engine_core=None)
    return made


def test_an_answer_of_an_engine_without_statistics_is_timed_from_its_queueing() -> None:
    stepping = engine(output("with"), output("without", metrics=None))
    stepping._queued = {"with": 0.0, "without": 0.0}
    with_them, without = stepping.step()
    assert with_them.seconds == 2.5
    assert without.text == "plum jam"
    assert without.seconds > 0
    assert stepping._queued == {}


def test_an_output_that_cannot_be_read_is_an_error_of_that_request_alone() -> None:
    bad, good = engine(output("pooled", outputs=SimpleNamespace(data=[0.1])), output("answered")).step()
    assert bad.error is not None
    assert "vLLM's output cannot be read (TypeError" in bad.error
    assert (good.text, good.error) == ("plum jam", None)


def test_hashes_are_forgotten_where_no_replay_follows() -> None:
    forgotten: list[str] = []
    stepping = engine(output("refused"), output("other"))
    stepping._hashes = SimpleNamespace(forget=forgotten.append)
    stepping._to_replay = {"refused", "running"}
    stepping.step()
    assert forgotten == [], "its replay may come before the next step"
    stepping.step()
    assert forgotten == ["refused"]
    assert stepping._to_replay == {"running"}


def test_a_step_that_computes_nothing_has_not_moved() -> None:
    stepping = engine()
    request = SimpleNamespace(request_id="r", num_computed_tokens=0)
    scheduler = SimpleNamespace(running=[request], waiting=[])
    stepping._engine.engine_core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))
    moved = []
    for computed in (512, 1024, 1024, 1024, 1025):
        request.num_computed_tokens = computed
        stepping.step()
        moved.append(stepping.has_moved)
    assert moved == [True, True, False, False, True]


def test_a_core_of_its_own_is_taken_at_its_word() -> None:
    stepping = engine()
    stepping._engine.engine_core = SimpleNamespace()
    stepping.step()
    stepping.step()
    assert stepping.has_moved
