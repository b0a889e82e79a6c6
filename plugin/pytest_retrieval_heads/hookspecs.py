"""Hooks that a user's `conftest.py` or plugin may have; docs/hooks.md shows each at work.

A hook may leave out arguments that it does not need. What it raises is an error of the test or the run that called it;
the records and files of the run are written all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from retrieval_heads.gates import Verdict
    from retrieval_heads.runs.record import Record


def pytest_rh_engine_ready(info: Mapping[str, object]) -> None:
    """The session's engine has loaded its model, and is asked from now on.

    Called once, in the process that launched it: pytest's own, or xdist's controller. A run that is scored again has
    no engine.

    Args:
        info: What it says of itself and `run.json` holds: model, revision, dtype, device, engine, layers.
    """


def pytest_rh_record(record: Record, item: pytest.Item) -> Mapping[str, object] | None:
    """A cell was answered and scored, and its record is about to be written.

    Called for every record, also of cells that were skipped, are in error, or were answered by an earlier run; under
    xdist in the worker that has the item.

    Args:
        record: The cell's question, answer and scores.
        item: The cell's test.

    Returns:
        What the record holds under `extra`: plain JSON, by names that no other hook uses. `None` for nothing.
    """


def pytest_rh_verdict(verdict: Verdict, records: Sequence[Record], folder: Path) -> None:
    """The run's gates and its comparison with a baseline were judged, whether it came to its end or was cut short.

    Called once, where the engine was launched. Records, heads and `gates.json` are written; pictures, and what
    `run.json` says of the run's end, come later.

    Args:
        verdict: Every gate with its outcome; none where the suites demand nothing.
        records: Those of the run.
        folder: The run's.
    """
