"""A gate is of a whole suite: what is selected in part is told, and `--lf` asks the whole suite of a broken gate."""

from __future__ import annotations

import json

import pytest
from project import ON_WORKERS_IF_LONG, Project

MEAN = "mean(rouge1_recall_novel) >= 0.8"
GATE = f"suites/niah/tale.yaml::gate[{MEAN}]"
TALE = ("suites/niah/tale.yaml",)


def last_failed(project: Project) -> set[str]:
    """What pytest would ask again."""
    file = project.path / ".pytest_cache/v/cache/lastfailed"
    return set(json.loads(file.read_text())) if file.exists() else set()


def as_one_line(result: pytest.RunResult) -> str:
    """The terminal, its lines joined."""
    return " ".join(" ".join(result.outlines).split())


def test_of_a_part_no_gate_is_judged_and_that_is_told(project: Project, workers: list[str]) -> None:
    project.suite(gates=[MEAN, "max(pass_rate) >= 1"])
    result = project.run("-k", "len_128", *workers)
    result.assert_outcomes(passed=3, deselected=0 if workers else 3)
    assert result.ret == 0
    told = "niah/tale is partial: 3 of 6 cells are selected; what it demands of all of them is not judged"
    assert as_one_line(result).count(f"WARN {told}") == 1
    assert not (project.latest / "gates.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["suites", "-m", "niah(length=128)"],
        ["suites", "--deselect", "suites/niah/tale.yaml::niah[len_128-depth_0]"],
        ["suites/niah/tale.yaml::niah[len_128-depth_0]"],
    ],
)
def test_every_way_to_select_a_part_is_told(project: Project, arguments: list[str]) -> None:
    project.suite(gates=["mean(pass_rate) >= 1"])
    project.behave(wrong_lengths=[256])
    result = project.run(*arguments, suites=False)
    assert "failed" not in result.parseoutcomes()
    assert "WARN niah/tale is partial: " in as_one_line(result)


def test_a_broken_gate_selects_its_whole_suite(project: Project, workers: list[str]) -> None:
    project.suite(gates=[MEAN, "max(pass_rate) >= 1"])
    project.suite("other", gates=["max(pass_rate) >= 1"])
    project.write("suites/niah/test_mine.py", "import os\ndef test_mine():\n    assert os.path.exists('mine')\n")
    project.behave(wrong_lengths=[256])
    project.run(*workers)
    assert last_failed(project) == {GATE, "suites/niah/test_mine.py::test_mine"}
    again = project.run("--lf", *workers)
    again.assert_outcomes(passed=3 + 1, xfailed=3, failed=2)
    again.stdout.no_fnmatch_line("*niah/other*")
    assert last_failed(project) == {GATE, "suites/niah/test_mine.py::test_mine"}
    project.behave()
    project.write("mine", "")
    project.run("--lf", *workers).assert_outcomes(passed=6 + 2 + 1)
    assert last_failed(project) == set()


def test_an_errored_cell_and_a_broken_gate_select_the_whole_suite(project: Project) -> None:
    project.suite(gates=["mean(pass_rate) >= 0.9"])
    project.write("tales/a.txt", "Short.\n")
    project.behave(fail_after=3, delay=0.01)
    assert project.run().ret == 1
    project.write("tales/a.txt", "Once upon a time there was a boat. It sailed far away.\n" * 20)
    project.behave(wrong_lengths=[256])
    result = project.run("--lf")
    assert len(project.records()) == 6
    assert result.ret == 1
    assert GATE.replace(MEAN, "mean(pass_rate) >= 0.9") in last_failed(project)


