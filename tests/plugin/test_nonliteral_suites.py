"""A suite of needles that share no word with their question: items, gates over pairs, heads, a base score, a page."""

from __future__ import annotations

from project import ON_WORKERS_IF_LONG, Project

ASKED = {
    "needles": None,
    "generation": None,
    "task": {"name": "nonliteral", "questions": ["en"]},
    "sweep": {"context_lengths": [256], "document_depths": [0]},
    "gates": ["mean(one_name) >= 0.9", "max over pair(contains) >= 0.5"],
}


@ON_WORKERS_IF_LONG
def test_pairs_are_asked_judged_compared_and_shown(project: Project, workers: list[str]) -> None:
    project.suite(**ASKED)
    project.behave(needles=[], answer="Nora")
    result = project.spawn(*workers, "--rh-report", "--rh-set", "verdict=none")
    records = project.records()
    assert len(records) == 9
    assert all(record.metric == "one_name" and len(record.insertions or ()) == 2 for record in records)
    assert [record.passed for record in records] == [record.reference == "Nora" for record in records]
    result.stdout.fnmatch_lines(["base score 0.* (contains, arXiv 2502.05167)*"])
    assert "base score 0." in (project.latest / "report.html").read_text()
    text = (project.latest / "report.txt").read_text()
    assert text.count("base score") == 1, "of all pairs, and not of each"
    result = project.spawn("-k", "en_paris", "-m", "niah(depth=0)", "--rh-resume", "--rh-verdict", "none")
    result.stdout.fnmatch_lines(["collected 9 items / 8 deselected / 1 selected"])


def test_heads_are_scored_on_the_needle(project: Project) -> None:
    project.suite(**{**ASKED, "gates": None, "kind": "detect"})
    project.behave(needles=[], answer="Nora", retrieval_heads=[[1, 2]])
    project.spawn("-k", "en_paris or en_vegan or en_dairy", "--rh-verdict", "none")
    assert all(record.heads for record in project.records())
