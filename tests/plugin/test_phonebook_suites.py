"""A phonebook is a suite like any: items, gates over its axes, baselines, resumed runs, pages, heads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from project import ON_WORKERS_IF_LONG, Project

from retrieval_heads.tasks.phonebook import _whole_book

ASKED = {
    "haystack": None,
    "needles": None,
    "generation": None,
    "task": {"name": "phonebook", "entries": [2, 5]},
    "sweep": {"document_depths": [0, 100]},
}


@ON_WORKERS_IF_LONG
def test_it_is_asked_judged_and_shown(project: Project, workers: list[str]) -> None:
    gates = ["mean over entries(exact) >= 0.1", "max over depth(pass_rate) >= 0.2"]
    project.suite("book", **{**ASKED, "gates": gates})
    project.behave(answer="I do not know.")
    result = project.spawn(*workers, "--rh-report")
    records = project.records()
    assert [record.cell for record in records] == [
        f"niah/phonebook/seed_0/entries_{entries}/depth_{depth}" for entries in (2, 5) for depth in (0, 100)
    ]
    assert all(record.metric == "exact" and record.scores == {"exact": 0} for record in records)
    assert all(record.status == "low" and record.needle_span and record.recipe for record in records)
    assert [gate["gate"] for gate in json.loads((project.latest / "gates.json").read_text())["gates"]] == gates
    result.stdout.fnmatch_lines(["*entries*mean*"])
    assert (project.latest / "heatmap.png").exists()
    assert "entries" in (project.latest / "report.html").read_text()


def test_a_right_answer_passes_and_a_low_one_says_what_was_expected(project: Project) -> None:
    project.suite("book", **ASKED)
    project.spawn("--rh-verdict", "none")
    first = project.records()[0].reference
    project.behave(answer=f"It is {first}.")
    result = project.spawn()
    result.assert_outcomes(passed=2, failed=2)  # the first entry is the same whatever follows
    result.stdout.fnmatch_lines(
        [
            f"the answer's digits are {first.replace('-', '')}, and not *",
            "    question  'Which number does the phonebook list for *'",
            "    score     exact 0.000, passes above 0.5",
            "    place     tokens *entries 2, depth 100",
        ]
    )


def test_its_cells_are_selected_compared_and_resumed(project: Project) -> None:
    project.suite("book", **ASKED)
    project.spawn("--rh-save-baseline", "first", "--rh-verdict", "none")
    result = project.spawn("-k", "entries_2", "-m", "niah(depth=0)", "--rh-verdict", "none")
    result.stdout.fnmatch_lines(["collected 4 items / 3 deselected / 1 selected"])
    again = project.spawn("--rh-baseline", "first")
    again.stdout.fnmatch_lines(["*held*"])
    resumed = project.spawn("--rh-resume", "--rh-verdict", "none")
    resumed.stdout.fnmatch_lines(["*4 of 4 answers are those of the earlier run*"])


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("detect", {}),
        ("ablate", {"ablate": {"heads": [[1, 2]], "top": [1], "draws": 1}}),
        ("compress", {"compress": {"scores": ["random"], "keep": [0.5], "draws": 1}}),
    ],
)
def test_heads_are_scored_masked_and_streamed_on_the_asked_line(
    project: Project, kind: str, more: dict[str, Any]
) -> None:
    project.suite("book", **{**ASKED, "sweep": {"document_depths": [0]}, "kind": kind, **more})
    project.behave(answer=_whole_book(1000, 0, "own")[0][1], kv_heads=2)
    result = project.spawn("--rh-verdict", "none")
    assert result.ret == 0
    records = project.records()
    assert all(record.status in ("pass", "low") and record.needle_span for record in records)
    if kind == "detect":
        assert all(record.heads for record in records)
    elif kind == "ablate":
        assert {record.arm for record in records} == {"", "top_1", "random_1_draw_1"}
    else:
        assert {record.arm for record in records} == {"", "random_keep_0.5_draw_1"}
        assert json.loads((project.latest / "compression.json").read_text())["points"][1]["cells"] == 2


def test_heads_are_scored_on_stored_answers(project: Project) -> None:
    project.suite("book", **{**ASKED, "sweep": {"document_depths": [0]}})
    project.behave(answer=_whole_book(1000, 0, "own")[0][1], tokenizer="bytes")
    project.spawn("--rh-verdict", "none")
    first = project.latest.resolve()
    project.write("suites/niah/book.yaml", {"kind": "detect", "from_results": str(first)})
    result = project.spawn("--rh-verdict", "none")
    assert result.ret == 0
    assert all(record.heads and record.needle_span and record.task == "phonebook" for record in project.records())
