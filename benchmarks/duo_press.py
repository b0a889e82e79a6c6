"""Heads that stream here beside kvpress' Duo press on transformers: the same prompts, the same heads, answer by answer.

    python benchmarks/duo_press.py
    python benchmarks/duo_press.py --environment FOLDER  # where kvpress is, or is to be put; else build/kvpress

kvpress 0.5.5 wants a transformers below 5.3, so it has an environment of its own, which is made if it is not there; the
torch in it is that of this one. The press prefills a context in full, and what a streaming head may see of it behind it
are its first tokens and its last ones (`anchor: context` here). SmolLM2 in float32, 60 cells: three lengths, five
depths, four choices of KV heads. Each cell whose answers differ is printed: at which token they part, and how far apart
the two likeliest logits of the press were there. Fails where less than 95 % are equal.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

KVPRESS = "kvpress==0.5.5"
ENVIRONMENT = Path(__file__).parents[1] / "build/kvpress"
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
    parser.add_argument("--environment", metavar="FOLDER", type=Path, default=ENVIRONMENT)
    parser.add_argument("--asked", metavar="FILE", type=Path, help=argparse.SUPPRESS)  # the press's own part
    given = parser.parse_args()
    if given.asked:
        by_press(json.loads(given.asked.read_text(encoding="utf-8")))
        return
    # vLLM goes on to bind this process to cores, and sets variables that another torch would read.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    cores = os.sched_getaffinity(0)
    python = interpreter(given.environment)
    with tempfile.TemporaryDirectory() as folder:
        ours = by_engine(Path(folder))
        os.sched_setaffinity(0, cores)
        asked = Path(folder) / "asked.json"
        asked.write_text(json.dumps(ours), encoding="utf-8")
        theirs = list(answers_of([str(python), __file__, "--asked", str(asked)], variables))
    sys.exit(not compare(ours["cells"], theirs))


def interpreter(folder: Path) -> Path:
    """Python of an environment that has kvpress, made where it lacks; torch comes from the one that runs this."""
    python = folder / "bin/python"
    if not list(folder.glob("lib/*/site-packages/kvpress")):
        print(f"Setting up {folder}: {KVPRESS}, a minute the first time.", flush=True)
        venv.create(folder, with_pip=True)
        packages = next(folder.glob("lib/*/site-packages"))
        shared = importlib.metadata.distribution("torch").locate_file("")
        (packages / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
        # What is shared and wants other versions of what is put before it is not used here.
        pip = ["-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-warn-conflicts", KVPRESS]
        subprocess.run([str(python), *pip], check=True)
    return python


def answers_of(command: list[str], variables: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What the press prints, a cell a line."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(variables)) as press:
        assert press.stdout is not None
        for line in press.stdout:
            if line.startswith("{"):
                yield json.loads(line)
            else:
                print(line, end="", flush=True)
    if press.returncode:
        sys.exit(f"the press ended with {press.returncode}")


def compare(cells: list[dict[str, Any]], lines: list[dict[str, Any]]) -> bool:
    """Print what differs; whether at least 95 % are equal."""
    differ = []
    for cell, line in zip(cells, lines, strict=True):
        if cell["answer"] == line["answer"]:
            continue
        differ.append(cell["name"])
        pairs = zip(cell["answer"], line["answer"], strict=False)
        at = next((place for place, (one, other) in enumerate(pairs) if one != other), len(line["answer"]) - 1)
        print(json.dumps({"cell": cell["name"], "parts_at": at, "logits_apart": line["gaps"][at]}))
    whole = sum(cell["answer"] == cell["unstreamed"] for cell in cells)
    equal = len(cells) - len(differ)
    told = {"cells": len(cells), "equal": equal, "share": round(equal / len(cells), 4), "differ": differ}
    print(json.dumps(told | {"as_without_streaming": whole}))
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
