"""What the verdicts of a matrix are worth: false alarms between equal settings, falls that are caught, cells spared.

    python benchmarks/matrix.py                                   # a pass rate of 0.8, simulated
    python benchmarks/matrix.py --results reports/latest/results.jsonl --runs 200
    python benchmarks/matrix.py --settings reports/latest           # a matrix that was asked whole

Equal settings: two answers of each cell, which passed as in the results (or with the pass rate), and each of which
is turned over by chance at the rate of `--flips`: what noise of the engine does. `again` of a run says which rate that
is. A fall: cells that passed are lost, each with the same probability. All judged by the functions that judge a run.
Of results of a matrix its reference's are taken. `--settings` judges the settings of a run at each margin, whole and as
`until: decided` would have stopped them. Cells asked are those of whole parts, as a run hands them over.
A JSON line for each row, then a table. No model, no engine.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from retrieval_heads.gates.number import PASS_RATE
from retrieval_heads.gates.paired import fall_p_value
from retrieval_heads.intervals import Interval
from retrieval_heads.matrix.comparison import change_interval, changes_of, compare
from retrieval_heads.matrix.sequential import decided_after, looks
from retrieval_heads.matrix.settings import REFERENCE
from retrieval_heads.runs.record import read_records

POWER = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="stored answers whose outcomes are taken")
    parser.add_argument("--settings", type=Path, help="folder of a matrix that was asked whole: judge its settings")
    parser.add_argument("--pass-rate", type=float, default=0.8)
    parser.add_argument("--cells", type=int, nargs="+", default=[18, 60, 200, 1000])
    parser.add_argument("--flips", type=float, nargs="+", default=[0.0, 0.02, 0.05])
    parser.add_argument("--margin", type=float, nargs="+", default=[0.0, 0.02, 0.05])
    parser.add_argument("--runs", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.settings:
        heads = ["setting", "cells", "margin", "difference", "whole", "early", "cells asked"]
        _table("settings of a run", heads, _real(arguments.settings, arguments.margin))
        return
    stored = _outcomes(arguments.results) if arguments.results else None
    rows: list[list[str]] = []
    for cells in arguments.cells:
        for flips in arguments.flips:
            for margin in arguments.margin:
                rows.append(_equal(stored, arguments.pass_rate, cells, flips, margin, arguments.runs))
    _table(
        "equal settings",
        ["cells", "flips", "margin", "broken", "inconclusive", "broken early", "cells asked", "p <= 0.05"],
        rows,
    )
    rows = []
    for cells in arguments.cells:
        for flips in arguments.flips:
            for margin in arguments.margin:
                rows.append(_caught(stored, arguments.pass_rate, cells, flips, margin, arguments.runs))
    _table(
        "the smallest fall that is broken 8 times of 10", ["cells", "flips", "margin", "fall", "cells asked then"], rows
    )


def _outcomes(results: Path) -> list[bool]:
    """Which cells passed, under the reference where there are settings."""
    return [
        bool(one.passed) for one in read_records(results) if one.passed is not None and one.setting in (None, REFERENCE)
    ]


def _real(folder: Path, margins: list[float]) -> list[list[str]]:
    """The settings of a run, in the order in which `until: decided` would have asked their cells."""
    records = read_records(folder / "results.jsonl")
    order = {record.setting: {"seed": 0} for record in records if record.setting}
    rows = []
    for one in compare(records, {"until_decided": order}):
        changes = changes_of(one.pairs, PASS_RATE)
        mean = sum(changes) / len(changes)
        for margin in margins:
            whole, early, asked = _judged(changes, margin)
            rows.append([one.setting, f"{len(changes)}", f"{margin:g}", f"{mean:+.3f}", whole, early, f"{asked}"])
    return rows


def _changes(stored: list[bool] | None, rate: float, cells: int, flips: float, lost: float, seed: int) -> list[float]:
    """The setting less the reference, cell by cell, in the order drawn."""
    draw = random.Random(f"{seed} {cells}")
    outcomes = [draw.choice(stored) if stored else draw.random() < rate for _ in range(cells)]
    changes = []
    for passed in outcomes:
        reference = passed ^ (draw.random() < flips)
        setting = passed ^ (draw.random() < flips)
        if draw.random() < lost:
            setting = False
        changes.append(float(setting) - float(reference))
    draw.shuffle(changes)
    return changes


def _word(interval: Interval | None, margin: float) -> str:
    if interval is None:
        return "inconclusive"
    if interval.low >= -margin - 1e-9:
        return "held"
    return "broken" if interval.high < -margin - 1e-9 else "inconclusive"


def _judged(changes: list[float], margin: float) -> tuple[str, str, int]:
    """The word of the whole grid, that of a run which stops when it is certain, and how many cells that asks."""
    whole = _word(change_interval(changes), margin)
    side, seen = decided_after(changes, len(changes), -margin)
    asked = next(look for look in looks(len(changes)) if look >= seen)
    return whole, whole if side is None else {"above": "held", "below": "broken"}[side], asked


def _equal(stored: list[bool] | None, rate: float, cells: int, flips: float, margin: float, runs: int) -> list[str]:
    words, early, asked, small = Counter[str](), Counter[str](), 0, 0
    for seed in range(runs):
        changes = _changes(stored, rate, cells, flips, 0.0, seed)
        whole, word, count = _judged(changes, margin)
        words[whole] += 1
        early[word] += 1
        asked += count
        small += min(1.0, 2 * min(fall_p_value(changes), fall_p_value([-one for one in changes]))) <= 0.05
    row = {
        "cells": cells,
        "flips": flips,
        "margin": margin,
        "broken": words["broken"] / runs,
        "inconclusive": words["inconclusive"] / runs,
        "broken_early": early["broken"] / runs,
        "asked": asked / runs / cells,
        "significant": small / runs,
    }
    print(json.dumps({"equal": row}), flush=True)
    return [f"{value:g}" if number < 3 else f"{value:.1%}" for number, value in enumerate(row.values())]


def _caught(stored: list[bool] | None, rate: float, cells: int, flips: float, margin: float, runs: int) -> list[str]:
    """By halving the share of cells that are lost; the fall is told in the pass rate."""
    passing = sum(stored) / len(stored) if stored else rate

    def judged(lost: float) -> tuple[float, float]:
        found = [_judged(_changes(stored, rate, cells, flips, lost, seed), margin) for seed in range(runs)]
        return sum(word == "broken" for word, _, _ in found) / runs, sum(one[2] for one in found) / runs / cells

    row = {"cells": cells, "flips": flips, "margin": margin, "fall": None, "asked": None}
    if judged(1.0)[0] >= POWER:
        low, high = 0.0, 1.0
        for _ in range(7):
            middle = (low + high) / 2
            low, high = (low, middle) if judged(middle)[0] >= POWER else (middle, high)
        row |= {"fall": high * passing, "asked": judged(high)[1]}
    print(json.dumps({"caught": row}), flush=True)
    return [
        f"{cells}",
        f"{flips:g}",
        f"{margin:g}",
        "none" if row["fall"] is None else f"{row['fall']:.2f}",
        "" if row["asked"] is None else f"{row['asked']:.0%}",
    ]


def _table(title: str, heads: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{'---:|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
