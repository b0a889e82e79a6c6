"""A verdict for machines (`gates.json`), for GitHub's step summary and for a terminal."""

from __future__ import annotations

import json
import math
import textwrap
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from retrieval_heads.gates.expression import OWN_METRIC
from retrieval_heads.gates.number import stored_number
from retrieval_heads.gates.verdict import WORST_SHOWN, Outcome, Verdict, Word, worst_word
from retrieval_heads.runs.grid import Grid
from retrieval_heads.runs.place import DEPTH, shown
from retrieval_heads.runs.record import Record, finite_mean

_SIGNS: Final[Mapping[Word, str]] = {"broken": "❌", "inconclusive": "❓", "held": "✅"}
_WORDS: Final = tuple(_SIGNS)

GATES_SCHEMA: Final = "retrieval-heads-gates/1"


def to_json(verdict: Verdict) -> dict[str, Any]:
    """The content of `gates.json`: plain builtins, and null instead of NaN."""
    return {
        "schema": GATES_SCHEMA,
        "passed": verdict.passed,
        "outcome": verdict.outcome,
        "gates": [_outcome(outcome) for outcome in verdict.outcomes],
        "warnings": list(verdict.warnings),
        "notes": list(verdict.notes),
    }


def read_gates(folder: Path) -> dict[str, Any]:
    """What a run folder's `gates.json` says; nothing where there is none that can be read."""
    try:
        content = json.loads((folder / "gates.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and content.get("schema") == GATES_SCHEMA else {}


def with_kept(content: dict[str, Any], earlier: Mapping[str, Any], suites: Collection[str]) -> dict[str, Any]:
    """The content of `gates.json` with the gates of an earlier one for suites that were not judged now.

    Args:
        content: From `to_json`.
        earlier: From `read_gates`.
        suites: Those that were run in part.
    """
    gates = earlier.get("gates")
    kept = [gate for gate in gates if gate.get("suite") in suites] if isinstance(gates, list) else []
    return {
        **content,
        "gates": [*content["gates"], *kept],
        "passed": content["passed"] and all(gate.get("passed") is True for gate in kept),
        "outcome": worst_word(map(stored_word, [*content["gates"], *kept])),
    }


def stored_word(gate: Mapping[str, Any]) -> Word:
    """What became of a gate of `gates.json`; before 0.2.0 it held no word."""
    word = gate.get("outcome")
    if word in ("held", "broken", "inconclusive"):
        return cast(Word, word)
    return "held" if gate.get("passed") else "broken"


def lines(verdict: Verdict, width: int = 80) -> list[str]:
    """The verdict for a terminal: a headline, then one line a gate, broken ones first, then warnings.

    `FAIL` is a gate that fails the run, `WARN` an inconclusive one that does not. A gate that did not hold names as
    many of its worst cells as fit the width, and at least one.
    """
    gates = [
        f"FAIL {_fitting(outcome, width - 5)}"
        for word in _WORDS
        for outcome in verdict.failed
        if outcome.outcome == word
    ]
    gates += [f"WARN {_fitting(outcome, width - 5)}" for outcome in verdict.of("inconclusive") if outcome.passed]
    gates += [f"ok   {outcome.line()}" for outcome in verdict.of("held")]
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
    gates = [f"- {_SIGNS[outcome.outcome]} {outcome.outcome}: {_code(outcome.line())}" for outcome in verdict.outcomes]
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
    return headline([outcome.outcome for outcome in verdict.outcomes])


def headline(words: Sequence[str]) -> str:
    """What became of all gates, in a few words.

    Args:
        words: What became of each.
    """
    if not words:
        return "no gate was judged"
    if len(words) == 1:
        return {"held": "the gate holds", "inconclusive": "the gate is inconclusive"}.get(
            words[0], "the gate is broken"
        )
    return counts(words) or f"all {len(words)} gates hold"


def counts(words: Sequence[str]) -> str:
    """How many gates did not hold, such as `1 of 3 gates broken, 1 inconclusive`; empty where all did."""
    found = [(words.count(word), word) for word in _WORDS if word != "held" and word in words]
    if not found:
        return ""
    (count, word), *more = found
    return ", ".join([f"{count} of {len(words)} gates {word}", *(f"{count} {word}" for count, word in more)])


def _fitting(outcome: Outcome, width: int) -> str:
    candidates = (outcome.line(worst) for worst in range(WORST_SHOWN, 1, -1))
    return next((line for line in candidates if len(line) <= width), outcome.line(1))


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "suite": outcome.suite,
        "gate": outcome.gate,
        "passed": outcome.passed,
        "outcome": outcome.outcome,
        "measured": _finite(outcome.measured),
        "limit": _finite(outcome.limit),
        "sentence": outcome.sentence,
        "worst": list(outcome.worst),
        "figures": {name: _finite(value) for name, value in outcome.figures.items()},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _grid(title: str, records: Sequence[Record], number: str) -> str:
    grid = Grid.of(records).table
    down, across = grid.axes
    unit = " %" if across == DEPTH else ""
    metrics = sorted({record.metric for record in records if record.metric})
    metric = number or (metrics[0] if len(metrics) == 1 else "pass metric")
    rows = [
        [shown(row), *(_mean(grid.cells.get((row, column), []), number) for column in grid.acrosses)]
        for row in grid.downs
    ]
    header = [
        f"{down} \\ {across}" if across else down,
        *(f"{shown(column)}{unit}" if across else metric for column in grid.acrosses),
    ]
    table = [header, ["---:"] * len(header), *rows]
    caption = f"{_code(title)}: mean {metric}" if title else f"Mean {metric}"
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
