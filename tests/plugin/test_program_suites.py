"""Programs are a suite like any: items, gates over their axes, baselines, resumed runs, pages."""

from __future__ import annotations

import json

from project import ON_WORKERS_IF_LONG, Project

ASKED = {
    "haystack": None,
    "needles": None,
    "generation": None,
    "sweep": None,
    "task": {"name": "program", "variables": [2, 4], "steps": [1, 3], "kinds": ["recall", "state_tracking"]},
}


@ON_WORKERS_IF_LONG
def test_they_are_asked_judged_and_shown(project: Project, workers: list[str]) -> None:
    gates = ["mean over program(exact) >= 0.01", "max over steps(pass_rate) >= 0.1"]
    project.suite("code", **{**ASKED, "gates": gates})
    project.behave(answer="1")
    result = project.spawn(*workers, "--rh-report")
    records = project.records()
    assert len(records) == 6
    assert {record.cell for record in records} >= {
        "niah/program/seed_0/program_recall/variables_2/steps_0",
        "niah/program/seed_0/program_state_tracking/variables_4/steps_3",
    }
    assert all(record.metric == "exact" and record.needle_span is None for record in records)
    assert [record.scores["exact"] for record in records] == [float(record.reference == "1") for record in records]
    assert [gate["gate"] for gate in json.loads((project.latest / "gates.json").read_text())["gates"]] == gates
    result.stdout.fnmatch_lines(["*variables*mean*"])
    assert (project.latest / "heatmap.png").exists()
    assert "variables" in (project.latest / "report.html").read_text()


def test_their_cells_are_selected_compared_and_resumed(project: Project) -> None:
    project.suite("code", **ASKED)
    project.behave(answer="no")
    result = project.spawn("--rh-save-baseline", "first")
    result.assert_outcomes(failed=6)
    result.stdout.fnmatch_lines(["    place     program *, variables *, steps *"])
    project.spawn("--rh-save-baseline", "first", "--rh-verdict", "none")
    result = project.spawn("-k", "program_recall", "-m", "niah(variables=4)", "--rh-verdict", "none")
    result.stdout.fnmatch_lines(["collected 6 items / 5 deselected / 1 selected"])
    again = project.spawn("--rh-baseline", "first")
    again.stdout.fnmatch_lines(["*held*"])
    resumed = project.spawn("--rh-resume", "--rh-verdict", "none")
    resumed.stdout.fnmatch_lines(["*6 of 6 answers are those of the earlier run*"])


def test_a_config_of_the_predecessors_runs_as_it_is(project: Project) -> None:
    asked = {"num_vars": [8, 16], "num_steps": [2], "num_tasks": 2, "task_types": ["STATE_TRACKING"]}
    project.write("old.yaml", {"model": {"model": "toy"}, "code_eval": asked, "output_dir": "out", "report": True})
    project.behave(answer="1")
    result = project.spawn("--rh-config", "old.yaml", "--rh-report", "--rh-verdict", "none", config=False, suites=False)
    assert result.ret == 0
    assert len((project.path / "out" / "results.jsonl").read_text().splitlines()) == 4
    assert "overall" in (project.path / "out" / "report.txt").read_text()
