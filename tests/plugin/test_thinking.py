"""A model that thinks before it answers: its record, its heads, a run that is resumed or scored again, the page."""

from __future__ import annotations

import pytest
from project import Project
from stand_in_engine import FERRY

from retrieval_heads.runs.record import parse_record

SAID = f"<think>Noon? No.</think>\n{FERRY}"
SMALL = {"context_lengths": [128], "document_depths": [50]}


@pytest.mark.parametrize("kind", ["niah", "detect"])
def test_thoughts_are_stored_and_do_not_count(project: Project, kind: str) -> None:
    project.suite(kind=kind, sweep=SMALL)
    project.behave(answer=SAID, needles=[], retrieval_heads=[[1, 2]])
    assert project.spawn("--rh-report").ret == 0
    (record,) = project.records()
    assert (record.text, record.thoughts, record.status) == (FERRY, "<think>Noon? No.</think>\n", "pass")
    assert 0 < (record.thought_tokens or 0) < len(record.token_ids)
    assert (record.heads is not None) == (kind == "detect")
    assert "Noon? No." in (project.latest / "report.html").read_text()
    resumed = project.spawn("--rh-resume")
    resumed.stdout.fnmatch_lines(["*1 of 1 answers are those of the earlier run*"])


def test_what_is_only_thought_fails_and_other_tags_are_scored_again(project: Project) -> None:
    project.suite(sweep=SMALL)
    project.behave(answer=f"<think>{FERRY}</think>I do not know.", needles=[])
    result = project.spawn()
    result.stdout.fnmatch_lines([f"    thoughts  '<think>{FERRY}</think>'", "    answer    'I do not know.' *"])
    again = project.spawn("--rh-rescore", "--rh-set", "scoring.thinking=false")
    assert again.ret == 0
    assert project.records()[0].thoughts is None


def test_a_detection_whose_every_answer_ends_in_thoughts_says_so(project: Project) -> None:
    project.suite(kind="detect", sweep=SMALL)
    project.behave(answer=f"<think>{FERRY}", needles=[])
    result = project.spawn()
    (record,) = project.records()
    assert (record.status, record.heads, record.text) == ("low", None, "")
    assert record.reason.startswith("stopped while thinking")
    result.stdout.fnmatch_lines(["stopped while thinking: *", "none of the 1 samples retrieved its needle*"])
    line = (project.latest / "results.jsonl").read_text().splitlines()[0].replace('"stop"', '"length"')
    assert parse_record(line, "results.jsonl:1").is_cut_off
