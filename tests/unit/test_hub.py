"""Mistakes about the model, told from folders, config files and one question to the hub. The hub here is a stub."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retrieval_heads import hub
from retrieval_heads.errors import EngineError
from retrieval_heads.hub import check_model, length_limit

huggingface_hub = pytest.importorskip("huggingface_hub", reason="it comes with vLLM")
from huggingface_hub import HfApi, constants  # noqa: E402
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the hub, and nothing known of any name."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub._ask.cache_clear()
    yield tmp_path / "hub"
    hub._ask.cache_clear()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[str]]:
    """Have the hub answer, or raise; the list fills with the names that it is asked for."""

    def answer(reply: Any) -> list[str]:
        asked: list[str] = []

        def model_info(_: HfApi, name: str, **options: Any) -> Any:
            asked.append(name)
            if isinstance(reply, Exception):
                raise reply
            return reply

        monkeypatch.setattr(HfApi, "model_info", model_info)
        return asked

    return answer


def http(kind: type[Any], status: int) -> Exception:
    """An error as the hub's library raises it."""
    return kind("no", response=SimpleNamespace(headers={}, status_code=status, request=None))  # type: ignore[no-any-return]


def cached(cache: Path, config: dict[str, Any]) -> None:
    """Lay a model `org/kept` into the hub's cache."""
    folder = cache / "models--org--kept"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(config))


def refused(**model: Any) -> str:
    with pytest.raises(EngineError) as raised:
        check_model(model)
    told = str(raised.value)
    assert "\n" not in told
    return told


def test_a_name_close_to_a_packaged_one_is_suggested(answers: Callable[[Any], list[str]]) -> None:
    answers(http(RepositoryNotFoundError, 401))
    told = refused(model="SmolLM2-135M")
    assert told.startswith("model.model: 'SmolLM2-135M' is no folder here, and the hub has no such model")
    assert told.endswith("did you mean 'SmolLM2-135M-Instruct'?")


def test_a_hub_that_cannot_be_reached_is_asked_once(answers: Callable[[Any], list[str]]) -> None:
    asked = answers(OSError("Name or service not known"))
    for _ in range(3):
        told = refused(model="org/unknown")
    assert asked == ["org/unknown"]
    assert told.startswith(
        "model.model: 'org/unknown' is no folder here and not in the hub's cache, and the hub cannot be"
    )
    assert "Name or service not known" in told


def test_what_is_in_the_cache_needs_no_hub(answers: Callable[[Any], list[str]], cache: Path) -> None:
    answers(OSError("no route"))
    cached(cache, {"max_position_embeddings": 4096})
    assert check_model({"model": "org/kept"}), "and loading it leaves the hub alone"
    assert length_limit({"model": "org/kept"}) == 4096


def test_offline_the_hub_is_not_asked(
    answers: Callable[[Any], list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answers(None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(model="org/unknown")
    cached(cache, {})
    assert check_model({"model": "org/kept"})
    assert asked == []


def test_a_model_of_the_hub_is_left_to_the_engine(answers: Callable[[Any], list[str]]) -> None:
    answers(SimpleNamespace())
    assert not check_model({"model": "org/there"})


def test_a_revision_that_is_not_there(answers: Callable[[Any], list[str]]) -> None:
    answers(http(RevisionNotFoundError, 404))
    assert "'org/there' has no revision 'v2'" in refused(model="org/there", revision="v2")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "~nosuchuser/x", "a b", "a\0b", "x" * 5000])
def test_names_that_no_model_can_have(name: str, answers: Callable[[Any], list[str]]) -> None:
    asked = answers(http(RepositoryNotFoundError, 404))
    assert refused(model=name).startswith("model.model: ")
    assert asked == [] or name.startswith("x")


@pytest.mark.parametrize("name", ["s3://bucket/model", "org/model:Q4_K_M"])
def test_other_ways_of_naming_are_vllms(name: str, answers: Callable[[Any], list[str]]) -> None:
    asked = answers(http(RepositoryNotFoundError, 404))
    assert not check_model({"model": name})
    assert asked == []


def test_a_chat_template_that_is_not_there(tmp_path: Path) -> None:
    told = refused(model=str(tmp_path), chat_template="templates/none.jinja")
    assert told == "model.chat_template: 'templates/none.jinja' cannot be read (no such file)"
    assert not check_model({"model": str(tmp_path), "chat_template": "{{ messages[0].content }}"})


@pytest.mark.parametrize(
    ("config", "model", "limit"),
    [
        ({"max_position_embeddings": 4096}, {}, 4096),
        ({"max_position_embeddings": 4096}, {"max_model_len": 512}, 512),
        ({"text_config": {"max_position_embeddings": 2048}}, {}, 2048),
        ({"max_position_embeddings": 4096, "model_max_length": 8192}, {}, 8192),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {}, None),
        ({"max_position_embeddings": 4096}, {"hf_overrides": {"max_position_embeddings": 9}}, None),
        ({"max_position_embeddings": 4096}, {"max_model_len": "auto"}, None),
        ({}, {}, None),
        ([], {}, None),
    ],
)
def test_the_models_length_is_read_from_disk(tmp_path: Path, config: Any, model: dict[str, Any], limit: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert length_limit({"model": str(tmp_path), **model}) == limit


def test_it_needs_no_torch() -> None:
    script = (
        "import sys; from retrieval_heads.hub import check_model, length_limit\n"
        "length_limit({'model': 'org/none'})\n"
        "sys.exit(bool({'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
