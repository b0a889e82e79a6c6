"""Masked answers of the real engine: those of transformers with the same hook, whatever runs beside them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from probe_run import build
from reference import attention_rows, head_scores, streamed_logprobs

from conftest import MODEL, run_script
from retrieval_heads.models import locate_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

pytestmark = pytest.mark.engine

TOP = [(18, 7), (18, 6), (17, 3), (20, 6), (23, 2), (17, 4), (23, 7), (23, 1), (21, 5), (21, 8)]
EARLY = [(layer, head) for layer in range(2, 14) for head in range(0, 9, 2)]  # what they write, later layers read
MASKS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "zero": {"mode": "zero", "heads": TOP},
    "zero early": {"mode": "zero", "heads": EARLY},
    "mean": {"mode": "mean", "heads": TOP, "reference": "text"},
    "uniform": {"mode": "uniform", "heads": TOP},
}


def streams(heads: Sequence[Sequence[int]], sink: int, recent: int, context: int, **how: Any) -> dict[str, Any]:
    """A mask of heads that stream."""
    seen = {"sink": sink, "recent": recent, "anchor": "row", "prefill": False, "context": context, **how}
    return {"mode": "stream", "heads": [list(head) for head in heads], "stream": seen}


EVERY = [(layer, head) for layer in range(30) for head in range(9)]
SOME = [(layer, head) for layer, group in ((3, 0), (17, 1), (18, 2)) for head in range(3 * group, 3 * group + 3)]
STREAMED = [
    ("300", streams(EVERY, 4, 64, 250)),
    ("300", streams(EVERY, 0, 33, 256)),
    ("420", streams(EVERY, 33, 32, 400, anchor="context")),
    ("420", streams(EVERY, 32, 31, 390, prefill=True)),  # its chunks are of 256 tokens and less
    ("420", streams(SOME, 1, 1, 320)),
    ("300", streams(SOME, 16, 40, 224, anchor="context")),
    ("300", None),
]
"""Prompts, and masks of heads that stream; blocks are of 32 tokens."""
SHARED = (
    {
        "plain": ("300", None),
        "none": ("300", streams((), 4, 32, 250)),
        "wide": ("300", streams(EVERY, 4, 400, 250)),
        "streaming": ("300", streams(EVERY, 4, 32, 250)),
        "other": ("300", streams(SOME, 4, 32, 250)),
        "prefill": ("300", streams(EVERY, 4, 32, 250, prefill=True)),
    },
    [
        *("plain", "reset", "none", "reset", "wide", "reset", "streaming", "reset"),
        *("plain", "streaming", "plain", "other", "streaming", "prefill", "plain"),
    ],
)
TOKENS = 16
END = 2  # SmolLM2's <|im_end|>


def run(folder: Path, asked: Mapping[str, Any], **environment: str) -> dict[str, Any]:
    """What `ablation_run.py` found."""
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    run_script("ablation_run.py", folder / "asked.json", folder / "answered.json", **environment)
    found: dict[str, Any] = json.loads((folder / "answered.json").read_text(encoding="utf-8"))
    return {**found, "asked": asked}


@pytest.fixture(scope="session")
def masked(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two prompts under every mask."""
    engine: Any = SimpleNamespace(tokenizer=tokenizer)
    prompts = {f"{len(prompt.ids)}": prompt.ids for prompt in build(engine, [300, 420])}
    asked = {
        "model": locate_model(MODEL),
        "arguments": {
            "dtype": "float32",
            "block_size": 32,
            "max_model_len": 512,
            # Several requests share a step, and prompts take several of them.
            "max_num_batched_tokens": 256,
            "kv_cache_memory_bytes": 1 << 30,
        },
        "prompts": prompts,
        "reference": [prompts["300"][:200], prompts["420"][100:400]],
        "requests": [(name, prompt, mask) for name, mask in MASKS.items() for prompt in prompts],
        "sampling": {"max_tokens": TOKENS, "temperature": 0.0},
        "alone": "300",
        "unsalted": ("zero early", "300"),
        "weighed": ("zero early", "300"),
        "replayed": None,
        "streamed": STREAMED,
        "shared": SHARED,
    }
    return run(tmp_path_factory.mktemp("masked"), asked)


