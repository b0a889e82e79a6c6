"""Conversations as suites: items, gates over what is asked, stored answers, heads on the asked reply, a file's rows."""

from __future__ import annotations

import json

from project import Project

from retrieval_heads.tasks.mrcr.writing import alike, prefix

ASKED = {
    "haystack": None,
    "needles": None,
    "generation": None,
    "task": {"name": "mrcr", "requests": [2]},
    "sweep": {"context_lengths": [800]},
}
FIRST = prefix(0) + alike(0, 2)[0].reply


def test_replies_are_asked_for_judged_compared_and_shown(project: Project) -> None:
    gates = ["mean over asked(ratio) >= 0.5", "max over requests(pass_rate) >= 0.5"]
    project.suite(**ASKED, gates=gates)
    project.behave(needles=[], answer=FIRST)
    result = project.spawn("-n", "2", "--rh-report", "--rh-save-baseline", "first")
    assert result.ret == 0
    first, second = project.records()
    assert (first.passed, first.scores) == (True, {"ratio": 1.0})
    assert second.passed is False
    assert 0.1 < second.scores["ratio"] < 0.9
    assert "ratio" in (project.latest / "report.html").read_text()
    again = project.spawn("--rh-resume", "-k", "asked_2", "-m", "niah(requests=2)", "--rh-baseline", "first")
    again.stdout.fnmatch_lines(["collected 2 items / 1 deselected / 1 selected", "*1 of * answers are those of*"])


def test_heads_are_scored_on_the_asked_reply_and_on_a_files_rows(project: Project) -> None:
    talk = [("user", "Sing."), ("assistant", "La la."), ("user", "Sing."), ("assistant", "Lo lo."), ("user", "Again?")]
    messages = [{"role": role, "content": text} for role, text in talk]
    row = {"prompt": messages, "answer": "XyLa la.", "random_string_to_prepend": "Xy", "n_needles": 2}
    project.write("suites/niah/talk.jsonl", f"{json.dumps(row)}\n")
    project.suite(**{**ASKED, "kind": "detect", "task": {"name": "mrcr", "requests": [2], "asked": [1]}})
    file = {"name": "mrcr_file", "file": "talk.jsonl"}
    project.suite("file", **{**ASKED, "kind": "detect", "task": file, "sweep": None})
    project.behave(needles=["XyLa la."], answer=FIRST, retrieval_heads=[[1, 2]])
    project.spawn("--rh-verdict", "none")
    records = project.records()
    assert len(records) == 2
    assert all(record.heads and len(record.insertions or ()) == 2 for record in records)
