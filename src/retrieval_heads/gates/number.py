"""The stored numbers that a gate may name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from retrieval_heads.gates.expression import OWN_METRIC
from retrieval_heads.runs.record import Record

PASS_RATE: Final = "pass_rate"
FIELDS: Final = ("achieved_depth", "cached_tokens", "prompt_tokens", "rougeL", "seconds")
"""Numbers that stand beside the scores in a record."""


def stored_number(record: Record, name: str) -> float | None:
    """A number of one record; `None` where the record does not hold it.

    Args:
        name: A score, `pass_rate` (1 where the cell passed, else 0), one of `FIELDS`, or `OWN_METRIC`.
    """
    if name == PASS_RATE:
        return None if record.passed is None else float(record.passed)
    if name in FIELDS:
        value = getattr(record, name)
        return None if value is None else float(value)
    return record.scores.get(record.metric if name == OWN_METRIC else name)


def number_names(records: Iterable[Record]) -> set[str]:
    """What a gate may name, given the scores that these records hold."""
    scores = (record.scores for record in records)
    return {PASS_RATE, *FIELDS, *(name for held in scores for name in held)}
