"""A user's project in which nothing is wrong: suites, a config, a finished run, its head files and a baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from stand_in_engine import FERRY, VARIABLE, Behaviour

NEEDLE: dict[str, Any] = {"needle": FERRY, "question": "When does the ferry to Oslo leave?", "answer": "at dawn"}

TALE: dict[str, Any] = {
    "kind": "niah",
    "haystack": {"source": "tales", "name": "tales"},
    "needles": [{**NEEDLE, "answer_span": "at dawn", "name": "ferry"}],
    "sweep": {
        "context_lengths": [128, 256],
        "document_depths": {"min": 0, "max": 100, "intervals": 2},
        "seeds": [0],
    },
    "prompt": "book",
    "boundary": "sentence",
    "generation": {"max_tokens": 16, "temperature": 0.0},
    "scoring": {"metric": "rouge1_recall_novel", "threshold": 0.5},
    "gates": ["mean(rouge1_recall) >= 0.1"],
    "verdict": "gates",
}
DETECT: dict[str, Any] = {
    **{key: TALE[key] for key in ("haystack", "needles", "sweep", "generation")},
    "kind": "detect",
    "expect": {"top_heads": [[1, 2]], "within_top": 10, "min_overlap_with": "heads/heads.json", "min_overlap": 0.1},
}
ABLATE: dict[str, Any] = {
    **{key: TALE[key] for key in ("haystack", "needles", "sweep", "generation")},
    "kind": "ablate",
    "ablate": {"heads": "heads/heads.json", "top": [2], "draws": 2, "mode": "zero", "seed": 0},
}
STORED: dict[str, Any] = {"kind": "detect", "from_results": ["run/results.jsonl"]}
CONFIG: dict[str, Any] = {"model": {"model": "toy", "chat_template_kwargs": {"thinking": False}}}

SUITE = "suites/niah/tale.yaml"
NIAH = ("--co", "-q", "suites/niah", "--rh-config", "config.yaml")
"""A session that collects."""


def text_of(data: Any) -> str:
    """A document as YAML, a key on a line."""
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text


def make(folder: Path) -> None:
    """Write the project, but for what a run leaves."""
    files = {
        SUITE: TALE,
        "suites/detect/heads.yaml": DETECT,
        "suites/ablate/mask.yaml": ABLATE,
        "suites/stored/stored.yaml": STORED,
        "config.yaml": CONFIG,
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text_of(data), encoding="utf-8")
    tales = folder / "tales"
    tales.mkdir()
    (tales / "a.txt").write_text("Once upon a time there was a boat. It sailed far away. Nobody saw it.\n" * 20)
    heads = folder / "heads"
    heads.mkdir()
    (heads / "heads.json").write_text(json.dumps(head_table()))


def head_table(layers: int = 4, heads: int = 4) -> dict[str, Any]:
    """A small `heads.json`."""
    rows = [[1.0 if (layer, head) == (1, 2) else 0.01 for head in range(heads)] for layer in range(layers)]
    return {
        "schema": "retrieval-heads-heads/1",
        "suite": "heads",
        "model": "toy",
        "layers": [
            {"path": f"layers.{number}", "number": number, "heads": heads, "sliding_window": None, "kind": "attention"}
            for number in range(layers)
        ],
        "counted": 6,
        "measured": 6,
        "stability_top_10": 1.0,
        "scores": {"copy": {"mean": rows, "low": rows, "high": rows}},
    }


def environment() -> dict[str, str]:
    """What tells the stand-in engine how to behave."""
    return {VARIABLE: Behaviour(retrieval_heads=[[1, 2]]).environment()}
