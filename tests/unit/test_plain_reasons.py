"""What vLLM refuses a model for, on one line that leaves nothing out."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from retrieval_heads.engine.backends.reasons import plain_reason, raised_reason


def test_every_line_is_kept() -> None:
    error = ValueError(
        "The repository tiny contains custom code which must be executed to load the model.\n"
        "  You can inspect it.\n\nPlease pass the argument `trust_remote_code=True`."
    )
    assert plain_reason(error) == (
        "The repository tiny contains custom code which must be executed to load the model. "
        "You can inspect it. Please pass the argument `trust_remote_code=True`."
    )


class _Config(BaseModel):
    size: int
    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def check(cls, said: dict[str, object]) -> dict[str, object]:
        if said.get("name") == "bad":
            raise ValueError("no such model;\nthe next line says what is accepted")
        return said


def test_each_error_of_several_is_kept_with_its_field() -> None:
    with pytest.raises(ValidationError) as raised:
        _Config.model_validate({"size": "many", "name": 3})
    first, second = plain_reason(raised.value).split("; ")
    assert first.startswith("size: Input should be a valid integer")
    assert second == "name: Input should be a valid string"


def test_a_models_own_check_is_told_whole() -> None:
    with pytest.raises(ValidationError) as raised:
        _Config.model_validate({"size": 1, "name": "bad"})
    assert plain_reason(raised.value) == "no such model; the next line says what is accepted"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("rope_theta"), "KeyError: 'rope_theta'"),
        (AssertionError(), "AssertionError"),
        (
            RuntimeError("out of memory\nException raised from alloc (most recent call first):\nframe #0"),
            "out of memory",
        ),
        (ValueError("no such file\nTraceback (most recent call last):\n  File x"), "no such file"),
    ],
)
def test_stacks_are_left_out_and_a_word_has_its_kind(error: Exception, told: str) -> None:
    assert plain_reason(error) == told


def test_of_the_architectures_that_are_known_the_close_ones_are_named() -> None:
    known = ", ".join(f"'{name}'" for name in ("LlamaForCausalLM", "BertModel"))
    unknown = "Model architectures ['LlamaForCausalLN'] are not supported for now."
    error = ValueError(f"{unknown} Supported architectures: dict_keys([{known}])")
    assert plain_reason(error) == (
        "vLLM knows 2 architectures, and 'LlamaForCausalLN' is none of them; close to it: LlamaForCausalLM"
    )


def test_a_model_whose_module_cannot_be_imported_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model_cls() -> None:
        raise ModuleNotFoundError("No module named 'torchvision'")

    models = {"Gemma3ForConditionalGeneration": SimpleNamespace(load_model_cls=load_model_cls)}
    registry = SimpleNamespace(ModelRegistry=SimpleNamespace(models=models))
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.model_executor.models.registry", registry)
    error = ValueError(
        "Model architectures ['Gemma3ForConditionalGeneration'] failed to be inspected. Please check the logs for more "
        "details."
    )
    assert plain_reason(error) == (
        "vLLM's Gemma3ForConditionalGeneration cannot be imported: ModuleNotFoundError: No module named 'torchvision'"
    )


@pytest.mark.parametrize("stack", ["", "Traceback (most recent call last):\n  File a.py, line 1\n    probe.take()\n"])
def test_what_a_worker_caught_keeps_every_line_but_its_stack(stack: str) -> None:
    assert raised_reason(f"{stack}ValueError: rows were scored\n  3 of 4") == "ValueError: rows were scored 3 of 4"


def test_a_worker_that_says_nothing_is_told_as_nothing() -> None:
    assert raised_reason(" \n") == ""
