"""A suite of RULER's tasks from YAML to gates and records; the stand-in says nothing about models."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from project import Project

import lm_eval_files
from retrieval_heads.tasks.ruler import harness

pytest.importorskip("wonderwords", reason="the extra ruler is not installed")

TASKS = (
    "niah_single_1 niah_single_2 niah_single_3 niah_multikey_1 niah_multikey_2 niah_multikey_3 niah_multivalue "
    "niah_multiquery vt cwe fwe"
)


def ruler(project: Project, kind: str = "niah", **keys: Any) -> None:
    asked = {
        "kind": kind,
        "needles": None,
        "task": "ruler",
        "sweep": {"context_lengths": [1024]},
        "generation": None,
    }
    project.suite("ruler", **{**asked, **keys})


def everything_expected(project: Project) -> str:
    project.run("--rh-verdict", "none")
    return " ".join(each for record in project.records() for each in record.expected or ())


def test_every_task_is_asked_judged_and_gated(project: Project) -> None:
    ruler(project, gates=["mean over task(string_match) >= 0.9", "mean(whole_words) >= 0.9"])
    project.behave(answer=everything_expected(project))
    result = project.run("--rh-report", "--rh-save-baseline", "first")
    assert result.ret == 0
    records = project.records()
    names = {str(record.place.get("task")) for record in records}
    assert names == set(TASKS.split())
    assert all(record.status == "pass" and record.prompt_tokens and record.prompt_tokens <= 1024 for record in records)
    assert all(record.recipe and record.recipe.options and record.recipe.options["words"] for record in records)
    gates = json.loads((project.latest / "gates.json").read_text())
    assert [gate["passed"] for gate in gates["gates"]] == [True] * 2
    assert (project.latest / "heatmap.png").exists()
    again = project.run("--rh-resume", "--rh-baseline", "first")
    assert again.ret == 0
    again.stdout.fnmatch_lines(["*11 of 11 answers are those of the earlier run*"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("niah_multikey_1", "vt", "cwe") else pytest.mark.long)
        for name in TASKS.split()
    ],
)
def test_a_right_answer_passes(project: Project, name: str) -> None:
    ruler(project, task={"name": "ruler", "tasks": [name]})
    project.run("--rh-verdict", "none")
    (record,) = project.records()
    project.behave(answer=" ".join(record.expected or ()))
    project.run().assert_outcomes(passed=1)


def test_heads_are_scored_where_there_are_spans(project: Project) -> None:
    names = [name for name in TASKS.split() if name not in ("cwe", "fwe")]
    ruler(project, kind="detect", task={"name": "ruler", "tasks": names}, verdict="none")
    project.behave(answer=everything_expected(project), retrieval_heads=[[1, 2]])
    assert project.run().ret == 0
    assert [record.heads and record.heads["copy"][1][2] for record in project.records()] == [1] * 9


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"kind": "detect"}, "*kind: detect takes prompts with spans, and cwe, fwe has none*"),
        ({"task": {"name": "ruler", "tasks": ["niah"]}}, "*ruler.yaml:*: task.tasks*"),
        ({"prompt": "document"}, "*prompt: the tasks of ruler have wordings of their own; leave it out*"),
        (
            {"sweep": {"context_lengths": [1024], "document_depths": [0]}},
            "*sweep.document_depths: the task has no axis depth; its axes are length, task*",
        ),
    ],
)
def test_bad_input_is_named_at_collection(project: Project, keys: dict[str, Any], sentence: str) -> None:
    ruler(project, **keys)
    result = project.run("--co")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([sentence])


def test_heads_are_scored_on_stored_answers_where_there_are_spans(project: Project) -> None:
    asked = {"name": "ruler", "tasks": ["niah_multiquery", "vt", "cwe"]}
    ruler(project, verdict="none", task=asked, sweep={"context_lengths": [3000]})
    project.behave(tokenizer="bytes")
    project.behave(answer=everything_expected(project), retrieval_heads=[[1, 2]], tokenizer="bytes")
    assert project.run().ret == 0
    stored = {"kind": "detect", "from_results": str(project.latest.resolve()), "verdict": "none"}
    project.write("suites/niah/ruler.yaml", stored)
    result = project.run("-v")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["*detect?len_3000-task_vt?*"])
    scored = {str(record.place.get("task")): record for record in project.records()}
    assert all(scored[name].heads["copy"][1][2] == 1 for name in ("niah_multiquery", "vt"))  # type: ignore[index]
    assert scored["cwe"].reason == "its answer stands at no one place that heads could be scored on"


def test_long_texts_of_their_own_are_built_ahead_by_the_engine_process(project: Project) -> None:
    tasks = ["vt", "niah_multikey_2", "niah_single_1"]
    ruler(
        project,
        verdict="none",
        task={"name": "ruler", "tasks": tasks},
        sweep={"context_lengths": [9000], "seeds": [0, 1]},
    )
    project.behave(tokenizer="bytes")
    project.write("config.yaml", {"model": {"model": "toy", "max_model_len": 16_000}})
    result = project.run()
    assert result.ret == 0
    assert sorted(record.status for record in project.records()) == ["low"] * 6
    log = (project.latest / "engine.log").read_text()
    assert ("long prompts are built ahead by" in log) == (len(os.sched_getaffinity(0)) > 1)
    assert "no prompt is built ahead any more" not in log


def test_rulers_wording_is_read_at_collection(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    lm_eval_files.folder()
    ruler(project, verdict="none", task={"name": "ruler", "wording": "ruler", "tasks": ["niah_multivalue", "vt"]})
    assert project.run().ret == 0
    records = project.records()
    assert all(record.recipe and record.recipe.options and record.recipe.options["wording"] for record in records)
    monkeypatch.setattr(harness, "PACKAGE", "lm_eval_that_is_not_there")
    harness.read_niah.cache_clear()
    result = project.run("--co")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["*task.wording: ruler reads RULER's texts from the package lm-eval, which is not installed*"]
    )
