"""A user's own folder, from the command line to the files and the exit status; with one engine and with two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conftest import ALL_CORES
from retrieval_heads.suites.suite import load_suite

if TYPE_CHECKING:
    from conftest import Outcome, OwnProject

pytestmark = pytest.mark.engine


def test_config_yaml_finds_the_haystack_wherever_it_is_read(
    own_project: OwnProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = load_suite(own_project.outcome.folder / "config.yaml")

    assert [cell.id for cell in resolved.cells] == list(own_project.outcome.records)


@pytest.mark.skipif(len(ALL_CORES) < 2, reason="two replicas need two cores")
@pytest.mark.usefixtures("all_cores")
def test_two_replicas_answer_as_one_engine(own_project: OwnProject, run_pytest: Callable[..., Outcome]) -> None:
    arguments = [str(own_project.suite), "--rh-config", str(own_project.config), "--rh-set", "engine.replicas=2"]
    outcome = run_pytest(*arguments, is_real=True)
    alone, shared = own_project.outcome.records, outcome.records
    compared = ("status", "reason", "text", "token_ids", "finish_reason", "scores", "needle_span", "recipe", "request")
    logs = [(outcome.folder / f"engine-{number}.log").read_text(encoding="utf-8") for number in (1, 2)]

    assert outcome.exit_status == 0, outcome.output
    assert shared.keys() == alone.keys()
    for cell, record in shared.items():
        assert {key: getattr(record, key) for key in compared} == {key: getattr(alone[cell], key) for key in compared}
    assert outcome.facts["replicas"] == 2
    assert len(set(outcome.facts["devices"])) == 2
    assert [log.count("Initializing a V1 LLM engine") for log in logs] == [1, 1]
    assert "Initializing a V1 LLM engine" not in outcome.engine_log
    assert outcome.left == []


def test_own_test_shares_the_engine_with_the_suite(own_project: OwnProject) -> None:
    outcome = own_project.outcome

    assert outcome.exit_status == 0, outcome.output
    assert "test_own.py ." in outcome.output
    assert "7 passed, 3 skipped" in outcome.output
    assert outcome.engine_log.count("Initializing a V1 LLM engine") == 1
    assert outcome.left == []


def test_cells_beyond_the_model_are_skipped_recorded_and_named(own_project: OwnProject) -> None:
    outcome = own_project.outcome
    skipped = [record for record in outcome.records.values() if record.status == "skipped"]
    reason = "5000 prompt tokens and 40 answer tokens do not fit max_model_len 1024"

    assert [(record.context_length, record.document_depth) for record in skipped] == [
        (5000, 0),
        (5000, 50),
        (5000, 100),
    ]
    assert {record.reason for record in skipped} == {reason}
    assert all(record.passed is None and not record.scores for record in skipped)
    assert outcome.facts["cells"] == {"pass": 6, "low": 0, "skipped": 3, "error": 0}
    assert f"skipped: length 5000 at depths 0, 50, 100: {reason}" in outcome.output
