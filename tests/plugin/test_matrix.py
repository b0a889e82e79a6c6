"""`--rh-matrix`: the same cells under several settings, each on an engine of its own, set against the reference."""

from __future__ import annotations

import json
from typing import Any

import pytest
from project import Project

KV = {"model": {"kv_cache_dtype": "fp8"}}


def matrix(project: Project, settings: dict[str, Any] | None = None, **content: Any) -> list[str]:
    """Write a matrix file; the options that name it."""
    project.write("kv.yaml", {"matrix": {"reference": {}, "fp8-kv": KV} if settings is None else settings, **content})
    return ["--rh-matrix", "kv.yaml"]


def told(project: Project) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((project.latest / "matrix.json").read_text("utf-8"))
    return content


def test_each_setting_asks_every_cell_on_an_engine_of_its_own(project: Project, workers: list[str]) -> None:
    project.suite()
    result = project.run(*matrix(project), *workers)
    result.assert_outcomes(passed=18)
    assert len(project.starts) == 3
    records = project.records()
    assert {(record.suite, record.setting) for record in records} == {
        ("tale", "reference"),
        ("tale@again", "again"),
        ("tale@fp8-kv", "fp8-kv"),
    }
    answered_by = {record.setting: record.answered_by for record in records}
    assert answered_by["reference"] == answered_by["again"] != answered_by["fp8-kv"]
    assert [one["setting"] for one in told(project)["comparisons"]] == ["again", "fp8-kv"]
    assert all(one["differences"]["pass_rate"]["difference"] == 0 for one in told(project)["comparisons"])
    assert set(told(project)["settings"]) == {"reference", "again", "fp8-kv"}
    identities = project.facts()["identities"]["models"].values()
    assert [one["fields"].get("kv_cache_dtype") for one in identities] == [None, "fp8"]


