"""Models of which no head can be scored, or masked: what needs one says so, and all else runs."""

from __future__ import annotations

import json

from project import Project

WHY = "no head of this model can be scored: its layers are MambaMixer2"
SWEEP = {"context_lengths": [128], "document_depths": [0, 100]}


def test_niah_suites_go_on_where_no_head_can_be_scored(project: Project) -> None:
    project.suite(sweep=SWEEP)
    project.suite("found", kind="detect", sweep=SWEEP)
    project.behave(unscored=WHY)
    result = project.run()
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines([f"rh: WARNING: toy: {WHY}", f"*{WHY}*", f"WARNING: toy: {WHY}"])
    result.stdout.fnmatch_lines(
        ["*retrieval heads: found*", "of 2 samples all are in error, so that no head is scored"]
    )
    assert project.facts()["warnings"] == [WHY]


def test_an_ablate_suite_says_at_its_start_what_cannot_be_masked(project: Project) -> None:
    project.suite(sweep=SWEEP)
    ablate = {"heads": [[1, 0]], "top": [1], "draws": 1}
    project.suite("cut", kind="ablate", sweep=SWEEP, ablate=ablate)
    project.behave(maskable=[])
    result = project.run()
    said = "WARNING: *cut: ablate: the heads of layers 0–3 can be scored and not masked; *models --check* says why"
    result.stdout.fnmatch_lines([f"rh: {said}", "*no head of this model can be masked*", said])
    records = [json.loads(line) for line in (project.latest / "results.jsonl").read_text("utf-8").splitlines()]
    masked = [record for record in records if record.get("arm")]
    assert [record["status"] for record in records if record not in masked] == ["pass"] * 4
    assert {record["status"] for record in masked} == {"error"}


def test_heads_of_one_layer_that_cannot_be_masked_are_told(project: Project) -> None:
    project.suite("cut", kind="ablate", sweep=SWEEP, ablate={"heads": [[1, 0]], "top": [1], "draws": 1})
    project.behave(maskable=[1, 2, 3])
    result = project.run()
    result.stdout.fnmatch_lines(["rh: WARNING: *cut: ablate: the heads of layer 0 can be scored and not masked; *"])
    result.assert_outcomes(passed=6)
