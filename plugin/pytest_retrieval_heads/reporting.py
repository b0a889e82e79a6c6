"""What crosses from worker to controller on a test's report: its cell's record, why it failed, and no secret."""

from __future__ import annotations

import json

import pytest

from pytest_retrieval_heads.collect import CellItem
from pytest_retrieval_heads.failure import NoModel, as_failure
from retrieval_heads.engine.client import EngineDied
from retrieval_heads.redaction import without_values
from retrieval_heads.runs.record import dump_record


def complete(report: pytest.TestReport, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Put the record on a report, as plain builtins, and tell why there is none.

    Args:
        report: As pytest made it.
        item: The test, a cell or a user's own.
        call: What was called.
    """
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(item, CellItem) and call.when == "call":
        vars(report).update(rh=json.loads(dump_record(item.record)) if item.record else None)
        report.duration += item.own_seconds
    if report.failed and isinstance(error, EngineDied):
        # No answer is no verdict on a test. pytest and JUnit XML call that an error, and know it of setups alone.
        report.when = "setup" if call.when == "call" else report.when
        reason = str(error)
        report.longrepr = as_failure(reason, item.path)
        vars(report).update(rh_died=reason)
    elif report.failed and isinstance(error, NoModel):
        # Of a setup pytest asks no item how its failure is told.
        report.longrepr = as_failure(str(error), item.path)
    _take_out_secrets(report)


def _take_out_secrets(report: pytest.TestReport) -> None:
    """Of every test of the session: a user's own may print or compare what `rh_config` holds."""
    if isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        report.longrepr = (path, line, without_values(reason))
    elif report.longrepr is not None:
        text = str(report.longrepr)
        if (clean := without_values(text)) != text:
            report.longrepr = clean
    report.sections = [(name, without_values(text)) for name, text in report.sections]