@ON_WORKERS_IF_LONG
def test_a_part_that_passes_leaves_the_broken_gate_in_the_set(project: Project, workers: list[str]) -> None:
    project.suite(gates=[MEAN])
    project.behave(wrong_lengths=[256])
    project.run("--rh-set", "output_dir=out", *workers)
    whole = (project.path / "out/gates.json").read_text()
    assert '"passed": false' in whole
    project.behave()
    for part in (["-k", "len_128"], ["--lf", "-k", "depth_50]"]):
        assert project.run(*part, "--rh-set", "output_dir=out", *workers).ret == 0
        assert last_failed(project) == {GATE}
        assert (project.path / "out/gates.json").read_text() == whole
    project.run("--lf", "--rh-set", "output_dir=out", *workers).assert_outcomes(passed=6 + 1)
    assert last_failed(project) == set()
    assert '"passed": true' in (project.path / "out/gates.json").read_text()


def test_a_cut_short_run_leaves_no_cell_in_the_set_for_its_gate(project: Project) -> None:
    project.suite(gates=[MEAN])
    project.behave(wrong_lengths=[256])
    project.run()
    project.write("suites/niah/test_a.py", "def test_a():\n    assert False\n")
    project.run("suites/niah/test_a.py", *TALE, "--ff", "-x", "--deselect", "x", suites=False)
    project.run("--lf", "-k", "depth_50]")
    assert {one for one in last_failed(project) if "::niah[" in one} == set()


def test_failed_first_asks_the_suite_of_a_broken_gate_first(project: Project) -> None:
    project.suite("a")
    project.suite("b", gates=[MEAN])
    project.behave(wrong_lengths=[256])
    project.run("--rh-verdict", "gates", "suites/niah/b.yaml", suites=False)
    result = project.run("--ff", "-v", "--rh-verdict", "none")
    assert result.ret == 0
    lines = [line for line in result.outlines if line.startswith("suites/niah/") and "::niah[" in line]
    assert [line.partition(".yaml")[0][-1] for line in lines] == ["b"] * 6 + ["a"] * 6
    assert last_failed(project) == set(), "an xfail of the whole suite clears it, as pytest has it"


def test_a_gate_that_the_suite_has_no_more_leaves_the_set(project: Project) -> None:
    project.suite(gates=[MEAN])
    project.behave(wrong_lengths=[256])
    project.run()
    project.suite(gates=["mean(rouge1_recall_novel) >= 0.4"])
    project.run("--lf").assert_outcomes(passed=3 + 1, xfailed=3)
    assert last_failed(project) == set()


def test_two_suites_in_one_file_of_gates(project: Project) -> None:
    project.suite("a", gates=[MEAN])
    project.suite("b", gates=[MEAN])
    project.behave(wrong_lengths=[256])
    project.run("--rh-set", "output_dir=out")
    project.behave()
    result = project.run(
        *("suites/niah/a.yaml", "suites/niah/b.yaml::niah[len_128-depth_0]"), "--rh-set", "output_dir=out", suites=False
    )
    result.assert_outcomes(passed=6 + 1 + 1)
    told = json.loads((project.path / "out/gates.json").read_text())
    assert [(gate["suite"], gate["passed"]) for gate in told["gates"]] == [("niah/a", True), ("niah/b", False)]
    assert told["passed"] is False


def test_stepwise_newfirst_and_no_cache(project: Project) -> None:
    project.suite(gates=[MEAN])
    for option in ("--sw", "--nf"):
        project.run(option).assert_outcomes(passed=7)
    project.run("-p", "no:cacheprovider").assert_outcomes(passed=7)


def test_what_a_part_is_expected_to_show_is_not_judged(project: Project) -> None:
    project.suite(kind="detect", gates=None, expect={"top_heads": [[3, 3]], "within_top": 1})
    whole = project.run()
    assert whole.ret == 1
    part = project.run("-k", "len_128")
    assert part.ret == 0
    assert "WARN detect/tale is partial: 3 of 6 cells are selected; what it demands" in as_one_line(part)


def test_a_part_of_a_gated_suite_is_no_baseline(project: Project) -> None:
    project.suite(gates=[MEAN])
    result = project.run("-k", "len_128", "--rh-save-baseline", "main")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["no baseline was saved: niah/tale is partial, and its gates were not judged"])
