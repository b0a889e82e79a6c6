"""Backends by name, and what is refused of them before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

from retrieval_heads import registry
from retrieval_heads.engine.backends import backend
from retrieval_heads.engine.backends.backend import (
    GROUP,
    Backend,
    Capabilities,
    Finished,
    Info,
    check_suite,
    find,
    reference_of,
    resolve,
)
from retrieval_heads.errors import ConfigError
from retrieval_heads.registry import Registry
from retrieval_heads.runs.layers import Layer
from retrieval_heads.suites.suite import load_suite

HERE = f"{__name__}:Parrot"


class Parrot(Backend):
    """Another distribution's; it answers and no more."""

    capabilities: ClassVar = Capabilities()

    def step(self) -> list[Finished]:
        return []


@pytest.fixture(autouse=True)
def parrot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parrot as an entry point."""
    points = {GROUP: [EntryPoint("parrot", HERE, GROUP)]}
    monkeypatch.setattr(registry, "entry_points", lambda group: points.get(group, []))
    ours = {"vllm": reference_of(backend.BACKENDS.find("vllm"))}
    monkeypatch.setattr(backend, "BACKENDS", Registry(GROUP, "backend", ours))


def suite(folder: Path, **keys: Any) -> Any:
    (folder / "tales").mkdir()
    (folder / "tales" / "a.txt").write_text("Once upon a time.\n")
    needle = "{needle: The ferry leaves at dawn., question: When?}"
    file = folder / "tale.yaml"
    file.write_text(
        f"haystack: tales\nneedles: [{needle}]\nsweep: {{context_lengths: [64], document_depths: [0]}}\n"
        + "".join(f"{key}: {value}\n" for key, value in keys.items())
    )
    return load_suite(file)


def test_a_backend_of_another_distribution_is_found() -> None:
    assert find("parrot") is Parrot
    assert resolve(reference_of(Parrot)) is Parrot


LOOKING = """
import subprocess
import sys
from retrieval_heads.engine.backends.backend import find
can = find("vllm").capabilities
print(can.scores_heads, can.masks_heads, can.replicas, {"torch", "vllm", "nnsight"} & sys.modules.keys())
"""


def test_what_vllm_can_do_is_told_without_importing_it() -> None:
    told = subprocess.run([sys.executable, "-c", LOOKING], capture_output=True, text=True, check=True).stdout
    assert told == "True True True set()\n"


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ConfigError) as refused:
        find("vlm")
    assert str(refused.value) == "engine.kind: unknown backend 'vlm'; did you mean 'vllm'? there are: vllm, parrot"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"kind": "detect", "engine": "{kind: parrot}"},
            "kind: detect scores heads, which the backend 'parrot' (engine.kind) cannot; it answers kind niah",
        ),
        (
            {"kind": "ablate", "engine": "{kind: parrot}", "ablate": "{heads: [[0, 1]], top: [1]}"},
            "kind: ablate masks heads, which the backend 'parrot' (engine.kind) cannot; it answers kind niah",
        ),
        (
            {"engine": "{kind: parrot, replicas: 2}"},
            "engine.replicas: the backend 'parrot' (engine.kind) has no replicas; 1 is accepted",
        ),
    ],
)
def test_what_a_backend_cannot_is_refused(tmp_path: Path, keys: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_suite(suite(tmp_path, **keys))
    assert str(refused.value) == said


def test_what_a_backend_can_is_taken(tmp_path: Path) -> None:
    read = suite(tmp_path, engine="{kind: parrot, url: 'http://a', silence: 5}")
    assert check_suite(read) is Parrot
    assert read.settings.engine.options == {"url": "http://a"}
    assert read.resolved()["engine"]["kind"] == "parrot"


def test_the_default_is_left_out_of_what_is_stored(tmp_path: Path) -> None:
    read = suite(tmp_path, engine="{kind: vllm}")
    assert read.resolved()["engine"] == {"replicas": 1, "silence": 900.0, "start_limit": 3600.0}


def test_keys_of_engine_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tale.yaml:4: engine.replcias: unknown key; did you mean 'replicas'"):
        suite(tmp_path, engine="{replcias: 2}")


def test_info_is_plain_json_without_what_is_not_known() -> None:
    info = Info("none 0", "a device", "float32", 8192, 8, 512, 16, layers=(Layer("a", 0, 2),), more={"eager": True})
    assert info.to_json() == {
        **{"engine": "none 0", "device": "a device", "dtype": "float32", "model_revision": "", "loaded": {}},
        **{"max_model_len": 8192, "max_num_seqs": 8, "max_num_batched_tokens": 512, "block_size": 16},
        **{"layers": [{"path": "a", "number": 0, "heads": 2, "sliding_window": None, "kind": "attention"}]},
        **{"start_seconds": {}, "eager": True},
    }