def test_where_no_engine_starts_each_gate_says_that_nothing_was_compared(project: Project, workers: list[str]) -> None:
    project.suite()
    project.behave(fail="the disk is gone")
    result = project.run(*matrix(project, gates=["fp8-kv: mean(pass_rate) >= reference - 0.1"]), *workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes() == {"errors": 18, "failed": 1}
    result.stdout.fnmatch_lines(["*the setting was not compared: it or the reference has no cell*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_items_carry_the_setting_in_their_name_and_marker(project: Project) -> None:
    project.suite()
    options = matrix(project)
    result = project.run(*options, "--collect-only", "-q", "-k", "fp8-kv")
    result.stdout.fnmatch_lines(["suites/niah/tale.yaml::fp8-kv::niah[[]len_128-depth_0]"])
    assert result.parseoutcomes()["deselected"] == 12
    chosen = project.run(*options, "--collect-only", "-q", "-m", "niah(setting='again')")
    chosen.stdout.fnmatch_lines(["suites/niah/tale.yaml::again::niah[[]len_128-depth_0]"])
    assert not project.starts


def test_a_worse_setting_is_seen_and_its_cells_are_named(project: Project) -> None:
    depths = [*range(0, 101, 5)]
    project.suite(sweep={"context_lengths": [128], "document_depths": depths})
    project.behave(worse_under={"kv_cache_dtype": "fp8"})
    result = project.run(*matrix(project, gates=["fp8-kv: mean(pass_rate) >= reference - 0.1"]), "--rh-report")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["again *+0.000*", "fp8-kv *-1.000*", "FAIL *fp8-kv: pass_rate 0 against 1*"])
    (_, found) = told(project)["comparisons"]
    assert found["differences"]["pass_rate"]["p_value"] < 0.001
    assert found["answers"]["equal"] == 0
    assert found["answers"]["first_token_that_differs"]["median"] == 0
    page = (project.latest / "report.html").read_text("utf-8")
    assert "fp8-kv: 21 cells passed under one and not the other" in page


def test_a_setting_that_cannot_start_is_an_error_of_its_own(project: Project, workers: list[str]) -> None:
    project.suite()
    project.behave(fail_under={"kv_cache_dtype": "fp8"})
    result = project.run(*matrix(project), *workers)
    result.assert_outcomes(passed=12, failed=6)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*setting fp8-kv: the engine of fp8-kv did not start: it cannot be*"])
    assert {record.status for record in project.records() if record.setting == "fp8-kv"} == {"error"}
    assert "did not start" in told(project)["settings"]["fp8-kv"]["failure"]


def test_a_reference_that_cannot_start_leaves_the_others_to_be_asked(project: Project) -> None:
    project.suite()
    project.behave(fail_under={"dtype": "broken"})
    result = project.run(
        *matrix(project, {"reference": {"model": {"dtype": "broken"}}, "fixed": {"model": {"dtype": "bfloat16"}}})
    )
    result.assert_outcomes(passed=6, failed=12)


def test_an_engine_that_there_is_not_is_refused_before_any_starts(project: Project) -> None:
    project.suite()
    options = matrix(project, {"reference": {}, "odd": {"engine": {"kind": "nowhere"}}})
    result = project.run(*options)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*engine.kind*nowhere*"])
    assert not project.starts


def test_a_key_that_the_engine_lacks_costs_its_setting_alone(project: Project) -> None:
    project.suite()
    result = project.run(*matrix(project, {"reference": {}, "typo": {"model": {"kv_cache_dtyp": "fp8"}}}))
    result.assert_outcomes(passed=12, failed=6)
    result.stdout.fnmatch_lines(["*setting typo: model.kv_cache_dtyp: there is no such engine argument; did you mean*"])
    assert len(project.starts) == 2


def test_a_name_is_given_once(project: Project) -> None:
    project.suite()
    project.write("kv.yaml", "matrix:\n  reference: {}\n  fp8: {model: {dtype: float16}}\n  fp8: {model: {seed: 1}}\n")
    result = project.run("--rh-matrix", "kv.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*kv.yaml:4: *fp8: this key is given twice, on lines 3 and 4*"])


def test_a_run_goes_on_setting_by_setting(project: Project) -> None:
    project.suite()
    options = matrix(project)
    project.run(*options, "-k", "reference or again")
    served = project.path / "served"
    project.behave(served=str(served))
    result = project.run(*options, "--rh-resume")
    result.assert_outcomes(passed=18)
    result.stdout.fnmatch_lines(["12 of 18 answers are those of the earlier run"])
    assert len(served.read_text().splitlines()) == 6


def test_gates_hold_break_or_say_how_many_cells_would_decide(project: Project) -> None:
    project.suite()
    gates = ["fp8-kv: mean(pass_rate) >= reference - 0.02", "again: min(pass_rate) >= 0.5"]
    result = project.run(*matrix(project, gates=gates))
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "FAIL *fp8-kv: pass_rate 1 against 1: difference +0.000 * in 6 cells, must be *about * cells that come*",
            "ok *again: min(pass_rate) is 1, must be >= 0.5",
        ]
    )
    assert project.run(*matrix(project, gates=gates), "--rh-inconclusive", "warn").ret == 0
    wide = project.run(*matrix(project, gates=["fp8-kv: mean(pass_rate) >= reference - 0.5"]))
    assert wide.ret == 0


def test_heads_are_compared_with_the_references(project: Project) -> None:
    project.suite(kind="detect")
    project.behave(retrieval_heads=[[1, 2], [3, 0]])
    gates = ["fp8-kv: head_overlap(2) >= 0.5"]
    result = project.run(*matrix(project, gates=gates))
    assert result.ret == 0, result.stdout.str()
    assert told(project)["comparisons"][1]["heads"]["spearman"] == pytest.approx(1)


