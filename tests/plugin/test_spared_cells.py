"""A detect suite that stops asking once its best heads are settled."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from project import Project

SIXTY = {"context_lengths": [128, 160, 192, 224, 256], "document_depths": [0, 20, 40, 60, 80, 100], "seeds": [0, 1]}


def until_stable(project: Project, **rule: Any) -> None:
    project.suite("heads", kind="detect", sweep={**SIXTY, "samples": {"until_stable": {"top": 2, **rule}}})
    project.behave(retrieval_heads=[[1, 1], [2, 3]])


def asked(project: Project) -> set[str]:
    return {record.cell for record in project.records() if record.status != "spared"}


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_cells_that_are_not_needed_are_spared(project: Project, workers: tuple[str, ...]) -> None:
    until_stable(project)
    result = project.run(*workers, "--junit-xml", "junit.xml")
    assert result.ret == 0
    assert Counter(record.status for record in project.records()) == {"pass": 20, "spared": 40}
    result.stdout.fnmatch_lines(["*20 of 60 cells settled the top 2; this one was not needed"])
    assert result.outlines[-1].strip("= ").startswith("20 passed, 40 spared in")
    assert project.facts()["cells"] == {"pass": 20, "low": 0, "skipped": 0, "error": 0, "spared": 40}
    assert project.facts()["status"] == "finished"
    heads = json.loads((project.latest / "heads.json").read_text())
    assert (heads["counted"], heads["asked"], heads["cells"]) == (20, 20, 60)
    assert 'skipped="0"' in (project.path / "junit.xml").read_text()


def test_the_cells_that_are_asked_are_a_random_part_and_the_same_for_everybody(project: Project) -> None:
    until_stable(project)
    project.run("-n", "2")
    first = asked(project)
    project.run()
    assert asked(project) == first
    until_stable(project, seed=1)
    project.run()
    assert asked(project) != first
    assert len({cell.partition("/seed_")[2] for cell in asked(project)} & first) == 0
    lengths = Counter(record.context_length for record in project.records() if record.status != "spared")
    assert len(lengths) == 5, "every length is among them"


def test_heads_that_are_not_settled_are_asked_for_to_the_limit(project: Project) -> None:
    until_stable(project, at_most=30)
    project.behave(retrieval_heads=[])
    result = project.run()
    assert Counter(record.status for record in project.records()) == {"pass": 30, "spared": 30}
    result.stdout.fnmatch_lines(["*at most 30 of 60 cells were to be asked*"])


def test_a_resumed_run_spares_the_same_cells_and_asks_none_again(project: Project) -> None:
    until_stable(project)
    project.run()
    first = asked(project)
    lines = project.latest.joinpath("results.jsonl").read_text().splitlines(keepends=True)
    project.latest.joinpath("results.jsonl").write_text("".join(lines[:11]))
    result = project.run("--rh-resume")
    assert result.ret == 0
    assert asked(project) == first
    assert len(project.records()) == 60
    result.stdout.fnmatch_lines(["*answers are those of the earlier run*"])
    rescored = project.run("--rh-rescore")
    assert rescored.ret == 0
    assert asked(project) == first


def test_spared_cells_break_no_gate_and_no_comparison(project: Project) -> None:
    until_stable(project)
    project.suite(
        "heads",
        kind="detect",
        gates=["mean(pass_rate) >= 1"],
        sweep={**SIXTY, "samples": "until_stable"},
    )
    assert project.run("--rh-save-baseline", "main").ret == 0
    project.suite("heads", kind="detect", sweep={**SIXTY, "samples": {"until_stable": {"seed": 5}}})
    result = project.run("--rh-baseline", "main")
    assert result.ret == 0, result.stdout.str()


def test_a_report_counts_them(project: Project) -> None:
    until_stable(project)
    result = project.run("--rh-report")
    assert result.ret == 0
    assert "40 spared" in (project.latest / "report.html").read_text()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "niah"}, "sweep.samples: until_stable is of suites of kind detect"),
        (
            {"kind": "detect", "sweep": {**SIXTY, "samples": 20}},
            "sweep.samples: until_stable is expected, or {until_stable: {top: 10}}, or bisect_lengths; found 20",
        ),
        (
            {"kind": "detect", "sweep": {**SIXTY, "samples": {"until_stable": {"tops": 3}}}},
            "unknown key; did you mean 'top'?",
        ),
    ],
)
def test_a_rule_that_cannot_be_followed_is_one_sentence(project: Project, keys: dict[str, Any], said: str) -> None:
    project.suite("heads", **{"sweep": {**SIXTY, "samples": "until_stable"}, **keys})
    result = project.run()
    assert result.ret != 0
    assert said in result.stdout.str() + result.stderr.str()


def test_masked_heads_wait_for_no_suite_that_may_stop(project: Project) -> None:
    until_stable(project)
    project.suite("masked", kind="ablate", ablate={"heads": "detect/heads", "top": [1], "draws": 1})
    result = project.run()
    assert result.ret != 0
    assert "it asks until they are stable (sweep.samples)" in result.stdout.str() + result.stderr.str()
