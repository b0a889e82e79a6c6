"""Suites that name their head scores: what is measured, told and stored, on a stand-in engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from project import Project

from retrieval_heads.heads.formats import read_table

SCORES = ["copy", "qr", "induction", "echo"]
TEXT = {"tokens": 8, "repeats": 3, "seeds": [1, 2]}


def heads(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project.path / "reports/latest/heads.json").read_text())
    return found


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "two workers"])
def test_what_a_suite_names_is_measured_and_its_cost_told(project: Project, workers: tuple[str, ...]) -> None:
    project.suite("heads", kind="detect", scores=SCORES, random_text=TEXT)
    project.behave(retrieval_heads=[[1, 1]])
    result = project.run(*workers)
    assert result.ret == 0
    found = heads(project)
    assert list(found["scores"]) == SCORES
    assert [one["text"]["seed"] for one in found["texts"]] == [1, 2]
    assert found["texts"][0]["text"]["scores"] == ["induction", "echo"]
    assert all(record.heads and record.heads.keys() == {"copy", "qr"} for record in project.records())
    assert all(record.other_replays and record.other_replays.keys() == {"N/A"} for record in project.records())
    facts = json.loads((project.path / "reports/latest/run.json").read_text())
    assert facts["other_replays"] == len(project.records()) + 2
    computed = sum(record.other_replays["N/A"].computed_tokens for record in project.records() if record.other_replays)
    assert facts["other_replay_tokens"] == computed + 2 * 24
    result.stdout.fnmatch_lines(["*induction, echo: 2 random texts of 8 tokens, 3 times each; 48 tokens computed, *"])
    result.stdout.fnmatch_lines([f"*head scores of other prompts: {facts['other_replays']} replays, *tokens computed*"])


def test_texts_are_those_of_the_run_whose_answers_are_scored_again(project: Project) -> None:
    project.suite("heads", kind="detect", scores=SCORES, random_text=TEXT)
    project.behave(retrieval_heads=[[1, 1]])
    assert project.run().ret == 0
    before = heads(project)
    assert project.run("--rh-rescore", "reports/latest").ret == 0
    assert heads(project)["texts"] == before["texts"]
    assert heads(project)["scores"] == before["scores"]


def test_a_text_that_does_not_fit_fails_the_run_in_a_sentence(project: Project) -> None:
    project.suite("heads", kind="detect", scores=SCORES, random_text=TEXT | {"repeats": 1000})
    project.behave(retrieval_heads=[[1, 1]])
    result = project.run("--rh-set", "model.max_model_len=4096")
    assert result.ret == 1
    said = "*no random texts of detect/heads: random_text: 1000 times 8 tokens do not fit max_model_len 4096*"
    result.stdout.fnmatch_lines([said])
    assert read_table(project.path / "reports/latest/heads.json").estimates.keys() == {"copy", "qr"}
    result.stdout.fnmatch_lines(["*not measured on every counted sample: induction, echo*"])
