"""Whether a prompt begins with the start token that its model knows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from retrieval_heads.prompts.start_token import start_token_fault
from toy_tokenizer import BOS, WordTokenizer


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([BOS, 1000], ""),
        ([BOS, BOS, 1000], "begins with 2 start tokens <s> (1): template and tokenizer both write it"),
        ([1000], "no prompt begins with the model's start token <s> (1): neither template nor tokenizer writes it"),
        ([], "no prompt begins with the model's start token"),
    ],
)
def test_a_prompt_without_the_start_token_is_a_fault(ids: list[int], told: str) -> None:
    fault = start_token_fault(ids, WordTokenizer(), None)
    assert told in fault
    assert bool(fault) is bool(told)


def fault_of(template: str, **fields: object) -> str:
    tokenizer = SimpleNamespace(chat_template=template, decode=lambda ids: "<bos>", **fields)
    return start_token_fault([7, 8], tokenizer, None)


def test_a_template_that_writes_a_start_token_which_the_tokenizer_lacks_is_a_fault() -> None:
    # Gemma from a GGUF file: the template renders without <bos>.
    assert "the chat template writes bos_token and the tokenizer has none" in fault_of(
        "{{ bos_token }}{% for m in messages %}...", bos_token_id=None
    )
    assert "no prompt begins with the model's start token <bos> (2)" in fault_of(
        "{{ bos_token }}...", bos_token_id=2, init_kwargs={"add_bos_token": False}
    )


def test_a_model_that_takes_no_start_token_is_no_fault() -> None:
    assert fault_of("<|im_start|>...", bos_token_id=None) == ""  # Qwen
    assert fault_of("<|user|>...", bos_token_id=1, init_kwargs={"add_bos_token": False}) == ""  # Phi-3
    assert fault_of("...", bos_token_id=5, eos_token_id=5) == ""  # GPT-2's divides texts
