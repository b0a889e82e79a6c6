"""What an item took is its own, whatever the batch it was asked in took."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from project import NEEDLE, Project

ONE = {"context_lengths": [128], "document_depths": [50]}


def test_a_record_has_its_own_time_and_its_waiting_apart(project: Project) -> None:
    project.suite()
    project.run().assert_outcomes(passed=6)
    for record in project.records():
        assert (record.seconds, record.engine_seconds) == (0.25, 0.125)
        assert record.queued_seconds is not None


@pytest.mark.parametrize("distribution", [[], ["-n", "2"]], ids=["plain", "xdist"])
def test_durations_and_junit_are_of_the_cell(project: Project, distribution: list[str]) -> None:
    project.suite(sweep=ONE)
    result = project.run("--durations", "0", "--junit-xml", "junit.xml", *distribution)
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r"0\.1\ds call +suites/niah/tale\.yaml::niah\[len_128-depth_50\]"])
    (case,) = ElementTree.parse(project.path / "junit.xml").iter("testcase")
    said = {one.get("name"): one.get("value") for one in case.iter("property")}
    assert float(case.get("time", 0)) >= 0.125
    assert next(iter(said)) == "key_words", "the score that decides stands first"
    assert (
        said.items()
        >= {
            "rougeL_recall": "1.0",
            "substring": "1.0",
            "length": "128",
            "depth": "50.0",
            "seed": "0",
            "model": "toy",
            "prompt_tokens": "128",
            "cached_tokens": "0",
            "engine_seconds": "0.125",
        }.items()
    )
    assert said["needle"]
    assert int(said["answer_tokens"] or 0) > 0


def test_an_arm_is_a_property(project: Project) -> None:
    project.behave(retrieval_heads=[[1, 2]])
    project.suite("masked", kind="ablate", sweep=ONE, ablate={"heads": [[1, 2], [0, 1]], "top": [1], "draws": 1})
    project.run("--junit-xml", "junit.xml", "--rh-verdict", "none")
    arms = {
        one.get("value")
        for one in ElementTree.parse(project.path / "junit.xml").iter("property")
        if one.get("name") == "arm"
    }
    assert "top_1" in arms


def test_a_timeout_is_of_the_item_and_not_of_what_everybody_waits_for(project: Project) -> None:
    project.behave(delay=8)
    project.suite(sweep=ONE)
    result = project.spawn("--timeout", "5")
    result.assert_outcomes(passed=1)


def test_a_failure_is_one_line_where_one_is_asked_for(project: Project) -> None:
    project.suite(sweep=ONE, needles=[{**NEEDLE, "needle": "The tram to Oslo leaves at noon."}])
    result = project.run("--tb", "line")
    result.assert_outcomes(failed=1)
    failures = [line for line in result.outlines if "is not above" in line]
    assert len(failures) == 1, "the short summary has the start of it"
    assert not any(line.lstrip().startswith(("question", "expected", "answer")) for line in result.outlines)


def test_off_a_terminal_nothing_moves(project: Project) -> None:
    project.suite()
    result = project.run()
    assert "\x1b[1A" not in result.stdout.str()