@pytest.mark.parametrize("name", list(MASKS))
def test_a_request_in_a_batch_of_masks_gets_what_it_gets_alone(masked: Any, name: str) -> None:
    assert masked["together"][f"{name} 300"][0] == masked["alone"][f"{name} 300"][0]
    assert len(masked["alone"][f"{name} 300"][0]) > 5


def test_masks_change_answers(masked: Any) -> None:
    assert len({tuple(masked["alone"][f"{name} 300"][0]) for name in MASKS}) >= 4


@pytest.mark.parametrize("name", list(MASKS))
def test_masked_text_is_that_of_transformers_with_the_same_hook(masked: Any, name: str) -> None:
    asked = masked["asked"]
    expected = greedy(asked["model"], asked["prompts"]["300"], MASKS[name], asked["reference"], TOKENS, END)
    assert masked["alone"][f"{name} 300"][0] == expected


def test_without_the_salt_a_cached_prefix_answers_for_another_mask(masked: Any) -> None:
    found, prompt = masked["unsalted"], "300"
    right = masked["alone"][f"zero early {prompt}"][0]
    unmasked = masked["alone"][f"none {prompt}"][0]
    text, cached = found["masked, unsalted"]
    assert cached > 0
    assert text != right
    text, cached = found["unmasked after it"]
    assert cached > 0
    assert text != unmasked


def test_with_the_salt_every_mask_has_a_cache_of_its_own(masked: Any) -> None:
    found = masked["unsalted"]
    right = masked["alone"]["zero early 300"][0]
    assert found["masked, salted"] == [right, 0]
    text, cached = found["masked again, salted"]
    assert (text, cached > 0) == (right, True)
    assert found["unmasked first"][0] == masked["alone"]["none 300"][0]


def test_masked_perplexity_is_that_of_transformers(masked: Any) -> None:
    ids = masked["asked"]["prompts"]["300"]
    with hooked(masked["asked"]["model"], MASKS["zero early"], ()) as model, torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = float(logprobs[:-1].gather(-1, torch.tensor(ids[1:])[:, None]).mean())
    assert masked["logprob"] == pytest.approx(expected, abs=1e-4)


def test_heads_that_stream_answer_as_transformers_does_with_their_band(masked: Any) -> None:
    check_streamed(masked, min_tokens=5)


def check_streamed(found: Any, min_tokens: int) -> None:
    """Each token is the likeliest one of transformers, and the log probabilities are its own."""
    asked = found["asked"]
    for (prompt, mask), (answer, _, logprobs) in zip(asked["streamed"], found["streamed"], strict=True):
        told = mask or streams((), 0, 1, 0)
        ids = asked["prompts"][prompt]
        right = streamed_logprobs(asked["model"], [*ids, *answer[:-1]], told["heads"], told["stream"])[len(ids) - 1 :]
        assert right.argmax(-1).tolist() == answer, mask
        assert len(answer) >= min_tokens
        for row, each in zip(right, logprobs, strict=True):
            tokens = list(map(int, each))
            torch.testing.assert_close(torch.tensor(list(each.values())), row[tokens], rtol=0, atol=1e-4)


def test_where_no_head_streams_or_nothing_is_hidden_nothing_changes(masked: Any) -> None:
    plain, none, wide, streaming = masked["shared"][:4]
    assert plain[1:] == none[1:]
    assert plain[1:] == wide[1:]
    assert plain[3] != streaming[3]


