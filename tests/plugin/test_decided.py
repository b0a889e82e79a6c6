"""`until: decided`: a setting of a matrix is asked no more once its gates are certain."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from project import ON_WORKERS_IF_LONG, Project

SIXTY = {"context_lengths": [128, 160, 192, 224, 256], "document_depths": [0, 20, 40, 60, 80, 100], "seeds": [0, 1]}
FP8 = {"kv_cache_dtype": "fp8"}
NAMES = ("reference", "again", "fp8-kv")
NOT_WORSE = "fp8-kv: mean(pass_rate) >= reference - 0.1"


def decided(project: Project, **content: Any) -> list[str]:
    """Sixty cells under two settings, of which fp8-kv gets every answer wrong; the options that ask for them."""
    project.suite(sweep=SIXTY)
    said = {"matrix": {"reference": {}, "fp8-kv": {"model": FP8}}, "gates": [NOT_WORSE], "until": "decided"}
    project.write("kv.yaml", {**said, **content})
    project.behave(worse_under=FP8, served=str(project.path / "served"))
    return ["--rh-matrix", "kv.yaml"]


def asked(project: Project, setting: str = "fp8-kv") -> set[str]:
    return {one.cell for one in project.records() if one.setting == setting and one.status != "spared"}


def told(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project.latest / "matrix.json").read_text("utf-8"))
    return next(one for one in found["comparisons"] if one["setting"] == "fp8-kv")


@ON_WORKERS_IF_LONG
def test_a_setting_is_asked_no_more_once_its_gate_is_certain(project: Project, workers: list[str]) -> None:
    result = project.run(*decided(project), *workers, "--rh-report")
    assert result.ret == 1
    count = len(asked(project))
    assert 8 <= count < 30
    statuses = {name: Counter(one.status for one in project.records() if one.setting == name) for name in NAMES}
    assert statuses["reference"] == statuses["again"] == {"pass": 60}
    assert statuses["fp8-kv"] == {"low": count, "spared": 60 - count}
    # Each setting's engine is started once, and asked what was judged and nothing else.
    assert len(project.starts) == 3
    assert len((project.path / "served").read_text().splitlines()) == 120 + count
    found = told(project)
    assert (found["pairs"], found["spared"], found["unpaired"]) == (count, 60 - count, 0)
    assert found["differences"]["pass_rate"]["interval"][1] < -0.1
    assert found["differences"]["pass_rate"]["p_value"] < 0.05
    result.stdout.fnmatch_lines(
        [
            f"fp8-kv: {60 - count} of 60 cells spared*",
            f"FAIL *fp8-kv: pass_rate 0 against 1: difference -1.000 * in {count} of 60 cells, must be*",
        ]
    )
    facts = project.facts()
    assert facts["cells"]["spared"] == 60 - count
    assert facts["until_decided"] == {"fp8-kv": {"seed": 0, "spared": 60 - count}}
    assert facts["status"] == "finished"
    assert f"fp8-kv: {60 - count} of 60 cells spared" in (project.latest / "report.html").read_text("utf-8")


def test_the_cells_asked_are_a_random_part_and_the_same_for_everybody(project: Project) -> None:
    project.run(*decided(project), "-n", "2")
    first = asked(project)
    project.run(*decided(project))
    assert asked(project) == first
    assert len({cell.partition("/len_")[2].partition("/")[0] for cell in first}) > 1, "several lengths are among them"
    project.run(*decided(project, until={"decided": {"seed": 1}}))
    assert asked(project) != first


def test_a_setting_that_is_never_certain_is_asked_whole(project: Project) -> None:
    options = decided(project, gates=["fp8-kv: mean(pass_rate) >= reference - 0.05"])  # sixty equal cells tell 0.061
    project.behave()
    result = project.run(*options)
    assert result.ret == 1
    assert Counter(one.status for one in project.records()) == {"pass": 180}
    result.stdout.fnmatch_lines(["FAIL *fp8-kv: pass_rate 1 against 1: *in 60 cells*about * cells that come*"])


def test_a_setting_with_a_gate_of_another_kind_is_asked_whole(project: Project) -> None:
    gates = [NOT_WORSE, "fp8-kv: min(pass_rate) >= 0.5", "again: mean(pass_rate) >= reference - 0.3"]
    result = project.run(*decided(project, gates=gates))
    assert result.ret == 1
    assert len(asked(project)) == 60
    assert 20 <= len(asked(project, "again")) < 60
    result.stdout.fnmatch_lines(["ok *again: pass_rate 1 against 1: *of 60 cells*"])


def test_a_resumed_run_spares_the_same_cells_and_asks_none_again(project: Project) -> None:
    options = decided(project)
    project.run(*options)
    first, file = asked(project), project.latest / "results.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"again"' not in line][: 60 + 5]
    file.write_text("".join(kept))
    (project.path / "served").unlink()
    result = project.run(*options, "--rh-resume")
    assert result.ret == 1
    assert asked(project) == first
    assert len(project.records()) == 180
    had = sum('"status":"low"' in line.replace(" ", "") for line in kept)
    assert len((project.path / "served").read_text().splitlines()) == 60 + len(first) - had
    rescored = project.run(*options, "--rh-rescore")
    assert rescored.ret == 1
    assert asked(project) == first
    assert told(project)["spared"] == 60 - len(first)


def test_what_is_selected_by_name_is_asked(project: Project) -> None:
    options = decided(project)
    project.run(*options, "-k", "reference or fp8-kv")
    assert 8 <= len(asked(project)) < 30
    project.run(*options, "-k", "len_128")
    assert len(asked(project)) == 12, "no gate is judged of a part"
    project.run(*options, "-k", "fp8-kv")
    assert len(asked(project)) == 60, "there is nothing to compare with"


def test_a_setting_that_cannot_start_holds_nobody_up(project: Project) -> None:
    options = decided(project)
    project.behave(fail_under=FP8)
    result = project.run(*options)
    assert result.ret == 1
    assert Counter(one.status for one in project.records()) == {"pass": 120, "error": 60}


def test_tests_in_any_order_are_waited_for(project: Project) -> None:
    """Nobody waits for a setting whose turn comes after one that is to be decided."""
    options = decided(project)
    backwards = "\ndef pytest_collection_modifyitems(items):\n    items.reverse()\n"
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + backwards)
    project.write(
        "kv.yaml",
        {
            "matrix": {"reference": {}, "fp8-kv": {"model": FP8}, "last": {"model": {"kv_cache_dtype": "fp8_e5m2"}}},
            "gates": [NOT_WORSE, "last: mean(pass_rate) >= reference - 0.1"],
            "until": "decided",
        },
    )
    project.run(*options)
    assert 8 <= len(asked(project)) < 30
    assert len(asked(project, "last")) == 60


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"until": "done"}, "*until: decided is expected, or {decided: {seed: 0}}; found 'done'"),
        ({"until": {"decided": {"sed": 1}}}, "*until.decided.sed: unknown key; did you mean 'seed'?*"),
        ({"gates": []}, "*until: decided: no gate can be certain before all cells are asked*"),
        ({"gates": ["fp8-kv: min(pass_rate) >= 0.5"]}, "*until: decided: no gate can be certain*"),
    ],
)
def test_what_until_cannot_say(project: Project, content: dict[str, Any], sentence: str) -> None:
    result = project.run(*decided(project, **content))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([sentence])


def test_two_rules_for_which_cells_are_asked_are_one_too_many(project: Project) -> None:
    options = decided(project)
    project.suite(kind="detect", sweep={**SIXTY, "samples": "until_stable"})
    result = project.run(*options)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*sweep.samples: the matrix says `until: decided`, and both choose*"])
