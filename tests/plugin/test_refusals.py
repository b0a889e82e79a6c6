"""What a session refuses before anything is loaded, and what it shows of text that a terminal would obey."""

from __future__ import annotations

import json

import pytest
from project import NEEDLE, Project


@pytest.mark.parametrize("named", ["reports/latest", "reports/latest/results.jsonl", "again"])
def test_a_run_that_is_resumed_is_not_compared_with_itself(project: Project, named: str) -> None:
    project.suite()
    project.run()
    (project.path / "again").symlink_to(project.latest.resolve())
    result = project.run("--rh-resume", "--rh-baseline", named)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*--rh-baseline *: this run writes there*"])
    assert len(project.starts) == 1, "no engine was started for it"


def test_a_run_is_not_compared_with_what_it_replaces(project: Project) -> None:
    project.suite()
    project.run("--rh-set", "output_dir=out")
    before = (project.path / "out/results.jsonl").read_bytes()
    result = project.run("--rh-set", "output_dir=out", "--rh-baseline", "out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (project.path / "out/results.jsonl").read_bytes() == before
    assert project.run("--rh-set", "output_dir=other", "--rh-baseline", "out").ret == 0


@pytest.mark.parametrize("content", [None, "{}", '{"model": null}', '{"model": 5}', "[]", "[" * 500])
def test_rescoring_a_run_whose_model_is_unknown_is_refused(project: Project, content: str | None) -> None:
    project.suite()
    project.run()
    (project.latest / "run.json").unlink()
    if content is not None:
        (project.latest / "run.json").write_text(content)
    result = project.run("--rh-rescore")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--rh-rescore: *run.json: *"])


@pytest.mark.parametrize(("key", "value"), [("document_depth", -5), ("scores", {"rouge1_recall_novel": 17})])
@pytest.mark.parametrize("option", ["--rh-resume", "--rh-rescore"])
def test_stored_nonsense_is_refused_with_its_line(project: Project, key: str, value: object, option: str) -> None:
    project.suite()
    project.run()
    file = project.latest / "results.jsonl"
    first, *others = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(first), key: value}), *others]) + "\n")
    result = project.run(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"results.jsonl:1: {key}" in result.stdout.str() + result.stderr.str()


def test_escape_sequences_of_a_needle_do_not_reach_the_terminal(project: Project) -> None:
    title = "\x1b]0;owned\x07\x1b[2J"
    needle = {**NEEDLE, "question": f"When{title}?", "answer": f"at {title}dawn"}
    project.suite(needles=[needle])
    project.behave(answer=f"I do {title} not know.", wrong_lengths=[128, 256])
    result = project.run("--junitxml", "junit.xml", "-rA", "--color=no")
    assert result.ret == 1
    printed = result.stdout.str() + result.stderr.str() + (project.path / "junit.xml").read_text()
    assert "owned" in printed
    assert not {"\x1b", "\x07"} & set(printed)