def test_other_prompts_are_not_the_same_questions(project: Project) -> None:
    project.suite(sweep={"context_lengths": [1024], "document_depths": [0, 50, 100]})
    project.behave(bytes_under={"kv_cache_dtype": "fp8"})
    result = project.run(*matrix(project))
    assert result.ret == 1
    result.stdout.fnmatch_lines(["fp8-kv: niah/tale: the prompts of 3 of 3 cells are not the reference's tokens*"])
    assert project.run(*matrix(project), "--rh-allow-other-prompts").ret == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"matrix": {"reference": {}, "twin": {}}}, "kv.yaml:3: matrix.twin: it is the same as reference"),
        ({"matrix": {"a": KV, "b": KV}}, "*matrix.b: it is the same as a"),
        ({"matrix": {"again": KV}}, "*matrix.again: that is the reference asked a second time; name it otherwise"),
        ({"matrix": {"a b": KV}}, "*matrix: 'a b': a name of letters*"),
        ({"matrix": {"a": {"sweep": {}}}}, "*matrix: a: sweep: a setting changes model, engine, generation*"),
        ({"matrix": {"a": {"engine": {"replica": 2}}}}, "*matrix.a.engine.replica: unknown key*did you mean*"),
        ({"matrix": {}}, "*matrix*at least 1*"),
        ({"matrix": {"reference": {}}, "again": False}, "*matrix: there is nothing to compare the reference with"),
        ({"matrix": {"a": KV}, "gates": ["b: mean(pass_rate) >= reference"]}, "*gates: *there is no setting 'b'*"),
        ({"matrix": {"a": KV}, "gates": ["a: mean(speed) >= reference"]}, "*gates: *'speed' cannot be compared*"),
        ({"matrix": {"a": KV}, "gates": ["a: mean(pass_rate) >= reference - 3"]}, "*nothing could break 3"),
        ({"matrix": {"a": KV}, "gates": ["a: mean(pass_rate) <= reference"]}, "*expected such as*"),
        ({"settings": {}}, "*settings: unknown key*"),
    ],
)
def test_what_a_matrix_file_cannot_say(project: Project, content: dict[str, Any], sentence: str) -> None:
    project.suite()
    project.write("kv.yaml", content)
    result = project.run("--rh-matrix", "kv.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{sentence}"])
    assert not project.starts


def test_what_does_not_go_with_a_matrix(project: Project) -> None:
    project.suite()
    options = matrix(project)
    for other in (["--rh-baseline", "reports/latest"], ["--rh-save-baseline", "main"]):
        result = project.run(*options, *other)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*{other[0]}: a matrix compares settings with its own reference*"])
    assert project.run("--rh-matrix", "none.yaml").ret == pytest.ExitCode.USAGE_ERROR


def test_an_engine_that_dies_costs_its_own_cells(project: Project) -> None:
    project.suite()
    project.behave(die_under={"kv_cache_dtype": "fp8"})
    result = project.run(*matrix(project))
    # Its one answer may have reached us before it died, or not.
    assert result.parseoutcomes()["failed"] in (5, 6)
    assert {record.status for record in project.records() if record.setting != "fp8-kv"} == {"pass"}
    result.stdout.fnmatch_lines(["*setting fp8-kv: the engine of fp8-kv ended by signal SIGKILL*"])


def test_the_folder_holds_what_runs_it_again(project: Project) -> None:
    project.suite()
    project.run(*matrix(project))
    kept = project.latest.resolve()
    again = project.run(
        "--rh-config", str(kept / "config.yaml"), "--rh-matrix", str(kept / "matrix.yaml"), config=False, suites=False
    )
    again.assert_outcomes(passed=18)


def test_a_setting_that_says_what_the_config_says_is_refused(project: Project) -> None:
    project.suite()
    project.write("config.yaml", {"model": {"model": "toy", "kv_cache_dtype": "fp8"}})
    result = project.run(*matrix(project))
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*matrix.fp8-kv: what it says is what suite and config say already*same as reference"])
