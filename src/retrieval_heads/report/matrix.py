"""A matrix on the page: settings by lengths, their costs, and the cells in which one and the reference part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from retrieval_heads.gates.number import PASS_RATE
from retrieval_heads.intervals import Interval
from retrieval_heads.matrix.comparison import Comparison, Difference, Pair, compare, first_parted
from retrieval_heads.matrix.settings import AGAIN, REFERENCE
from retrieval_heads.matrix.stored import costs, parts_more, spared
from retrieval_heads.report.differences import small_maps
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.place import LENGTH, in_order, shown
from retrieval_heads.runs.record import Record

MOST_SHOWN: Final = 30
"""Cells of a setting that are shown side by side."""
_LONGEST: Final = 2_000
"""Characters of an answer there."""
_LONGEST_WORD: Final = 30
"""Characters; what goes on longer without a space is none."""


def matrices(records: Sequence[Record], facts: Facts) -> list[dict[str, Any]]:
    """What the template shows of each suite that was asked under several settings.

    Returns:
        `suite`, `columns`, `rows` and `notes` (a table of settings by lengths), `maps` (small multiples of the
        change), `costs` (a table), and `parted`: by setting, cells that passed under one and not the other, with both
        answers.
    """
    comparisons = compare(records, facts)
    suites = dict.fromkeys(one.suite for one in comparisons)
    return [_matrix(suite, [one for one in comparisons if one.suite == suite], facts) for suite in suites]


def references(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    """By suite and cell of each record under a setting, the reference's record of the cell."""
    own = {(one.suite_id, one.cell): one for one in records if one.setting == REFERENCE}
    return {
        (one.suite_id, one.cell): own[at]
        for one in records
        if one.setting not in (None, REFERENCE)
        and (at := (one.suite_id.removesuffix(f"@{one.setting}"), one.cell)) in own
    }


def _matrix(suite: str, comparisons: Sequence[Comparison], facts: Facts) -> dict[str, Any]:
    lengths = in_order({value for one in comparisons for value in one.by.get(LENGTH, {})})
    rows = []
    for one in comparisons:
        whole = one.of(PASS_RATE)
        name = f"{one.setting} (noise)" if one.setting == AGAIN else one.setting
        rows.append(
            [
                name,
                _rate(whole),
                _change(whole),
                f"{whole.p_value:.3f}" if whole else "",
                f"{one.parting.equal:,} of {one.parting.pairs:,}",
                *(_short(one.by.get(LENGTH, {}).get(length)) for length in lengths),
            ]
        )
    first = comparisons[0].of(PASS_RATE)
    told = facts.get("settings", {})
    return {
        "suite": suite.partition("/")[2],
        "columns": [
            "setting",
            "pass rate",
            "difference",
            "p",
            "equal answers",
            *(f"{shown(length)} tokens" for length in lengths),
        ],
        "rows": [[REFERENCE, f"{first.reference:.3f}" if first else "–", "", "", "", *[""] * len(lengths)], *rows],
        "notes": [
            *(f"{name}: {state['failure'].splitlines()[0]}" for name, state in told.items() if state.get("failure")),
            *(spared(one) for one in comparisons if one.spared),
            *filter(None, [parts_more(comparisons)]),
        ],
        "maps": small_maps(comparisons),
        "costs": {
            "columns": [
                "setting",
                "start, s",
                "first result, s",
                "answers, s",
                "prompt tokens a second",
                "KV bytes a token",
            ],
            "rows": [[name, *_cost(state)] for name, state in told.items() if not state.get("failure")],
            "notes": [],
        },
        "parted": [part for one in comparisons if (part := _parted(one))["cells"]],
    }


def _cost(state: Mapping[str, Any]) -> list[str]:
    cost = costs(state)
    seconds = [cost[name] for name in ("engine_start_seconds", "first_seconds", "answer_seconds")]
    counts = [cost[name] for name in ("tokens_per_second", "kv_bytes_per_token")]
    return ["–" if value is None else f"{value:.1f}" for value in seconds] + [
        "–" if value is None else f"{value:,.0f}" for value in counts
    ]


def _parted(one: Comparison) -> dict[str, Any]:
    cells = [pair for pair in one.pairs if pair.reference.passed != pair.setting.passed]
    return {
        "setting": one.setting,
        "count": len(cells),
        "cells": [_side_by_side(pair) for pair in cells[:MOST_SHOWN]],
    }


def _side_by_side(pair: Pair) -> dict[str, Any]:
    """Both answers: what they share at their start, and where each goes on by itself."""
    texts = [pair.reference.text[:_LONGEST], pair.setting.text[:_LONGEST]]
    shared = shared_characters(*texts)
    token = first_parted(pair)
    seed = f"seed {pair.reference.seed}" if pair.reference.seed else ""
    return {
        "place": ", ".join(filter(None, [pair.reference.needle_name, seed, str(pair.reference.place)])),
        "token": None if token is None else token + 1,
        "sides": [
            {"name": name, "passed": bool(record.passed), "shared": text[:shared], "own": text[shared:]}
            for name, record, text in zip(
                (REFERENCE, pair.setting.setting or ""), (pair.reference, pair.setting), texts, strict=True
            )
        ],
    }


def shared_characters(one: str, other: str) -> int:
    """How many characters two answers share at their start; back to the start of a word that only one of them ends."""
    letters = zip(one, other, strict=False)
    at = next((at for at, (mine, theirs) in enumerate(letters) if mine != theirs), min(len(one), len(other)))
    if all(not rest or rest[0].isspace() for rest in (one[at:], other[at:])):
        return at
    word = at - len(one[:at].split(" ")[-1].split("\n")[-1])
    return word if at - word <= _LONGEST_WORD and one[word:at].isascii() else at


def _rate(found: Difference | None) -> str:
    return f"{found.setting:.3f}" if found else "–"


def _short(found: Difference | None) -> str:
    if found is None:
        return "–"
    return f"{found.setting:.2f} ({_signed(found.value, 2)})"


def _change(found: Difference | None) -> str:
    return f"{_signed(found.value)}{_interval(found.interval)}" if found else "–"


def _interval(interval: Interval | None) -> str:
    return f" [{_signed(interval.low)}, {_signed(interval.high)}]" if interval else ""


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")
