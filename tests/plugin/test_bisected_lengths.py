"""`sweep.samples: bisect_lengths`: the effective length without asking every length."""

from __future__ import annotations

from typing import Any

import pytest
from project import Project

LENGTHS = [128, 160, 192, 224, 256, 320, 384, 448]
GATE = "effective_length(0.85) >= 192"


def bisected(project: Project, reached: int, **keys: Any) -> None:
    sweep = {"context_lengths": LENGTHS, "document_depths": [0, 50, 100], "samples": "bisect_lengths"}
    project.suite(**{"sweep": sweep, "gates": [GATE], **keys})
    project.behave(wrong_lengths=[length for length in LENGTHS if length > reached])


def asked(project: Project) -> set[int | None]:
    return {one.context_length for one in project.records() if one.status != "spared"}


@pytest.mark.parametrize(
    ("reached", "lengths"),
    [(448, {128, 256, 384, 448}), (256, {128, 256, 320, 384}), (128, {128, 160, 192, 256})],
)
def test_the_effective_length_is_found_by_halving(project: Project, reached: int, lengths: set[int]) -> None:
    bisected(project, reached)
    result = project.run()
    assert asked(project) == lengths
    assert len(project.records()) == 24
    result.stdout.fnmatch_lines([f"*effective_length(0.85) is {reached}*, must be >= 192*"])
    assert result.ret == (0 if reached >= 192 else 1)
    assert project.facts()["cells"]["spared"] == 12
    result.stdout.fnmatch_lines(["spared: 4 of 8 lengths tell the effective length, if longer is not easier*"])


def test_it_is_what_all_lengths_would_give(project: Project, workers: list[str]) -> None:
    bisected(project, 224)
    project.run(*workers)
    first = asked(project)
    lines = project.latest.joinpath("results.jsonl").read_text().splitlines(keepends=True)
    project.latest.joinpath("results.jsonl").write_text("".join(lines[:5]))
    project.run("--rh-resume")
    assert asked(project) == first
    bisected(project, 224, sweep={"context_lengths": LENGTHS, "document_depths": [0, 50, 100]})
    result = project.run()
    assert len(asked(project)) == 8
    result.stdout.fnmatch_lines(["*effective_length(0.85) is 224*"])


def test_each_setting_of_a_matrix_finds_its_own(project: Project) -> None:
    bisected(project, 448)
    fp8 = {"kv_cache_dtype": "fp8"}
    project.behave(worse_under=fp8)
    said = {"matrix": {"reference": {}, "fp8-kv": {"model": fp8}}, "gates": [f"fp8-kv: {GATE}"]}
    project.write("kv.yaml", said)
    result = project.run("--rh-matrix", "kv.yaml")
    assert len(project.starts) == 3, "no engine is started twice"
    result.stdout.fnmatch_lines(["FAIL *fp8-kv: effective_length(0.85) is 0*"])
    result.stdout.fnmatch_lines(["ok *niah/tale: effective_length(0.85) is 448*"])
    lengths = {one.context_length for one in project.records() if one.setting == "fp8-kv" and one.status != "spared"}
    assert lengths == {128}, "what the shortest does not hold, no other does"
    project.write("kv.yaml", {**said, "gates": ["fp8-kv: effective_length(0.5) >= 192"]})
    other = project.run("--rh-matrix", "kv.yaml")
    assert other.ret == pytest.ExitCode.INTERRUPTED
    other.stdout.fnmatch_lines(["*give the suite a gate on effective_length(0.5) too"])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"gates": ["mean(pass_rate) >= 0.5"]}, "no gate of the suite measures one; give it one such as"),
        ({"kind": "detect"}, "bisect_lengths is of suites of kind niah; this one is of kind detect"),
        (
            {"sweep": {"context_lengths": LENGTHS, "document_depths": [0], "samples": "bisect"}},
            "until_stable is expected, or {until_stable: {top: 10}}, or bisect_lengths; found 'bisect'",
        ),
        (
            {
                "sweep": {
                    "context_lengths": LENGTHS,
                    "document_depths": [0],
                    "samples": {"bisect_lengths": {}, "until_stable": {}},
                }
            },
            "one of until_stable and bisect_lengths is expected",
        ),
    ],
)
def test_what_cannot_be_bisected(project: Project, keys: dict[str, Any], said: str) -> None:
    bisected(project, 448, **keys)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*{said}*"])
