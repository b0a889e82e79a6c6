"""Each gate as a test of its own: pytest's summary, JUnit XML and `--lf` know it then."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pytest_retrieval_heads.judging import Judge
from pytest_retrieval_heads.last_failed import LastFailed
from pytest_retrieval_heads.options import Options
from retrieval_heads.errors import printable
from retrieval_heads.gates import Outcome, Verdict
from retrieval_heads.suites.settings import Settings


def report_gates(config: pytest.Config, verdict: Verdict, judge: Judge, options: Options, default: Settings) -> None:
    """Tell pytest of every gate.

    Args:
        config: pytest's.
        verdict: The gates, judged.
        judge: What demanded them.
        options: The session's.
        default: The settings of a suite that only a baseline knows.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and verdict.outcomes:
        reporter.write_ensure_prefix("gates ", "")
    judged: list[str] = []
    for outcome in verdict.outcomes:
        if (node := judge.plan.nodes.get(outcome.suite)) is None:
            demanding = judge.baseline_of(outcome.suite) or options.matrix
            node = _node_of(Path(demanding or outcome.suite), config.rootpath)
        settings = judge.settings.get(outcome.suite, default)
        report = _report_of(outcome, node, options.verdict_of(settings))
        judged.append(report.nodeid)
        config.hook.pytest_runtest_logreport(report=report)
    for suite, node in judge.plan.nodes.items():
        if judge.plan.is_whole(suite):
            LastFailed(config).settle(node, judged, partial(judge.is_no_gate, suite))


def _report_of(outcome: Outcome, node: str, verdict: str) -> pytest.TestReport:
    """The report of one gate.

    Args:
        outcome: The gate, judged.
        node: The id that the suite's items stand under.
        verdict: What decides the exit code; under `none` a broken gate is an xfail.
    """
    name, sentence = f"gate[{outcome.gate}]", printable(replace(outcome, suite="").line())
    report = pytest.TestReport(
        nodeid=f"{node}::{name}",
        location=(node.partition("::")[0], 0, f"{outcome.suite}::{name}"),
        keywords={},
        outcome="passed" if outcome.passed else "skipped" if verdict == "none" else "failed",
        longrepr=None if outcome.passed else sentence,
        when="call",
        user_properties=[("outcome", outcome.outcome), ("measured", outcome.measured), ("limit", outcome.limit)],
    )
    if report.skipped:
        report.wasxfail = sentence
    return report


def _node_of(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
