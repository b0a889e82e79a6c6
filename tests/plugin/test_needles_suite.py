"""A suite of many needles, from YAML to gates, records and heads; the stand-in says nothing about models."""

from __future__ import annotations

import json
from typing import Any

import pytest
from project import NEEDLE, Project


def many(project: Project, kind: str = "niah", **keys: Any) -> None:
    asked = {
        "kind": kind,
        "needles": None,
        "task": {"name": "needles", "values": 2, "keys": 1, "moves": "all"},
        "sweep": {"context_lengths": [256], "document_depths": [0, 50]},
    }
    project.suite("many", **{**asked, **keys})


def values(project: Project) -> list[str]:
    """What the suite expects: the same at every place of a seed."""
    project.run("--rh-verdict", "none")
    return [str(each) for each in project.records()[0].expected or ()]


def test_a_suite_is_asked_judged_gated_and_resumed(project: Project, workers: list[str]) -> None:
    prompt = {"messages": [{"content": "{context}\n{question}"}], "prefill": "The codes are"}
    many(project, gates=["mean(string_match) >= 0.9", "mean over depth(whole_words) >= 0.9"], prompt=prompt)
    project.behave(answer=" and ".join(values(project)))
    result = project.run(*workers, "--rh-report", "--rh-save-baseline", "first")
    assert result.ret == 0
    records = project.records()
    assert [record.cell for record in records] == [f"niah/needles/seed_0/len_256/depth_{at}" for at in (0, 50)]
    for record in records:
        assert record.insertions is not None
        assert record.recipe is not None
        assert [each.role for each in record.insertions] == ["asked", "asked", "distractor"]
        assert (record.prompt_tokens, record.recipe.prefill, record.status) == (256, "The codes are", "pass")
    gates = json.loads((project.latest / "gates.json").read_text())
    assert [gate["passed"] for gate in gates["gates"]] == [True, True]
    resumed = project.run("--rh-resume", "--rh-baseline", "first")
    assert resumed.ret == 0
    resumed.stdout.fnmatch_lines(["*2 of 2 answers are those of the earlier run*"])
    again = project.records()
    assert [record.insertions for record in again] == [record.insertions for record in records]


def test_a_wrong_answer_is_told_with_every_needle(project: Project) -> None:
    many(project)
    first, second = values(project)
    project.behave(answer=f"It is {first}.")
    result = project.run("-k", "depth_50")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(
        [
            f"string_match 0.500 is not above 0.99: the answer lacks {second}",
            f"*expected  {first}, {second}",
            f"*asked     {first}, tokens * of 256, depth * % (asked 50 %)",
            f"*asked     {second}, tokens * of 256, depth * % (asked 75 %)",
            "*distractor*",
        ]
    )


def test_heads_are_scored_on_it(project: Project) -> None:
    many(project, kind="detect", verdict="none")
    project.behave(answer=" ".join(values(project)), retrieval_heads=[[1, 2]])
    assert project.run().ret == 0
    assert all(record.heads and record.heads["copy"][1][2] == 1 for record in project.records())


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"task": {"name": "needles", "values": 0}}, "*many.yaml:*: task.values: *"),
        ({"task": {"name": "needles", "need": 0}}, "*many.yaml:*: task.need: *"),
        ({"needles": [{"needle": "a", "question": "b"}]}, "*needles: the task needles has none; leave it out*"),
        (
            {"task": None, "needles": [NEEDLE], "scoring": {"metric": "whole_words"}},
            "*scoring.metric: needles have no score whole_words; accepted: *",
        ),
        ({"scoring": {"metric": "exact"}}, "*scoring.metric: the task has no score exact; accepted: string_match, *"),
        ({"haystack": None}, "*no haystack; expected *"),
        ({"sweep": {"context_lengths": [256]}}, "*sweep.document_depths: the grid is empty*"),
    ],
)
def test_bad_input_is_named_at_collection(project: Project, keys: dict[str, Any], sentence: str) -> None:
    many(project, **keys)
    result = project.run("--co")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([sentence])
