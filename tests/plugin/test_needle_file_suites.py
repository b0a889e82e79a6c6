"""A suite whose needles are a file's rows: items, heads, baselines, and answers that are scored again."""

from __future__ import annotations

import json

from project import Project
from stand_in_engine import FERRY

ROW = {
    "needle": FERRY,
    "question": "When does the ferry to Oslo leave?",
    "name": "ferry",
    "distractors": ["It is noon."],
}
SWEEP = {"context_lengths": [256], "document_depths": [0, 100]}


def test_rows_are_items_with_heads_a_baseline_and_a_page(project: Project) -> None:
    other = {**ROW, "name": "plain", "distractors": []}
    project.write("suites/niah/rows.jsonl", f"{json.dumps(ROW)}\n{json.dumps(other)}\n")
    project.suite(needles={"file": "rows.jsonl"}, sweep=SWEEP)
    project.suite("heads", kind="detect", needles={"file": "rows.jsonl"}, sweep={**SWEEP, "document_depths": [0]})
    project.behave(retrieval_heads=[[1, 2]])
    result = project.spawn("-n", "2", "--rh-report", "--rh-save-baseline", "first")
    result.assert_outcomes(passed=6)
    records = {record.cell: record for record in project.records()}
    assert sum(record.insertions is not None for record in records.values()) == 3
    assert sum(record.heads is not None for record in records.values()) == 2
    again = project.spawn("-k", "ferry", "-m", "niah(depth=0)", "--rh-rescore")
    again.assert_outcomes(passed=1, deselected=5)
    project.write("suites/niah/rows.jsonl", f"{json.dumps(ROW)}\n{json.dumps({**other, 'distractors': ['At 9.']})}\n")
    changed = project.spawn("--rh-baseline", "first")
    changed.stdout.fnmatch_lines(["*cells are not asked what the baseline was asked: question.task.file_hash*"])


def test_answers_of_a_task_without_a_haystack_are_scored_again(project: Project) -> None:
    book = {"name": "phonebook", "entries": [2]}
    project.suite(haystack=None, needles=None, task=book, sweep={"document_depths": [0]}, generation=None)
    project.spawn("--rh-verdict", "none")
    project.spawn("--rh-rescore", "--rh-verdict", "none").assert_outcomes(xfailed=1)
