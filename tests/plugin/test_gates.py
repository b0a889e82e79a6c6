"""What a run as a whole must reach: gates in suites, a baseline, and where their verdict shows."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from project import ON_WORKERS_IF_LONG, Project, on_workers

from retrieval_heads.gates import BASELINE_SCHEMA, load_baseline

MEAN = "mean(rouge1_recall_novel) >= 0.8"
TEN = {"context_lengths": [128, 256], "document_depths": [0, 25, 50, 75, 100]}


def verdict(project: Project) -> dict[str, Any]:
    """What `gates.json` says."""
    found: dict[str, Any] = json.loads((project.latest / "gates.json").read_text("utf-8"))
    return found


def gate_lines(result: pytest.RunResult) -> list[str]:
    """The section of gates in the terminal."""
    lines = result.outlines
    start = next(index for index, line in enumerate(lines) if line.strip("-= ") == "gates") + 1
    return lines[start : next(index for index, line in enumerate(lines[start:], start) if line.startswith("results "))]


def compared(before: Path, now: Path, **options: Any) -> int:
    """The exit status of `retrieval-heads compare`."""
    from retrieval_heads.cli import Compare

    try:
        Compare(before, now, **options).run()
    except SystemExit as exited:
        return int(exited.code or 0)
    return 0


class TestGatesOfASuite:
    def test_gates_that_hold_pass_beside_the_cells(self, project: Project, workers: list[str]) -> None:
        project.suite(gates=[MEAN, "min over length(pass_rate) >= 1", "effective_length(0.9) >= 256"])
        result = project.run(*workers)
        result.assert_outcomes(passed=6 + 3)
        assert result.ret == 0
        assert gate_lines(result)[0] == "all 3 gates hold"
        assert [gate["measured"] for gate in verdict(project)["gates"]] == [1, 1, 256]
        assert verdict(project)["passed"] is True

    def test_a_broken_gate_alone_fails_the_run(self, project: Project, workers: list[str]) -> None:
        project.suite(gates=[MEAN, "max(pass_rate) >= 1"])
        project.behave(wrong_lengths=[256])
        result = project.run("--junit-xml", "junit.xml", *workers)
        result.assert_outcomes(passed=3 + 1, xfailed=3, failed=1)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        measured = "mean(rouge1_recall_novel) is 0.5, must be >= 0.8; worst 256/0 0"
        assert gate_lines(result)[:2] == ["1 of 2 gates broken", f"FAIL niah/tale: {measured}"]
        # Behind it pytest says why, as far as a line has room; pytest 8 says nothing where it has little.
        result.stdout.fnmatch_lines([f"FAILED suites/niah/tale.yaml::gate[[]{MEAN}]*"])
        cases = {case.get("name"): case for case in ElementTree.parse(project.path / "junit.xml").iter("testcase")}
        failure = cases[f"gate[{MEAN}]"].find("failure")
        assert failure is not None
        assert failure.get("message") == f"{measured}, 256/50 0, 256/100 0"
        assert cases["gate[max(pass_rate) >= 1]"].find("failure") is None

    def test_verdicts_none_and_cell(self, project: Project) -> None:
        project.suite(gates=[MEAN])
        project.behave(wrong_lengths=[256])
        none = project.run("--rh-verdict", "none")
        none.assert_outcomes(passed=3, xfailed=3 + 1)
        assert none.ret == 0
        cell = project.run("--rh-verdict", "cell")
        cell.assert_outcomes(passed=3, failed=3 + 1)

    def test_a_skipped_cell_breaks_a_gate_unless_allowed(self, project: Project) -> None:
        for allowed, status in ((None, 1), (True, 0)):
            project.suite(gates=[MEAN], allow_skipped=allowed)
            assert project.run("--rh-set", "model.max_model_len=200").ret == status
        assert "3 of 6 selected cells skipped" not in verdict(project)["gates"][0]["sentence"]

    def test_a_run_cut_short_breaks_its_gates(self, project: Project) -> None:
        project.suite(gates=["mean(pass_rate) >= 0.1"])
        project.write("suites/niah/test_first.py", "def test_first():\n    assert False\n")
        result = project.run("-x", "suites/niah/test_first.py", "suites/niah/tale.yaml", suites=False)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        (gates,) = project.path.glob("reports/*-tale/gates.json")  # no cell was answered, so that it is not the latest
        (gate,) = json.loads(gates.read_text())["gates"]
        assert "nothing was measured: 6 of 6 selected cells without a result" in gate["sentence"]

    def test_a_gate_of_nothing_is_a_usage_error(self, project: Project) -> None:
        project.suite()
        result = project.run("--rh-verdict", "gates")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stdout.fnmatch_lines(["*niah/tale: the verdict is gates, but there are none*"])
        assert project.starts == []

    @pytest.mark.parametrize(
        ("gate", "told"),
        [
            ("mean(rougeL_recal) >= 0.8", "unknown number 'rougeL_recal'; did you mean 'rougeL_recall'?"),
            ("mean(pass_rate) => 0.8", "expected a comparator (>=, >, <=, <)"),
            ("head_overlap(0) >= 0.8", "the number of best heads is a whole number of at least 1"),
            ("head_spearman(cpy) >= 0.8", "unknown number 'cpy'; did you mean 'copy'?"),
        ],
    )
    def test_a_malformed_gate_is_marked(self, project: Project, gate: str, told: str) -> None:
        project.suite(gates=[gate])
        result = project.run()
        assert result.ret == pytest.ExitCode.INTERRUPTED
        text = "\n".join(result.outlines)
        assert f"tale.yaml:17: gates.0: gate '{gate}': {told}" in text
        lines = text.splitlines()
        shown = next(index for index, line in enumerate(lines) if line.strip() == gate)
        assert lines[shown + 1].strip() == "^"
        assert project.starts == []

    def test_heads_cannot_agree_with_nothing(self, project: Project) -> None:
        project.suite(gates=["head_spearman() >= 0.9"])
        assert project.run().ret == 1
        assert "no baseline with head scores is given (--rh-baseline)" in verdict(project)["gates"][0]["sentence"]

    def test_github_gets_a_grid(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
        project.suite(gates=[MEAN])
        project.behave(wrong_lengths=[256])
        project.run()
        written = (project.path / "summary.md").read_text("utf-8")
        assert "the gate is broken" in written
        assert "| 128 | 1.00 | 1.00 | 1.00 |" in written
        assert "| 256 | 0.00 | 0.00 | 0.00 |" in written


class TestBaseline:
    def test_the_same_again_holds(self, project: Project, workers: list[str]) -> None:
        project.suite(sweep=TEN)
        first = project.run("--rh-save-baseline", "main", *workers)
        assert first.ret == 0
        stored = project.path / "suites/niah/baselines/main.jsonl"
        assert f"baseline of niah  {stored.relative_to(project.path)}" in first.outlines
        assert json.loads(stored.read_text().splitlines()[0]) == {
            "schema": BASELINE_SCHEMA,
            "cells": 10,
            "model": "toy",
            "model_revision": "main",
            "dtype": "float32",
            "engine": "stand-in 0",
            "device": "no device",
        }
        for named in ("main", "suites/niah/baselines/main.jsonl", "reports/latest"):
            result = project.run("--rh-baseline", named, *workers)
            result.assert_outcomes(passed=10 + 2)
            assert not any("WARN" in line for line in gate_lines(result))

    def test_a_drop_fails(self, project: Project, workers: list[str]) -> None:
        project.suite(sweep=TEN)
        project.run("--rh-save-baseline", "main")
        project.behave(wrong_lengths=[256])
        result = project.run("--rh-baseline", "main", "--rh-max-drop", "5%", *workers)
        result.assert_outcomes(passed=5, xfailed=5, failed=2)
        assert result.ret == 1
        assert "broken: drop 0.5, limit 0.05 (5%), too few pairs moved" in verdict(project)["gates"][0]["sentence"]
        assert project.run("--rh-baseline", "main", "--rh-max-drop", "60%").ret == 0
        only_one = ("--rh-max-drop", "0.9", "--rh-max-drop", "substring:0.1")
        assert project.run("--rh-baseline", "main", *only_one).ret == 1

    @pytest.mark.parametrize(
        ("lengths", "depths", "lost"),
        [
            pytest.param(range(100, 700, 100), [0, 50, 100], [100], id="3 of 18 cells"),
            pytest.param(range(100, 1600, 100), [0, 100], [100, 200], id="4 of 30 cells"),
        ],
    )
    def test_few_lost_cells_are_broken_though_a_paired_test_could_not_tell_them(
        self, project: Project, lengths: range, depths: list[int], lost: list[int]
    ) -> None:
        """McNemar's p is 0.125 and 0.0625, and no loss of so few cells could ever have less."""
        project.suite(sweep={"context_lengths": list(lengths), "document_depths": depths})
        assert project.run("--rh-save-baseline", "main").ret == 0
        project.behave(wrong_lengths=lost)
        against = ("--rh-baseline", "main", "--rh-inconclusive", "warn")
        result = project.run(*against, "--rh-save-baseline", "next", "--junit-xml", "junit.xml")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert gate_lines(result)[0] == "2 of 2 gates broken"
        assert len(ElementTree.parse(project.path / "junit.xml").findall(".//failure")) == 2
        assert (verdict(project)["outcome"], verdict(project)["passed"]) == ("broken", False)
        assert not (project.path / "suites/niah/baselines/next.jsonl").exists()
        before = project.path / "suites/niah/baselines/main.jsonl"
        assert compared(before, project.latest, inconclusive="warn") == 1

    @ON_WORKERS_IF_LONG
    def test_a_fall_that_noise_can_explain_is_inconclusive(self, project: Project, workers: list[str]) -> None:
        """Six of 30 cells lost and three gained: beyond 5 %, and McNemar's p is 0.25."""
        lengths = list(range(100, 1100, 100))
        project.suite(sweep={"context_lengths": lengths, "document_depths": [0, 50, 100]})
        project.behave(wrong_lengths=[1000])
        project.run("--rh-save-baseline", "main", "--rh-verdict", "none")
        project.behave(wrong_lengths=[100, 200])
        against = ("--rh-baseline", "main", "--rh-save-baseline", "next", "--junit-xml", "junit.xml", *workers)
        failed = project.run(*against)
        assert failed.ret == pytest.ExitCode.TESTS_FAILED
        assert gate_lines(failed)[0] == "2 of 2 gates inconclusive"
        assert [line.split(":")[0] for line in gate_lines(failed)[1:3]] == ["FAIL niah/tale"] * 2
        assert all(", inconclusive: drop 0.1, limit 0.05, but noise can" in line for line in gate_lines(failed)[1:3])
        assert "no baseline was saved: 2 of the gates are inconclusive" in failed.outlines
        assert len(ElementTree.parse(project.path / "junit.xml").findall(".//failure")) == 2
        assert (verdict(project)["outcome"], verdict(project)["passed"]) == ("inconclusive", False)
        assert not (project.path / "suites/niah/baselines/next.jsonl").exists()
        warned = project.run(*against, "--rh-inconclusive", "warn")
        assert warned.ret == 0
        assert gate_lines(warned)[0] == "2 of 2 gates inconclusive"
        assert [line.split(":")[0] for line in gate_lines(warned)[1:3]] == ["WARN niah/tale"] * 2
        assert all(", inconclusive: drop 0.1, limit 0.05, but noise can" in line for line in gate_lines(warned)[1:3])
        assert (verdict(project)["outcome"], verdict(project)["passed"]) == ("inconclusive", True)
        before = project.path / "suites/niah/baselines/main.jsonl"
        assert compared(before, project.latest) == 1
        assert compared(before, project.latest, inconclusive="warn") == 0

    def test_a_named_tolerance_adds_to_the_default_gates_and_only_replaces_them(self, project: Project) -> None:
        project.suite(sweep=TEN)
        project.run("--rh-save-baseline", "main")
        project.behave(wrong_lengths=[256])
        assert project.run("--rh-baseline", "main", "--rh-max-drop", "rougeL_f:0.9").ret == 1
        names = [gate["gate"] for gate in verdict(project)["gates"]]
        assert {"drop of pass_rate <= 0.05", "drop of rougeL_f <= 0.9"} <= set(names)
        assert project.run("--rh-baseline", "main", "--rh-max-drop", "only:rougeL_f:0.9").ret == 0

    def test_a_cell_that_the_baseline_lacks(self, project: Project) -> None:
        project.suite(sweep=TEN)
        project.run("-k", "len_128", "--rh-save-baseline", "main")
        new = project.run("--rh-baseline", "main")
        assert new.ret == 1
        assert "5 of 10 selected cells not in the baseline" in verdict(project)["gates"][0]["sentence"]
        assert project.run("--rh-baseline", "main", "--rh-allow-new").ret == 0

    def test_another_model_is_warned_of(self, project: Project) -> None:
        project.suite(sweep=TEN)
        project.run("--rh-save-baseline", "main")
        result = project.run("--rh-baseline", "main", "--rh-set", "model.model=other")
        assert result.ret == 0
        assert "WARN model differs: toy in the baseline, other now" in gate_lines(result)

    @pytest.mark.parametrize(
        ("content", "told", "workers"),
        on_workers(
            [
                (None, "there is neither * nor *suites/niah/baselines/old.jsonl"),
                ("", "the baseline is empty"),
                (
                    '{"schema": "retrieval-heads-baseline/9", "cells": 1}\n',
                    "baseline of schema 'retrieval-heads-baseline/9'",
                ),
                (f'{{"schema": "{BASELINE_SCHEMA}", "cells": 2}}\n', "the baseline holds no cell"),
            ]
        ),
    )
    def test_an_unusable_baseline_stops_the_run_before_it_starts(
        self, project: Project, workers: list[str], content: str | None, told: str
    ) -> None:
        project.suite()
        if content is not None:
            project.write("suites/niah/baselines/old.jsonl", content)
        result = project.run("--rh-baseline", "old", *workers)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stdout.fnmatch_lines([f"*{told}*"])
        assert project.starts == []
        assert not (project.path / "reports").exists()

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--rh-max-drop", "0.1"], "give --rh-baseline too"),
            (["--rh-baseline", "main", "--rh-max-drop", "5"], "a tolerance is 0 to below 1 (percent need a %)"),
            (["--rh-baseline", "main", "--rh-max-drop", "rouge:0.1"], "'rouge' cannot be compared; did you mean"),
            (["--rh-save-baseline", "../main"], "a name of letters"),
        ],
    )
    def test_options_that_cannot_be_used(self, project: Project, options: list[str], told: str) -> None:
        project.suite()
        project.run("--rh-save-baseline", "main")
        result = project.run(*options)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stdout.fnmatch_lines([f"*{told}*"])
        assert len(project.starts) == 1

    def test_what_is_broken_or_incomplete_is_no_baseline(self, project: Project) -> None:
        project.suite(gates=[MEAN])
        project.behave(wrong_lengths=[256])
        broken = project.run("--rh-save-baseline", "main")
        assert broken.ret == 1
        broken.stdout.fnmatch_lines(["no baseline was saved: 1 of the gates are broken"])
        project.suite()
        project.write("suites/niah/test_first.py", "def test_first():\n    assert False\n")
        first = ("suites/niah/test_first.py", "suites/niah/tale.yaml")
        result = project.run("-x", *first, "--rh-save-baseline", "main", suites=False)
        result.stdout.fnmatch_lines(["no baseline was saved: 6 of 6 selected cells have no result"])
        assert not (project.path / "suites/niah/baselines").exists()

    def test_compare_gives_the_same_verdict(self, project: Project, capsys: pytest.CaptureFixture[str]) -> None:
        from retrieval_heads.cli import Compare

        project.suite(sweep=TEN)
        project.run("--rh-save-baseline", "main")
        project.behave(wrong_lengths=[256])
        project.run("--rh-baseline", "main")
        inside = verdict(project)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            Compare(project.path / "suites/niah/baselines/main.jsonl", project.latest, json=Path("outside.json")).run()
        assert exited.value.code == 1
        outside = json.loads(Path("outside.json").read_text())
        assert outside["passed"] is inside["passed"] is False
        for ours, theirs in zip(outside["gates"], inside["gates"], strict=True):
            assert ours | {"suite": "niah/tale"} == theirs
        assert capsys.readouterr().out.splitlines()[0] == "2 of 2 gates broken"
        Compare(project.latest, project.latest).run()

    def test_a_saved_baseline_reads_as_it_was(self, project: Project) -> None:
        project.suite(sweep=TEN)
        project.behave(wrong_lengths=[256])
        project.run("--rh-save-baseline", "main")
        stored = {one.cell: one for one in load_baseline(project.path / "suites/niah/baselines/main.jsonl").records}
        assert {cell: (one.scores, one.passed) for cell, one in stored.items()} == {
            one.cell: (one.scores, one.passed) for one in project.records()
        }


