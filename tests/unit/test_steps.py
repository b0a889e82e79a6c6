"""Heads step by step: arrays that come back, the scores that they come to, and how far steps agree."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.detection import aggregate
from retrieval_heads.heads.steps import StepAgreement, figures_of, overlaps, write_steps
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Record, dump_record, parse_record
from retrieval_heads.runs.steps import Steps

LAYERS = [Layer("layers.0", 0, 3), Layer("layers.1", 1, 0, kind="MambaMixer2"), Layer("layers.2", 2, 2)]
COPIED = np.array([[[1, 0, 0], [0, 2, 0]], [[1, 3, 0], [0, 0, 0]], [[2, 3, 0], [0, 0, 0]]], dtype=np.int16)
MASS = np.array([[[0.5, 0.2, 0.0], [0.1, 0.9, np.nan]]] * 3, dtype=np.float32)


def record(number: int, steps: Steps | None) -> Record:
    heads = {name: [[0.5, 0.25, 0.0], [], [0.0, 0.25]] for name in ("copy", "mass")}
    return Record(
        context_length=512,
        document_depth=50,
        needle="n",
        cell=f"detect/{number}",
        kind="detect",
        suite="heads",
        passed=True,
        token_ids=[9, 7, 8, 9],
        thought_tokens=1,
        needle_span=(10, 14),
        heads=heads,
        steps=steps,
    )


def test_arrays_come_back_through_a_records_line() -> None:
    line = dump_record(record(0, Steps.of(COPIED, MASS)))
    found = parse_record(line, "results.jsonl").steps
    assert found is not None
    copied, mass = found.arrays()
    assert (copied.dtype, mass.dtype) == (np.int16, np.float32)
    assert np.array_equal(copied, COPIED)
    assert np.array_equal(mass, MASS, equal_nan=True)
    assert "steps" not in json.loads(dump_record(record(0, None)))


@pytest.mark.parametrize(
    "packed",
    ["", "no base64!", base64.b64encode(b"no zlib").decode(), base64.b64encode(zlib.compress(b"1234")).decode()],
)
def test_what_is_no_array_is_told(packed: str) -> None:
    broken = replace(Steps.of(COPIED, MASS), copied=packed)
    with pytest.raises(ResultsError, match=r"steps: two arrays of \[3, 2, 3\] figures are expected, packed"):
        broken.arrays()


def test_scores_are_derived_of_steps() -> None:
    found = figures_of(COPIED, MASS, 4)
    assert found["copy_reference"].tolist() == [[0.75, 0.5, 0], [0, 0.25, 0]]
    assert found["copy"].tolist() == [[0.5, 0.25, 0], [0, 0.25, 0]], "one head copied the first token twice"
    assert found["mass"][0].tolist() == pytest.approx([0.5, 0.2, 0])


def test_two_steps_agree_by_what_both_have_over_the_larger() -> None:
    members = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=bool)
    found = overlaps(members)
    assert found[0].tolist() == [1, 0.5, 0, 0]
    assert np.isnan(found[3, 3])


def test_steps_stand_in_one_file_that_numpy_reads(tmp_path: Path) -> None:
    steps = Steps.of(COPIED, MASS)
    broken = replace(steps, mass="")
    detection = aggregate([record(0, steps), record(1, None), record(2, broken), record(3, steps)], LAYERS)
    found = write_steps(detection, tmp_path / "steps.npz", {"suite": "heads", "model": "toy"})
    # Heads that copied: {0-0, 2-1}, {0-0, 0-1}, {0-0, 0-1}: pairs of 1/2, 1/2 and 1.
    assert found == StepAgreement(copy=pytest.approx(2 / 3), mass=1, samples=2, lacking=2)
    assert found.note == (
        "two steps of an answer share 67 % of the heads that copy and 100 % of the top 10 by mass; "
        "2 counted samples have no steps"
    )
    with np.load(tmp_path / "steps.npz") as file:
        stored: dict[str, Any] = dict(file)
    assert json.loads(str(stored["facts"])) == {"suite": "heads", "model": "toy"}
    assert stored["cells"].tolist() == ["detect/0", "detect/3"]
    assert stored["layers"].tolist() == [0, 2]
    assert stored["heads"].tolist() == [3, 2]
    assert stored["needle_tokens"].tolist() == [4, 4]
    assert np.array_equal(stored["copied.1"], COPIED)
    assert np.array_equal(stored["mass.1"], MASS, equal_nan=True)
    assert stored["tokens.0"].tolist() == [7, 8, 9], "the thought's token is no step"
    assert stored["overlap.0"].shape == (3, 3)


def test_without_steps_there_is_no_file(tmp_path: Path) -> None:
    found = write_steps(aggregate([record(0, None)], LAYERS), tmp_path / "steps.npz", {})
    assert not list(tmp_path.iterdir())
    assert found.note == "no two steps can be compared; 1 counted samples have no steps"