def test_the_context_is_shared_and_what_streams_is_not(masked: Any) -> None:
    by_name = {name: rest for name, *rest in masked["shared"][:4]}
    later = masked["shared"][4:]
    assert [(name, cached) for name, _, cached, _ in later] == [
        ("plain", 0),
        ("streaming", 224),  # seven blocks of the context's 250 tokens, which the plain request has left
        ("plain", 288),
        ("other", 224),
        ("streaming", 288),  # its own
        ("prefill", 0),
        ("plain", 288),
    ]
    for name, answer, _, logprobs in later:
        if name in by_name:
            assert answer == by_name[name][0]
            for one, other in zip(logprobs, by_name[name][2], strict=True):
                assert one == pytest.approx(other, abs=1e-4)


TINY_EVERY = [(layer, head) for layer in range(3) for head in range(4)]
TINY_STREAMED = [
    *(
        ("b", streams(TINY_EVERY, sink, recent, 80, **how))
        for sink in (0, 1, 31, 32, 33)
        for recent in (1, 31, 32, 33, 64)
        for how in ({}, {"anchor": "context"}, {"prefill": True})
        if not how or min(abs(sink - recent), recent - 1) < 2  # the other two at fewer of them
    ),
    (
        "b",
        streams([(0, 0), (0, 1), (2, 2), (2, 3)], 2, 5, 64),
    ),  # the first rank's of one layer, the second's of another
    ("b", streams([(1, 2), (1, 3)], 2, 5, 64, prefill=True)),
    ("b", None),
]

TINY_MASKS: dict[str, dict[str, Any] | None] = {
    "none": None,
    **{
        f"{mode} {rank}": {"mode": mode, "heads": heads, "reference": "text"}
        for mode in ("zero", "mean", "uniform")
        for rank, heads in (("first", [(0, 1), (2, 0)]), ("second", [(0, 2), (1, 3)]), ("both", [(1, 0), (1, 3)]))
    },
}


