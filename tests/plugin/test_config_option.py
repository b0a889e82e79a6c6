"""`--rh-config`, `rh_config` and `--rh-set`: what they override, and a config that is a suite itself."""

from __future__ import annotations

import pytest
from project import NEEDLE, Project

from retrieval_heads.runs.record import read_records

PREDECESSOR = {
    "model": {"model": "toy", "max_model_len": 32768, "dtype": "bfloat16", "language_model_only": True},
    "haystack": {
        "haystack_dir": "./tales",
        "needle": f"\n{NEEDLE['needle']}\n",
        "retrieval_question": NEEDLE["question"],
    },
    "sweep": {
        "context_lengths": {"min": 128, "max": 256, "intervals": 1},
        "document_depths": {"min": 0, "max": 100, "intervals": 2},
    },
    "output_dir": "./results/toy",
}
NODE = "configs/old.yaml::niah[len_256-depth_50]"


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        (["suites/niah"], 6),
        ([], 6),
        (["configs/old.yaml"], 6),
        (["configs"], 6),
        (["."], 6),
        ([NODE], 1),
        (["suites/niah", NODE], 1),
        (["-n", "2"], 6),
        (["suites/niah", "-k", "depth_50"], 2),
    ],
)
def test_a_config_with_a_haystack_stands_in_place_of_the_suites(
    project: Project, arguments: list[str], passed: int
) -> None:
    project.suite()
    project.write("configs/old.yaml", PREDECESSOR)
    result = project.run(*arguments, "--rh-config", "configs/old.yaml", config=False, suites=False)
    result.assert_outcomes(passed=passed, deselected=6 - passed if "-k" in arguments else 0)
    assert {path.name for path in (project.path / "results" / "toy").glob("*.jsonl")} == {"results.jsonl"}
    assert {record.wording for record in read_records(project.path / "results/toy/results.jsonl")} == {"document"}


def test_a_suite_named_beside_such_a_config_is_replaced_too(project: Project) -> None:
    project.suite()
    project.write("configs/old.yaml", PREDECESSOR)
    result = project.run("suites/niah/tale.yaml", "--rh-config", "configs/old.yaml", config=False, suites=False)
    result.assert_outcomes(passed=6)


def test_such_a_configs_node_id_is_printed_so_that_it_can_be_given_again(project: Project) -> None:
    project.write("configs/old.yaml", PREDECESSOR)
    result = project.run("--co", "-q", "--rh-config", "configs/old.yaml", config=False, suites=False)
    result.stdout.fnmatch_lines(["configs/old.yaml::niah[[]len_256-depth_50]"])


def test_last_failed_works_on_such_a_config(project: Project) -> None:
    project.write("configs/old.yaml", PREDECESSOR)
    project.behave(wrong_lengths=[256])
    arguments = ["--rh-config", "configs/old.yaml"]
    project.run(*arguments, config=False, suites=False).assert_outcomes(passed=3, failed=3)
    project.run("--lf", *arguments, config=False, suites=False).assert_outcomes(failed=3)


def test_the_config_and_set_override_the_suite(project: Project) -> None:
    project.suite(generation={"max_tokens": 16}, sweep={"context_lengths": [128], "document_depths": [0]})
    project.write("config.yaml", {"model": {"model": "toy"}, "sweep": {"document_depths": [0, 50]}})
    project.run("--rh-set", "sweep.context_lengths=[200]", "--rh-set", "generation.max_tokens=5").assert_outcomes(
        passed=2
    )
    assert [(record.context_length, record.document_depth) for record in project.records()] == [(200, 0), (200, 50)]


def test_the_ini_names_a_config(project: Project) -> None:
    project.suite()
    project.pytester.makeini("[pytest]\nrh_config = config.yaml\n")
    project.run(config=False).assert_outcomes(passed=6)


def test_the_inis_config_is_found_from_another_folder(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.suite(haystack=str(project.path / "tales"))
    project.pytester.makeini("[pytest]\nrh_config = config.yaml\n")
    monkeypatch.chdir(project.path / "suites")
    result = project.run("niah", config=False, suites=False)
    result.assert_outcomes(passed=6)


def test_the_option_goes_before_the_ini(project: Project) -> None:
    project.suite()
    project.pytester.makeini("[pytest]\nrh_config = nowhere.yaml\n")
    project.run().assert_outcomes(passed=6)


def test_with_an_ini_suites_are_collected_without_a_path(project: Project) -> None:
    project.suite()
    project.pytester.makeini("[pytest]\nrh_config = config.yaml\n")
    project.run(config=False, suites=False).assert_outcomes(passed=6)


def test_what_earlier_runs_left_is_not_collected(project: Project) -> None:
    project.suite()
    project.run(suites=False).assert_outcomes(passed=6)
    project.run("--rh-set", "output_dir=results", suites=False).assert_outcomes(passed=6)
    project.run(suites=False).assert_outcomes(passed=6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rh-config", "nowhere.yaml"], "ERROR: rh: *nowhere.yaml: no such file"),
        (["--rh-config", "typo.yaml"], "ERROR: rh: *typo.yaml:1: modle: unknown key; did you mean 'model'[?]"),
        (["--rh-set", "modle.model=toy"], "ERROR: rh: --rh-set: modle: unknown key; did you mean 'model'[?]"),
        (["--rh-set", "model"], "ERROR: rh: --rh-set model: expected section.key=value"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(
    project: Project, arguments: list[str], sentence: str, workers: list[str]
) -> None:
    project.suite()
    project.write("typo.yaml", "modle: toy\n")
    result = project.run(*arguments, *workers, config="--rh-set" in arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([sentence])
    assert len([line for line in result.outlines + result.errlines if line.strip()]) <= 4
    assert project.starts == []


def test_no_model_is_one_line(project: Project, workers: list[str]) -> None:
    project.suite()
    project.write("config.yaml", {"verdict": "none"})
    result = project.run(*workers)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["no model is named; give --rh-config FILE with `model: {model: NAME}`, or *"])
    assert project.starts == []


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"model": {"model": "other"}}, "name different models; one run has one engine"),
        ({"output_dir": "elsewhere"}, "name different output_dirs; one run has one folder"),
    ],
)
def test_suites_that_cannot_share_a_run_say_so(project: Project, keys: dict[str, object], sentence: str) -> None:
    project.suite("a", model={"model": "toy"})
    project.suite("b", **{"model": {"model": "toy"}, **keys})
    result = project.run(config=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines([f"*rh: the suites niah/a, niah/b {sentence}*"])


def test_the_header_names_config_and_model_once(project: Project) -> None:
    project.suite()
    assert project.run().outlines.count("rh: config.yaml, model toy") == 1


def test_help_lists_the_options(project: Project) -> None:
    project.run("--help", suites=False, config=False).stdout.fnmatch_lines(
        ["retrieval heads*", "*--rh-config*FILE*", "*--rh-set*KEY=VALUE*", "*--rh-report*", "*--rh-verdict*"]
    )


def test_the_marker_is_registered(project: Project) -> None:
    project.run("--markers", suites=False, config=False).stdout.fnmatch_lines(
        ["@pytest.mark.niah(length, depth, needle, seed): *"]
    )
