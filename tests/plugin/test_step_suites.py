"""What heads do at each step of an answer, kept beside a run; the stand-in's heads copy the needle's first token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from project import Project

from retrieval_heads.heads.steps import figures_of

HEADS = [[1, 0], [2, 3]]
SWEEP = {"context_lengths": [128, 256], "document_depths": [0, 100]}


def asked(project: Project) -> list[int]:
    """How many cells each engine was asked."""
    return [int(line) for line in (project.path / "asked").read_text().split()]


def steps(project: Project, name: str = "steps.npz") -> Any:
    return np.load(project.latest / name)


def test_the_steps_of_every_counted_sample_stand_in_one_file(project: Project, workers: list[str]) -> None:
    project.suite("heads", kind="detect", sweep=SWEEP, per_step=True)
    project.behave(retrieval_heads=HEADS, wrong_lengths=[256])
    result = project.run(*workers)
    result.stdout.fnmatch_lines(["two steps of an answer share 100 % of the heads that copy and 100 % of the top 10*"])
    found, records = steps(project), {record.cell: record for record in project.records()}
    assert found["cells"].tolist() == [cell for cell, record in records.items() if record.passed]
    assert (found["layers"].tolist(), found["heads"].tolist()) == ([0, 1, 2, 3], [4, 4, 4, 4])
    for number, cell in enumerate(found["cells"].tolist()):
        record, copied = records[cell], found[f"copied.{number}"]
        assert copied.shape == found[f"mass.{number}"].shape == (len(record.token_ids), 4, 4)
        assert np.argwhere(copied.all(0)).tolist() == HEADS
        assert found[f"tokens.{number}"].tolist() == record.token_ids
        assert record.steps is not None
        assert len(record.steps.answer) == len(copied)
        assert len(record.steps.needle) == found["needle_tokens"][number]
        assert np.nanmin(found[f"overlap.{number}"]) == 1
        derived = figures_of(copied, found[f"mass.{number}"], int(found["needle_tokens"][number]))
        assert derived["copy_reference"][1, 0] == pytest.approx(len(copied) / int(found["needle_tokens"][number]))


def test_a_resumed_run_keeps_its_steps_and_asks_for_those_that_it_lacks(project: Project) -> None:
    project.suite("heads", kind="detect", sweep=SWEEP, per_step=True)
    project.behave(retrieval_heads=HEADS, asked="asked")
    project.run("-k", "depth_0")
    project.run("--rh-resume").assert_outcomes(passed=4)
    whole = {name: array.tolist() for name, array in steps(project).items()}
    assert asked(project) == [2, 2]
    assert len(whole["cells"]) == 4
    project.run("--rh-resume", "--rh-set", "per_step=false").assert_outcomes(passed=4)
    assert asked(project) == [2, 2], "no engine"
    assert all(record.steps is None for record in project.records())
    project.run("--rh-resume").assert_outcomes(passed=4)
    assert asked(project) == [2, 2, 4], "records without steps are of no use to it"
    assert {name: array.tolist() for name, array in steps(project).items()} == whole


def test_stored_answers_have_steps_too(project: Project) -> None:
    project.suite("heads", kind="detect", sweep=SWEEP)
    project.behave(retrieval_heads=HEADS)
    project.run()
    assert not (project.latest / "steps.npz").exists()
    project.suite(
        "stored", kind="detect", from_results=str((project.latest / "results.jsonl").resolve()), per_step=True
    )
    project.run("-k", "stored")
    assert len(steps(project)["cells"]) == 4


def test_only_a_detection_has_steps(project: Project) -> None:
    project.suite(per_step=True)
    project.run().stdout.fnmatch_lines(["*tale.yaml:*: per_step: that is of suites of kind detect"])