@pytest.fixture(scope="session")
def in_parallel(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small random model of four heads on two ranks; SmolLM2 has nine."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,  # so that what a head says tells in the answer
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    chooser = random.Random(0)
    ids = [[chooser.randrange(1, 250) for _ in range(40)] for _ in range(2)]
    # A head whose argmax lies in the needle copies, whichever of its tokens that is.
    prompt, answer = [*ids[1][:10], *[7] * 20, *ids[1][30:40]], [7] * 6
    rows = {
        "prompt_tokens": len(prompt),
        "answer": answer,
        "needle_span": (10, 30),
        "needle": prompt[10:30],
        "question_span": (30, 36),
    }
    asked = {
        "model": str(folder / "model"),
        "arguments": {
            "dtype": "float32",
            "max_model_len": 128,
            "block_size": 32,
            "tensor_parallel_size": 2,
            "kv_cache_memory_bytes": 64 << 20,
        },
        "prompts": {"a": ids[0], "b": [chooser.randrange(1, 250) for _ in range(100)]},
        "reference": [ids[1]],
        "requests": [(name, "a", mask) for name, mask in TINY_MASKS.items()],
        "sampling": {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True},
        "alone": None,
        "unsalted": None,
        "weighed": None,
        "replayed": {"ids": [*prompt, *answer[:-1]], "rows": rows, "first_row": 30},
        "streamed": TINY_STREAMED,
        "shared": None,
    }
    return run(folder, asked, VLLM_CPU_OMP_THREADS_BIND="0|1")


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two ranks need two cores")
def test_two_ranks_mask_the_heads_that_one_does(in_parallel: Any) -> None:
    asked = in_parallel["asked"]
    expected = {
        name: greedy(asked["model"], asked["prompts"]["a"], mask, asked["reference"], 12)
        for name, mask in TINY_MASKS.items()
    }
    assert {name: in_parallel["together"][f"{name} a"][0] for name in TINY_MASKS} == expected
    assert len({tuple(ids) for ids in expected.values()}) > len(TINY_MASKS) - 3, "masks of this model tell"


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two ranks need two cores")
def test_heads_of_two_ranks_stream_as_transformers_has_them(in_parallel: Any) -> None:
    """Sinks and windows of every size around the edges of a block, which is of 32 tokens."""
    check_streamed(in_parallel, min_tokens=12)
    assert len({tuple(answer) for answer, *_ in in_parallel["streamed"]}) > 20, "streaming tells in this model"


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two ranks need two cores")
def test_two_ranks_score_heads_as_transformers_does(in_parallel: Any) -> None:
    """As one rank does: `test_heads_reference.py`."""
    asked = in_parallel["asked"]
    told = asked["replayed"]
    expected = head_scores(attention_rows(asked["model"], told["ids"], told["first_row"]), **told["rows"])
    found = torch.tensor(in_parallel["head_scores"])
    assert found.shape == (6, 3, 4), "every score of the heads of both ranks, in order"
    assert found[len(expected)].isnan().all(), "there are no distractors"
    assert found[len(expected) + 1].isfinite().all(), "what heads write; test_models.py compares it"
    found = found[: len(expected)]
    assert len(set(found[0].flatten().tolist())) > 2, "heads of this model differ in what they copy"
    torch.testing.assert_close(found, torch.stack(list(expected.values())), rtol=0, atol=1e-5)


def greedy(
    folder: str,
    ids: Sequence[int],
    mask: Mapping[str, Any] | None,
    reference: Sequence[Sequence[int]],
    tokens: int,
    end: int | None = None,
) -> list[int]:
    """transformers' greedy answer with the mask in hooks of its own."""
    answer: list[int] = []
    with hooked(folder, mask, reference) as model, torch.inference_mode():
        out = model(torch.tensor([list(ids)]), use_cache=True)
        while True:
            answer.append(int(out.logits[0, -1].argmax()))
            if len(answer) == tokens or answer[-1] == end:
                return answer
            out = model(torch.tensor([answer[-1:]]), past_key_values=out.past_key_values, use_cache=True)


@contextmanager
def hooked(folder: str, mask: Mapping[str, Any] | None, reference: Sequence[Sequence[int]]) -> Iterator[Any]:
    """transformers' model with the mask in hooks of its own."""
    model = _model(folder)
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    hooks = []
    by_layer: dict[int, list[int]] = {}
    for layer, head in mask["heads"] if mask else ():
        by_layer.setdefault(layer, []).append(head)
    means = _means(folder, tuple(map(tuple, reference))) if mask and mask["mode"] == "mean" else None
    for layer, heads in by_layer.items():
        attention = model.model.layers[layer].self_attn
        if mask and mask["mode"] == "uniform":
            hooks.append(attention.q_proj.register_forward_hook(_flatten(heads, size)))
        else:
            mean = means[layer] if means is not None else None
            hooks.append(attention.o_proj.register_forward_pre_hook(_silence(heads, size, mean)))
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def _silence(heads: Sequence[int], size: int, mean: torch.Tensor | None) -> Any:
    def hook(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        changed = inputs[0].clone()
        for head in heads:
            span = slice(head * size, (head + 1) * size)
            changed[..., span] = 0 if mean is None else mean[span]
        return (changed,)

    return hook


def _flatten(heads: Sequence[int], size: int) -> Any:
    """A query of zeros stays one under the rotary embedding."""

    def hook(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        for head in heads:
            changed[:, -1, head * size : (head + 1) * size] = 0
        return changed

    return hook


@cache
def _means(folder: str, reference: tuple[tuple[int, ...], ...]) -> list[torch.Tensor]:
    """Mean input of every layer's output projection over all tokens of the reference."""
    model = _model(folder)
    seen: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0][0].clone()))
        for layer, kept in zip(model.model.layers, seen, strict=True)
    ]
    with torch.inference_mode():
        for ids in reference:
            model(torch.tensor([list(ids)]))
    for hook in hooks:
        hook.remove()
    return [torch.cat(kept).mean(0) for kept in seen]


@cache
def _model(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
