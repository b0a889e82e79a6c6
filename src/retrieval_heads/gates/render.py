"""A verdict for machines (`gates.json`), for GitHub's step summary and for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from retrieval_heads.gates.expression import OWN_METRIC
from retrieval_heads.gates.number import stored_number
from retrieval_heads.gates.verdict import WORST_SHOWN, Outcome, Verdict
from retrieval_heads.results import Record, finite_mean

GATES_SCHEMA: Final = "retrieval-heads-gates/1"


def to_json(verdict: Verdict) -> dict[str, Any]:
    """The content of `gates.json`: plain builtins, and null instead of NaN."""
    return {
        "schema": GATES_SCHEMA,
        "passed": verdict.passed,
        "gates": [_outcome(outcome) for outcome in verdict.outcomes],
        "warnings": list(verdict.warnings),
        "notes": list(verdict.notes),
    }


def lines(verdict: Verdict, width: int = 80) -> list[str]:
    """The verdict for a terminal: a headline, then one line a gate, broken ones first, then warnings.

    A broken gate names as many of its worst cells as fit the width, and at least one.
    """
    gates = [f"FAIL {_fitting(outcome, width - 5)}" for outcome in verdict.broken]
    gates += [f"ok   {outcome.line()}" for outcome in verdict.outcomes if outcome.passed]
    warnings = [
        line
        for warning in verdict.warnings
        for line in textwrap.wrap(f"WARN {warning}", width, subsequent_indent=" " * 5)
    ]
    notes = [line for note in verdict.notes for line in textwrap.wrap(note, width, subsequent_indent=" " * 5)]
    return [_headline(verdict), *gates, *warnings, *notes]


def to_markdown(verdict: Verdict, records: Iterable[Record], number: str = OWN_METRIC) -> str:
    """The verdict for `$GITHUB_STEP_SUMMARY`: headline, gates, warnings, and a grid of means per suite.

    Args:
        verdict: What was judged.
        records: The run's records; skipped cells and those in error are named in the grid, not averaged.
        number: What the grid shows; by default each record's own metric.
    """
    blocks = [f"### Retrieval heads: {_headline(verdict)}"]
    gates = [f"- {'✅' if outcome.passed else '❌'} {_code(outcome.line())}" for outcome in verdict.outcomes]
    warnings = [f"- ⚠️ {_code(warning)}" for warning in verdict.warnings]
    notes = [f"- {_code(note)}" for note in verdict.notes]
    if gates or warnings or notes:
        blocks.append("\n".join([*gates, *warnings, *notes]))
    grids: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        grids[(record.suite, record.arm)].append(record)
    blocks += [_grid(" ".join(filter(None, title)), grid, number) for title, grid in grids.items()]
    return "\n\n".join(blocks) + "\n"


def _headline(verdict: Verdict) -> str:
    count = len(verdict.outcomes)
    if count < 2:
        return "no gate was judged" if not count else f"the gate {'holds' if verdict.passed else 'is broken'}"
    broken = len(verdict.broken)
    return f"{broken} of {count} gates broken" if broken else f"all {count} gates hold"


def _fitting(outcome: Outcome, width: int) -> str:
    candidates = (outcome.line(worst) for worst in range(WORST_SHOWN, 1, -1))
    return next((line for line in candidates if len(line) <= width), outcome.line(1))


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "suite": outcome.suite,
        "gate": outcome.gate,
        "passed": outcome.passed,
        "measured": _finite(outcome.measured),
        "limit": _finite(outcome.limit),
        "sentence": outcome.sentence,
        "worst": list(outcome.worst),
        "figures": {name: _finite(value) for name, value in outcome.figures.items()},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _grid(title: str, records: Sequence[Record], number: str) -> str:
    depths = sorted({record.document_depth for record in records})
    cells: defaultdict[tuple[int, float], list[Record]] = defaultdict(list)
    for record in records:
        cells[(record.context_length, record.document_depth)].append(record)
    metrics = sorted({record.metric for record in records if record.metric})
    shown = number or (metrics[0] if len(metrics) == 1 else "pass metric")
    rows = [
        [str(length), *(_mean(cells.get((length, depth), []), number) for depth in depths)]
        for length in sorted({record.context_length for record in records})
    ]
    header = ["length \\ depth", *(f"{depth:g} %" for depth in depths)]
    table = [header, ["---:"] * len(header), *rows]
    caption = f"{_code(title)}: mean {shown}" if title else f"Mean {shown}"
    return f"{caption}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in table)


def _mean(records: Sequence[Record], number: str) -> str:
    """One place of the grid; what has no value is counted in words, so that no hole looks like a score."""
    values, holes = [], Counter[str]()
    for record in records:
        value = stored_number(record, number) if record.status in ("pass", "low") else None
        if value is None or not math.isfinite(value):
            holes[record.status if record.status in ("skipped", "error") else "no value"] += 1
        else:
            values.append(value)
    parts = [f"{finite_mean(values):.2f}"] if values else []
    parts += [why if len(records) == 1 else f"{count} {why}" for why, count in holes.items()]
    return ", ".join(parts) or "–"


def _code(text: str) -> str:
    """A code span: cell names and comparators are full of characters that mean something in Markdown."""
    return f"`{text.replace('`', chr(39))}`"