class TestExpectationsOfHeads:
    """Every head but the copying ones has a score of 0: nine tenths of a top ten of both runs."""

    @pytest.mark.parametrize(("copying", "status"), [([[1, 1]], 0), ([[2, 2], [3, 3]], 1)])
    def test_heads_that_never_copied_are_not_found_again(
        self, project: Project, copying: list[list[int]], status: int
    ) -> None:
        before = {
            f"{layer}-{head}": [0.6 if (layer, head) == (1, 1) else 0.0] for layer in range(4) for head in range(4)
        }
        project.write("before.json", json.dumps(before))
        project.suite("heads", kind="detect", expect={"min_overlap_with": "before.json", "min_overlap": 0.8})
        project.behave(retrieval_heads=copying)
        result = project.run("--junit-xml", "junit.xml", "--rh-save-baseline", "main")
        assert result.ret == status
        (gate,) = verdict(project)["gates"]
        assert (gate["gate"], gate["outcome"]) == ("expect min_overlap >= 0.8", "broken" if status else "held")
        assert gate["measured"] == 1 - status
        assert "1 of the top 10 stand out in before.json, the others tie" in gate["sentence"]
        assert len(ElementTree.parse(project.path / "junit.xml").findall(".//failure")) == status
        assert (project.path / "suites/niah/baselines/main.jsonl").exists() is not bool(status)
        if status:
            assert any(
                line.startswith("broken: of the top 10 of before.json 0 % are found") for line in result.outlines
            )

    def test_a_head_that_never_copied_is_in_no_top(self, project: Project) -> None:
        project.suite("heads", kind="detect", expect={"top_heads": [[1, 1], [0, 0]]})
        project.behave(retrieval_heads=[[1, 1]])
        assert project.run().ret == 1
        sentence = "expected within the top 10: 0-0 is number 2 and never copied (by copy)"
        assert verdict(project)["gates"][0]["sentence"] == sentence
