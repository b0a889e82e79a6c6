"""Items of a suite: their names, and every way of selecting them."""

from __future__ import annotations

import pytest
from project import NEEDLE, Project

BRIDGE = {"name": "bridge", "needle": "The bridge to Malmo opens at noon.", "question": "When does the bridge open?"}


def names(result: pytest.RunResult) -> list[str]:
    """The node ids that `--co -q` printed."""
    return [line for line in result.outlines if "::" in line]


def test_one_item_a_cell_depth_last(project: Project) -> None:
    project.suite()
    assert names(project.run("--co", "-q")) == [
        "suites/niah/tale.yaml::niah[len_128-depth_0]",
        "suites/niah/tale.yaml::niah[len_128-depth_50]",
        "suites/niah/tale.yaml::niah[len_128-depth_100]",
        "suites/niah/tale.yaml::niah[len_256-depth_0]",
        "suites/niah/tale.yaml::niah[len_256-depth_50]",
        "suites/niah/tale.yaml::niah[len_256-depth_100]",
    ]


def test_collecting_starts_no_engine_and_makes_no_folder(project: Project, workers: list[str]) -> None:
    project.suite()
    assert len(names(project.run("--co", "-q", *workers))) == 6
    assert project.starts == []
    assert not (project.path / "reports").exists()


def test_needle_and_seed_are_in_the_name_only_when_there_are_several(project: Project) -> None:
    sweep = {"context_lengths": [128], "document_depths": [50]}
    project.suite("several", needles=[{**NEEDLE, "name": "ferry"}, BRIDGE], sweep={**sweep, "seeds": [0, 7]})
    project.suite("single", needles=[BRIDGE], sweep={**sweep, "seeds": [7]})
    assert names(project.run("--co", "-q")) == [
        "suites/niah/several.yaml::niah[ferry-seed_0-len_128-depth_50]",
        "suites/niah/several.yaml::niah[bridge-seed_0-len_128-depth_50]",
        "suites/niah/several.yaml::niah[ferry-seed_7-len_128-depth_50]",
        "suites/niah/several.yaml::niah[bridge-seed_7-len_128-depth_50]",
        "suites/niah/single.yaml::niah[len_128-depth_50]",
    ]


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        (["-k", "depth_50"], 2),
        (["-k", "depth_5]"], 2),
        (["-k", "depth_5"], 4),
        (["-k", "len_256 and not depth_50]"], 2),
        (["-m", "niah"], 6),
        (["-m", "niah(length=256)"], 3),
        (["-m", "niah(length=256, depth=5)"], 1),
        (["-m", "niah(depth=50)", "-n", "2"], 2),
        (["--deselect", "suites/niah/tale.yaml::niah[len_256-depth_5]"], 5),
    ],
)
def test_selection(project: Project, arguments: list[str], passed: int) -> None:
    project.suite(sweep={"context_lengths": [128, 256], "document_depths": [0, 5, 50]})
    project.run(*arguments).assert_outcomes(passed=passed, deselected=6 - passed if "-n" not in arguments else 0)
    assert len(project.records()) == project.facts()["selected_cells"] == passed


@pytest.mark.parametrize(
    ("node", "passed"),
    [
        ("suites/niah/tale.yaml::niah[len_256-depth_50]", 1),
        ("suites/niah/tale.yaml::niah", 6),
        ("suites/niah/tale.yaml", 6),
        ("suites/niah", 6),
    ],
)
def test_a_node_id_selects(project: Project, node: str, passed: int) -> None:
    project.suite()
    project.run(node, suites=False).assert_outcomes(passed=passed)


def test_nothing_selected_starts_nothing(project: Project) -> None:
    project.suite()
    assert project.run("-k", "depth_51").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert project.starts == []


def test_last_failed_reruns_the_failed_cells_alone(project: Project) -> None:
    project.suite()
    project.behave(wrong_lengths=[256])
    project.run().assert_outcomes(passed=3, failed=3)
    result = project.run("--lf")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["run-last-failure: rerun previous 3 failures*"])
    assert {record.context_length for record in project.records()} == {256}


def test_stepwise_goes_on_at_the_failed_cell(project: Project) -> None:
    project.suite()
    project.behave(wrong_lengths=[256])
    project.run("--sw").assert_outcomes(passed=3, failed=1)
    project.behave()
    project.run("--sw").assert_outcomes(passed=3, deselected=3)


def test_exitfirst_stops_at_the_first_failed_cell(project: Project) -> None:
    project.suite()
    project.behave(wrong_lengths=[128])
    result = project.run("-x")
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["5 of 6 selected cells have no result"])
    assert len(project.records()) == 1


def test_durations_name_cells(project: Project) -> None:
    project.suite()
    project.run("--durations=0", "-vv").stdout.fnmatch_lines(
        ["*s call * suites/niah/tale.yaml::niah[[]len_128-depth_0]"]
    )


def test_without_the_plugin_a_suite_is_no_test(project: Project) -> None:
    project.suite()
    assert project.run("-p", "no:rh", config=False).ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert project.starts == []


def test_yaml_files_of_others_are_left_alone(project: Project) -> None:
    project.suite()
    project.write("suites/compose.yaml", "kind: Deployment\n")
    project.write("suites/broken.yaml", "[1,\n")
    project.run().assert_outcomes(passed=6)


def test_without_a_config_suites_in_a_tree_are_left_alone(project: Project) -> None:
    project.suite()
    project.pytester.makepyfile("def test_mine():\n    pass")
    project.run(config=False, suites=False).assert_outcomes(passed=1)
    assert project.starts == []


def test_without_a_config_a_named_suite_says_that_it_needs_a_model(project: Project) -> None:
    project.suite()
    result = project.run(config=False)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(errors=6)
    result.stdout.fnmatch_lines(["no model is named; give --rh-config FILE with `model: {model: NAME}`, or *"])


def test_a_suite_may_name_its_model(project: Project) -> None:
    project.suite(model={"model": "toy"})
    project.run(config=False).assert_outcomes(passed=6)


def test_a_users_own_tests_are_unaffected(project: Project) -> None:
    project.suite()
    project.pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("depth_50", [1, 2])
        def test_mine(depth_50):
            assert depth_50 == 1
        """
    )
    result = project.run(suites=False)
    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines(["*assert 2 == 1*"])
