"""Stored runs of any size, made up: for what draws them, never for a result about a model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from retrieval_heads.heads.table import Estimate, HeadTable
from retrieval_heads.report import StoredRun
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Record

NEEDLE = "The night guard of the Orrin museum keeps a spare key inside the brass telescope."
QUESTION = "Where does the night guard of the Orrin museum keep a spare key?"


def sample_record(length: int = 512, depth: float = 0, seed: int = 0, value: float = 1.0, **fields: Any) -> Record:
    """A cell's record whose passing score has that value."""
    said = "He keeps it inside the brass telescope." if value > 0.5 else "The spare key is in his pocket."
    data: dict[str, Any] = {
        "suite": "tale",
        "cell": f"niah/tale/seed_{seed}/len_{length}/depth_{depth:g}",
        "request": f"{length:08x}{round(depth * 100):06x}{seed:04x}",
        "status": "pass" if value > 0.5 else "low",
        "context_length": length,
        "document_depth": depth,
        "achieved_depth": depth,
        "prompt_tokens": length,
        "needle": NEEDLE,
        "needle_name": "key",
        "question": QUESTION,
        "reference": "inside the brass telescope",
        "seed": seed,
        "text": said,
        "token_ids": [1, 2, 3],
        "finish_reason": "stop",
        "scores": {
            "rouge1_recall": round(0.5 + value / 2, 4),
            "rouge1_recall_novel": value,
            "substring": float(value == 1),
        },
        "metric": "rouge1_recall_novel",
        "threshold": 0.5,
        "passed": value > 0.5,
        "around": ("A boat sailed by. ", " Nobody saw it again."),
        "seconds": 0.25,
    }
    if fields.get("status") in ("skipped", "error"):
        data |= {"scores": {}, "text": "", "passed": None}
    return Record.model_validate(data | fields)


def sample_records(lengths: Sequence[int], depths: Sequence[float], seeds: Sequence[int] = (0,)) -> list[Record]:
    """A whole grid; longer contexts score lower."""
    values = itertools.cycle([1.0, 0.75, 0.5, 0.25, 0.0, 1.0, 1.0])
    return [
        sample_record(length, depth, seed, next(values) if length > lengths[0] else 1.0)
        for seed in seeds
        for length in lengths
        for depth in depths
    ]


def sample_heads(layers: int = 4, heads: int = 8) -> HeadTable:
    """Scores of a few heads that retrieve among many that do not."""
    random = np.random.default_rng(0)
    copy = np.where(random.random((layers, heads)) < 0.05, random.random((layers, heads)), 0.01)
    copy[layers // 2, heads // 2] = 0.9
    mass = copy / 2
    return HeadTable(
        suite="tale",
        layers=tuple(Layer(f"model.layers.{n}", n, heads, 128 if n % 2 else None) for n in range(layers)),
        estimates={
            "copy": Estimate(copy, copy * 0.9, np.minimum(copy * 1.1, 1)),
            "mass": Estimate(mass, mass * 0.9, mass * 1.1),
        },
        counted=9,
        measured=10,
        stability=0.9,
    )


def sample_run(records: Sequence[Record] | None = None, **fields: Any) -> StoredRun:
    """A run of a small grid, with heads."""
    return StoredRun(
        **{
            "name": "tale",
            "records": sample_records([512, 1024, 2048], [0, 50, 100]) if records is None else records,
            "facts": {"model": "toy", "dtype": "float32", "began": "2026-01-02T03:04:05+0000"},
            "heads": {"tale": sample_heads()},
        }
        | fields
    )
