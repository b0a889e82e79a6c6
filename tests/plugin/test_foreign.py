"""What another distribution brings with one file each works as what is built in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from project import ON_WORKERS_IF_LONG, Project
from stand_in_engine import FERRY

FOREIGN = Path(__file__).parents[1] / "foreign"
POINTS = """\
[retrieval_heads.tasks]
sums = foreign_task:SUMS

[retrieval_heads.backends]
calculator = foreign_backend:Calculator

[retrieval_heads.scorers]
early = foreign_scorer:early
"""


@pytest.fixture
def foreign(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project beside the distribution, as an installer leaves it."""
    info = project.path / "site" / "foreign_things-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign-things\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.setenv("PYTHONPATH", f"{FOREIGN}{os.pathsep}{info.parent}", prepend=os.pathsep)
    return project


def sums(project: Project, **keys: object) -> None:
    asked = {
        "haystack": None,
        "needles": None,
        "sweep": None,
        "task": {"name": "sums", "terms": [2, 3], "digits": [1, 2]},
    }
    project.suite("sums", **{**asked, **keys})


@ON_WORKERS_IF_LONG
def test_a_task_with_neither_depth_nor_needle(foreign: Project, workers: list[str]) -> None:
    gates = ["mean over terms(key_words) >= 0.1", "max over digits(pass_rate) >= 0.2"]
    sums(foreign, gates=gates)
    foreign.behave(answer="That is 7.")
    result = foreign.spawn(*workers, "--rh-report", "--rh-save-baseline", "first")
    records = foreign.records()
    assert [record.cell for record in records] == [
        f"niah/sums/seed_0/terms_{terms}/digits_{digits}" for terms in (2, 3) for digits in (1, 2)
    ]
    assert [record.axes for record in records] == [
        {"terms": terms, "digits": digits} for terms in (2, 3) for digits in (1, 2)
    ]
    assert all(record.question.startswith("What is ") and record.recipe for record in records)
    lines = [json.loads(line) for line in (foreign.latest / "results.jsonl").read_text().splitlines()]
    assert not {"needle", "context_length", "document_depth"} & set().union(*lines)
    told = json.loads((foreign.latest / "gates.json").read_text())
    assert [gate["gate"] for gate in told["gates"]] == gates
    result.stdout.fnmatch_lines(["*terms*mean*"])
    assert (foreign.latest / "heatmap.png").exists()
    page = (foreign.latest / "report.html").read_text()
    assert '"axis": "terms"' in page or '"axis":"terms"' in page


def test_its_cells_are_selected_and_compared(foreign: Project) -> None:
    sums(foreign)
    foreign.behave(answer="That is 7.")
    foreign.spawn("--rh-save-baseline", "first", "--rh-verdict", "none")
    result = foreign.spawn("-k", "terms_2", "-m", "niah(digits=1)", "--rh-baseline", "first", "--rh-verdict", "none")
    result.stdout.fnmatch_lines(["collected 4 items / 3 deselected / 1 selected"])
    again = foreign.spawn("--rh-baseline", "first", "--rh-allow-new")
    again.stdout.fnmatch_lines(["*held*"])
    resumed = foreign.spawn("--rh-resume", "--rh-verdict", "none")
    resumed.stdout.fnmatch_lines(["*4 of 4 answers are those of the earlier run*"])


def test_a_task_on_a_backend_that_takes_no_token_ids(foreign: Project, workers: list[str]) -> None:
    foreign.write("config.yaml", {"model": {"model": "pencil"}, "engine": {"kind": "calculator", "most": 2}})
    sums(foreign, gates=["mean over digits(pass_rate) >= 0.5", "min over terms(key_words) >= 0.1"])
    result = foreign.spawn(*workers, "--rh-report", "--rh-verdict", "gates")
    assert result.ret == 1, "sums of three terms are beyond it"
    result.stdout.fnmatch_lines(
        [
            "*terms*1*2*mean*",
            "*2*1.00*1.00*1.00*",
            "*3*0.00*0.00*0.00*",
            "*FAIL*min over terms(key_words) is 0 at terms 3*",
            "*ok*mean over digits(pass_rate) is 0.5*",
        ]
    )
    records = foreign.records()
    assert [record.passed for record in records] == [True, True, False, False]
    assert not any(record.token_ids or record.needle_span for record in records)
    facts = foreign.facts()
    assert (facts["engine"], facts["dtype"]) == ("calculator of 2 terms", "decimal")
    for name in ("heatmap.png", "profiles.png", "report.html"):
        assert (foreign.latest / name).stat().st_size > 1000
    assert not foreign.starts, "no other engine was started"


def test_a_scorer_that_has_a_name(foreign: Project) -> None:
    needle = {"needle": FERRY, "question": "When does the ferry leave?", "answer": "at dawn"}
    one = {"context_lengths": [128], "document_depths": [0, 100]}
    scoring = {"metric": "early", "threshold": 0.4}
    foreign.suite("ferry", needles=[needle], sweep=one, scoring=scoring, gates=["mean(early) >= 0.5"])
    foreign.behave(needles=[], answer="The ferry leaves at dawn")  # 17 of 24 letters stand before it
    result = foreign.spawn("-n", "2")
    result.stdout.fnmatch_lines(["*FAIL*mean(early) is 0.292*"])
    assert result.ret == 1
    assert [record.scores for record in foreign.records()] == [{"early": pytest.approx(7 / 24)}] * 2
    assert {(record.metric, record.passed) for record in foreign.records()} == {("early", False)}
    foreign.behave(needles=[], answer="At dawn leaves the ferry")
    assert foreign.spawn().ret == 0
    assert foreign.spawn("--rh-rescore", "--rh-set", "scoring.metric=earl").ret == 4


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"kind": "detect"}, "*sums.yaml:1: kind: detect takes a task whose prompts have spans*sums has none*"),
        ({"haystack": "tales"}, "*sums.yaml:*: haystack: the task sums has none; leave it out*"),
        (
            {"sweep": {"context_lengths": [128]}},
            "*sweep.context_lengths: the task has no axis length; its axes are terms, digits*",
        ),
        ({"gates": ["mean over depth(key_words) >= 0.5"]}, "*gates: gate *: expected terms or digits*"),
        (
            {"gates": ["effective_length(0.85) >= 1000"]},
            "*there is no axis length; those of the task are terms, digits*",
        ),
        ({"task": {"name": "sums", "terms": []}}, "*sums.yaml:*: task.terms: *"),
        ({"task": "sum"}, "*task: unknown task 'sum'; did you mean 'sums'? there are: needle, *, sums*"),
    ],
)
def test_what_it_cannot_do_is_told_at_collection(foreign: Project, keys: dict[str, object], sentence: str) -> None:
    sums(foreign, **keys)
    result = foreign.spawn("--co")
    assert result.ret == 2
    result.stdout.fnmatch_lines([sentence])
    assert not foreign.starts
