"""The paper's way to find retrieval heads, on transformers: what it takes for the cells of a suite.

    python benchmarks/real_size/paper.py SUITE MODEL [--random]

Written from arXiv 2404.15574, section 2, and the shape of its code: the prompt is prefilled with sdpa; then each token
of the answer is decoded with eager attention, and a loop over layers and heads looks where each head's row has its
maximum. A head's score counts the steps at which that is a token of the needle and the very token that is then emitted,
over the needle's length. A JSON line for each cell; loading is not in its seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from retrieval_heads.suites.suite import load_suite
from retrieval_heads.tasks.builder import CellBuilder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("model")
    parser.add_argument(
        "--random", action="store_true", help="random weights of the model's shape, in bfloat16 on CUDA"
    )
    asked = parser.parse_args()
    suite = load_suite(asked.suite)
    builder = CellBuilder(AutoTokenizer.from_pretrained(asked.model), {}, {}, 1 << 20)
    model = load(asked.model, is_random=asked.random)
    for cell in suite.cells:
        request = builder.request(suite.question, cell)
        start, end = request.facts.needle_span
        began = time.monotonic()
        answer, scores = detect(model, request.ids, start, end, request.sampling["max_tokens"])
        seconds = time.monotonic() - began
        told = {
            "cell": cell.id,
            "length": cell.place.get("length"),
            "seconds": seconds,
            "answer": answer,
            "scores": scores,
        }
        print(json.dumps(told), flush=True)


def load(folder: str, *, is_random: bool) -> Any:
    if not is_random:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16).eval()


@torch.inference_mode()
def detect(model: Any, ids: list[int], start: int, end: int, steps: int) -> tuple[list[int], list[list[float]]]:
    """A greedy answer of so many tokens, and each head's score by layer."""
    model.set_attn_implementation("sdpa")
    prompt = torch.tensor([ids[:-1]], device=model.device)
    cache = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
    model.set_attn_implementation("eager")
    scores = [[0.0] * model.config.num_attention_heads for _ in range(model.config.num_hidden_layers)]
    answer: list[int] = []
    token = ids[-1]
    for _ in range(steps):
        last = torch.tensor([[token]], device=model.device)
        out = model(last, past_key_values=cache, use_cache=True, output_attentions=True)
        token = int(out.logits[0, -1].argmax())
        answer.append(token)
        for layer, attention in enumerate(out.attentions):
            for head in range(attention.shape[1]):
                place = int(attention[0, head, -1].topk(1).indices)
                if start <= place < end and ids[place] == token:
                    scores[layer][head] += 1 / (end - start)
    return answer, scores


if __name__ == "__main__":
    main()
