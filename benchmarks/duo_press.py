"""Heads that stream here beside kvpress' Duo press on transformers: the same prompts, the same heads, answer by answer.

    python benchmarks/duo_press.py --kvpress VENV/bin/python

kvpress 0.5.5 wants a transformers below 5.3, so it has an environment of its own:

    python -m venv VENV && VENV/bin/pip install kvpress==0.5.5

It prefills a context in full, and what a streaming head may see of it behind it are its first tokens and its last ones
(`anchor: context` here). SmolLM2 in float32, 60 cells: three lengths, five depths, four choices of KV heads. Where two
answers part, the press tells how far apart the two likeliest tokens were there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SINK, RECENT, TOKENS = 16, 64, 24
SUITE = {
    "kind": "compress",
    "haystack": "pydoc",
    "needles": [
        {
            "needle": "The night guard of the Orrin museum keeps a spare key inside the brass telescope.",
            "question": "Where does the night guard of the Orrin museum keep a spare key?",
        }
    ],
    "sweep": {"context_lengths": [384, 768, 1152], "document_depths": [10, 30, 50, 70, 90]},
    "compress": {
        "scores": ["random"],
        "keep": [0.75, 0.5, 0.25, 0.0],
        "draws": 1,
        "sink": SINK,
        "recent": RECENT,
        "anchor": "context",
    },
    "generation": {"max_tokens": TOKENS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvpress", metavar="PYTHON", help="interpreter of an environment with kvpress 0.5.5")
    parser.add_argument("--asked", metavar="FILE", help=argparse.SUPPRESS)  # the press's own part
    given = parser.parse_args()
    if given.asked:
        by_press(json.loads(Path(given.asked).read_text(encoding="utf-8")))
        return
    if given.kvpress is None:
        parser.error("--kvpress PYTHON is expected")
    with tempfile.TemporaryDirectory() as folder:
        ours = by_engine(Path(folder))
        asked = Path(folder) / "asked.json"
        asked.write_text(json.dumps(ours), encoding="utf-8")
        command = [given.kvpress, __file__, "--asked", str(asked)]
        printed = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ""}, check=False)
    lines = [json.loads(line) for line in printed.stdout.splitlines() if line.startswith("{")]
    if len(lines) != len(ours["cells"]):
        sys.exit(f"the press gave {len(lines)} of {len(ours['cells'])} answers: {printed.stderr[-2000:]}")
    sys.exit(not compare(ours["cells"], lines))


def compare(cells: list[dict[str, Any]], lines: list[dict[str, Any]]) -> bool:
    """Print what differs; whether at least 95 % are equal."""
    equal = 0
    for cell, line in zip(cells, lines, strict=True):
        if cell["answer"] == line["answer"]:
            equal += 1
            continue
        pairs = zip(cell["answer"], line["answer"], strict=False)
        at = next((place for place, (one, other) in enumerate(pairs) if one != other), len(line["answer"]) - 1)
        print(json.dumps({"cell": cell["name"], "parts_at": at, "logits_apart": line["gaps"][at]}))
    whole = sum(cell["answer"] == cell["unstreamed"] for cell in cells)
    told = {"cells": len(cells), "equal": equal, "share": round(equal / len(cells), 4), "as_without_streaming": whole}
    print(json.dumps(told))
    return equal >= 0.95 * len(cells)


def by_engine(folder: Path) -> dict[str, Any]:
    """Prompts, heads and answers of the engine here, with the heads streaming and without."""
    import yaml

    from retrieval_heads.ablation.arms import NONE
    from retrieval_heads.ablation.compression import Kept, kept_kv_heads, streaming_heads
    from retrieval_heads.engine.backends.vllm import Engine
    from retrieval_heads.engine.masks import groups_of
    from retrieval_heads.models import locate_model
    from retrieval_heads.runs.mask import STREAM, Mask
    from retrieval_heads.suites.suite import load_suite
    from retrieval_heads.tasks.builder import CellBuilder

    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    suite = load_suite(file)
    model = locate_model("SmolLM2-135M-Instruct")
    arguments = {"dtype": "float32", "block_size": 32, "max_model_len": 2048, "kv_cache_memory_bytes": 1 << 30}
    engine = Engine(model, arguments, traced=True)
    builder = CellBuilder(engine.tokenizer, {}, {}, 2048)
    groups = groups_of(engine.info.layers or ())
    assert suite.question.ablate is not None
    cells = []
    for cell in suite.cells:
        if cell.place.arm == NONE:
            continue
        kept = kept_kv_heads(Kept.of(cell.place.arm), (), groups, seed=0)
        mask = Mask(STREAM, streaming_heads(kept, groups), stream=suite.question.ablate.stream)
        request = builder.request(suite.question, cell, mask)
        assert request.mask is not None
        assert request.mask.stream is not None
        engine.add(cell.name, request.ids, request.sampling, request.mask)
        engine.add(f"{cell.name} whole", request.ids, request.sampling)
        streaming = sorted({(layer, head // groups[layer][1]) for layer, head in request.mask.heads})
        told = {"name": cell.name, "ids": request.ids, "context": request.mask.stream.context, "streaming": streaming}
        cells.append(told)
    answers = {}
    while engine.has_work:
        answers |= {each.id: each for each in engine.step()}
    assert not any(each.error for each in answers.values())
    for cell in cells:
        cell["answer"] = answers[cell["name"]].token_ids
        cell["unstreamed"] = answers[f"{cell['name']} whole"].token_ids
    shape = [len(groups), next(iter(groups.values()))[0]]
    return {"model": model, "shape": shape, "sink": SINK, "recent": RECENT, "tokens": TOKENS, "cells": cells}


def by_press(asked: dict[str, Any]) -> None:
    """kvpress' answers, a line each; its fields are set by hand, since it has no pattern of this model."""
    import torch
    from kvpress import DuoAttentionPress
    from transformers import AutoModelForCausalLM, DynamicCache

    class Press(DuoAttentionPress):
        def post_init_from_model(self, model: Any) -> None: ...

    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32, attn_implementation="sdpa").eval()
    end = model.generation_config.eos_token_id
    ends = set(end if isinstance(end, list) else [end])
    for cell in asked["cells"]:
        press = Press()
        press.sink_size, press.recent_size = asked["sink"], asked["recent"]
        press.streaming_mask = torch.zeros(asked["shape"], dtype=torch.bool)
        for layer, head in cell["streaming"]:
            press.streaming_mask[layer, head] = True
        ids, context, cache = torch.tensor([cell["ids"]]), cell["context"], DynamicCache()
        answer, gaps = [], []
        with torch.inference_mode():
            with press(model):
                model.model(ids[:, :context], past_key_values=cache)
            given = ids[:, context:]
            while len(answer) < asked["tokens"] and not ends & set(answer):
                logits = model(given, past_key_values=cache).logits[0, -1]
                best = logits.topk(2).values
                gaps.append(float(best[0] - best[1]))
                answer.append(int(logits.argmax()))
                given = torch.tensor([answer[-1:]])
        print(json.dumps({"answer": answer, "gaps": gaps}), flush=True)


if __name__ == "__main__":
    main()
