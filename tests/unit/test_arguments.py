"""Names of vLLM's engine arguments, read from its source without importing it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from retrieval_heads.engine import arguments
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
    with pytest.raises(EngineError, match=rf"model\.{key}: there is no such engine argument in vLLM"):
        arguments.check_arguments({"model": "toy", key: 1})
    with pytest.raises(EngineError, match="did you mean 'max_model_len'"):
        arguments.check_arguments({"model": "toy", "max_model_length": 1})
    assert "vllm" not in sys.modules


def test_arguments_and_our_own_keys_are_taken(source: Path) -> None:
    source.write_text(SOURCE)
    ours = {"chat_template": None, "chat_template_kwargs": {}}
    arguments.check_arguments({"model": "toy", "max_model_len": 512, "dtype": "auto", **ours})


@pytest.mark.parametrize("text", [None, "class EngineArgs(", "class EngineArgs(Base):\n    model: str\n", "x = 1\n"])
def test_what_cannot_be_read_is_left_to_the_engine(source: Path, text: str | None) -> None:
    if text is not None:
        source.write_text(text)
    arguments.check_arguments({"model": "toy", "anything": 1})
