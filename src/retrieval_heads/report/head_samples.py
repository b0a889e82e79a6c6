"""What each sample of a detection measured on single heads: what the page shows of a head that is opened."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.table import HeadTable
from retrieval_heads.runs.record import Record

MOST_FIGURES: Final = 200_000
"""Figures of samples that a page holds, all heads and scores together; the best heads come first."""
MOST_STEPPED: Final = 12
"""The best heads whose steps it holds."""

Head = tuple[int, int]


def head_samples(table: HeadTable, records: Sequence[Record]) -> dict[str, object]:
    """The figures of single samples.

    Args:
        table: The detection's means.
        records: Every record of its suite that the page holds.

    Returns:
        `records`, places among those; `heads`, (row, head) of those that have figures, best first; `scores`, by name
        each head's figures in the order of `records`; `steps`, of samples that have them.
    """
    places = [place for place, record in enumerate(records) if _is_of(record, table)]
    measured = [records[place] for place in places]
    names = [name for name in table.estimates if any(name in (record.heads or {}) for record in measured)]
    if not names:
        return {"records": [], "heads": [], "scores": {}, "steps": []}
    room = max(MOST_STEPPED, MOST_FIGURES // (len(names) * len(measured)))
    heads = table.ranked(table.ranking)[:room]
    stepped = [(number, each) for number, record in enumerate(measured) for each in _steps(record, table)]
    return {
        "records": places,
        "heads": heads,
        "scores": {name: [[_figure(record, name, head) for record in measured] for head in heads] for name in names},
        "steps": [{"sample": number, **each} for number, each in stepped],
    }


def _is_of(record: Record, table: HeadTable) -> bool:
    """Whether a record's figures are those of the table's layers."""
    return bool(record.heads) and all(len(rows) == len(table.layers) for rows in (record.heads or {}).values())


def _figure(record: Record, name: str, head: Head) -> float | None:
    rows = (record.heads or {}).get(name)
    if rows is None or head[1] >= len(rows[head[0]]):
        return None
    value = rows[head[0]][head[1]]
    return round(value, 4) if math.isfinite(value) else None


def _steps(record: Record, table: HeadTable) -> Iterator[Mapping[str, object]]:
    """Of a sample with steps its tokens, and by head (its place among the best) what it did at each."""
    steps = record.steps
    if steps is None:
        return
    try:
        copied, mass = steps.arrays()
    except ResultsError:
        return  # something else stands in their place: `steps.npz` has none of them either
    scored = [int(layer.heads > 0) for layer in table.layers]
    before = [0, *accumulate(scored)]
    heads = table.ranked(table.ranking)[:MOST_STEPPED]
    if not len(copied) or copied.shape[1] != before[-1]:
        return
    yield {
        "tokens": record.token_ids[-len(copied) :],
        **({"answer": steps.answer, "needle": steps.needle} if len(steps.answer) == len(copied) else {}),
        "copied": [copied[:, before[row], head].tolist() for row, head in heads],
        "mass": [[round(float(value), 3) for value in mass[:, before[row], head]] for row, head in heads],
    }
