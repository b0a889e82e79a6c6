"""The words and figures at the top and the end of a report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.ablation.controls import Control, intervals
from retrieval_heads.gates.render import counts, headline, stored_word
from retrieval_heads.heads.detection import RETRIEVAL_THRESHOLD
from retrieval_heads.heads.table import HeadTable
from retrieval_heads.intervals import mean_interval, shown
from retrieval_heads.matrix.settings import REFERENCE
from retrieval_heads.report.matrix import matrices
from retrieval_heads.report.stored_run import StoredRun
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.grid import Grid
from retrieval_heads.runs.place import LENGTH, axis_label
from retrieval_heads.runs.record import Record, finite_mean
from retrieval_heads.tasks.task import totals_of

_WORDS = ("broken", "inconclusive", "held")
_IDENTITY = {
    "model": "Model",
    "model_revision": "Revision",
    "architecture": "Architecture",
    "dtype": "Precision",
    "device": "Device",
    "engine": "Engine",
    "max_model_len": "Longest prompt and answer",
    "tensor_parallel_size": "Tensor parallel",
    "enable_prefix_caching": "Prefix caching",
    "enforce_eager": "Eager",
    "retrieval_heads": "retrieval-heads",
    "python": "Python",
    "began": "Began",
    "rescored": "Scored again",
    "status": "Status",
    "engine_start_seconds": "Engine start (s)",
    "answer_seconds": "Answers (s)",
    "prompt_tokens": "Prompt tokens",
    "cached_tokens": "… from the prefix cache",
    "reusable_tokens": "… from one that holds everything",
    "feed_gap_share": "Share of time between steps",
    "seconds": "Whole run (s)",
    "arguments": "Arguments",
}


def overview(run: StoredRun) -> dict[str, Any]:
    """What the template shows besides the pictures.

    Returns:
        `title`, `subtitle`, `figures` (each suite's, as name and label, value, note), `gates`, `ablations`,
        `compressions` and `grids` (tables), `matrices` (suites under several settings), `totals` (of suites without
        such a table, name and lines), `settings` (name and value) and `config`.
    """
    facts = run.facts or next((table.facts for table in run.heads.values()), {})
    suites: dict[str, list[Record]] = {}
    for record in run.records:
        suites.setdefault(record.suite_id, []).append(record)
    names = dict.fromkeys([*(suite.partition("/")[2] for suite in suites), *run.heads])
    model = str(facts.get("model") or "").rstrip("/").rpartition("/")[2]
    figures = [
        (_titled(suite), list(_cells(_unmasked(records), run.baseline)))
        for suite, records in suites.items()
        if (suite.removeprefix("detect/") not in run.heads or not suite.startswith("detect/"))
        and records[0].setting in (None, REFERENCE)  # the others stand in the matrix's table
    ]
    figures += [(f"{name}: heads", list(_heads(table))) for name, table in run.heads.items()]
    by_name = [each for each in suites.values() if each[0].kind == "niah" and _has_names(each)]
    totals = [(_titled(suite), totals_of(_unmasked(records))) for suite, records in suites.items()]
    shown_with_rows = {_titled(each[0].suite_id) for each in by_name}
    return {
        "title": model or run.name,
        "subtitle": [part for part in (", ".join(filter(None, names)), *_subtitle(facts)) if part],
        "figures": figures,
        "gates": _gates(run.gates),
        "ablations": [_ablation(each) for each in run.ablations],
        "compressions": [_compression(each) for each in run.compressions],
        "grids": [_named_rows(records) for records in by_name],
        "matrices": matrices(run.records, facts),
        "totals": [(name, lines) for name, lines in totals if lines and name not in shown_with_rows],
        "settings": [
            (label, _shown(key, facts[key])) for key, label in _IDENTITY.items() if facts.get(key) not in (None, "")
        ],
        "config": run.config,
        "is_compared": bool(run.baseline),
    }


def _has_names(records: Sequence[Record]) -> bool:
    """Whether an axis of names is a side of a suite's grid."""
    return any(isinstance(y, str) and y for y in Grid.of(records).ys)


def _titled(suite: str) -> str:
    kind, _, name = suite.partition("/")
    told = {"detect": "samples", "ablate": "nothing masked", "compress": "everything kept"}
    return f"{name or kind}: {told[kind]}" if kind in told else name or "needle in a haystack"


def _unmasked(records: Sequence[Record]) -> Sequence[Record]:
    return [record for record in records if record.arm in ("", NONE)] or records


def _subtitle(facts: Facts) -> Iterator[str]:
    for key in ("dtype", "device", "engine"):
        if facts.get(key):
            yield str(facts[key])
    try:
        yield datetime.fromisoformat(str(facts.get("began"))).strftime("%-d %B %Y, %H:%M")
    except ValueError:
        return


def _cells(records: Sequence[Record], baseline: Sequence[Record]) -> Iterator[tuple[str, str, str]]:
    count = Counter[str](record.status for record in records)
    measured = [record for record in records if _is_measured(record)]
    named = {"low": "below the threshold", "skipped": "skipped", "error": "in error", "spared": "spared"}
    rest = [f"{count[status]:,} {words}" for status, words in named.items() if count[status]]
    yield "retrieved", f"{count['pass']:,} of {len(records) - count['spared']:,}", ", ".join(rest)
    if not measured:
        return
    scores = [_score(record) or 0.0 for record in measured]
    metric = measured[0].metric.replace("_", " ")
    yield "mean score", f"{finite_mean(scores):.3f}", f"{metric}, 95 %: {shown(mean_interval(scores))}"
    before = {(record.suite_id, record.cell): _score(record) for record in baseline}
    pairs = [
        ((_score(record) or 0.0), old)
        for record in measured
        if (old := before.get((record.suite_id, record.cell))) is not None
    ]
    if pairs:
        change = finite_mean([new - old for new, old in pairs])
        yield (
            "against the baseline",
            f"{change:+.3f}".replace("-", "−"),
            f"mean change over {len(pairs):,} cells in both",
        )
    grid = Grid.of(measured)
    means = {
        x: finite_mean([_score(record) or 0.0 for y in grid.ys for record in grid.cells.get((x, y), ())])
        for x in grid.xs
    }
    if len(means) > 1 and min(means.values()) < max(means.values()):
        worst = min(means, key=lambda x: (means[x], grid.xs.index(x)))
        number = f"{worst:,}" if isinstance(worst, int) else f"{worst}"
        unit = "tokens, " if grid.sides[0] == LENGTH else ""
        yield f"weakest {grid.sides[0]}", number, f"{unit}mean {means[worst]:.3f}"


def _is_measured(record: Record) -> bool:
    return record.status in ("pass", "low") and _score(record) is not None


def _score(record: Record) -> float | None:
    return record.scores.get(record.metric)


def _heads(table: HeadTable) -> Iterator[tuple[str, str, str]]:
    name = table.ranking
    mean = table.estimates[name].mean
    ranked = table.ranked(name)
    yield (
        "retrieval heads",
        f"{int((mean >= RETRIEVAL_THRESHOLD).sum()):,} of {len(ranked):,}",
        f"mean {name} of {RETRIEVAL_THRESHOLD:g} or more",
    )
    if note := table.top(name, 10).note("this run"):
        yield "top 10", f"{len(table.top(name, 10).heads)} heads", note
    row, head = ranked[0]
    yield "best head", f"{table.layers[row].number}-{head}", f"layer-head, mean {name} {mean[row, head]:.3f}"
    if table.counted is not None:
        yield (
            "samples counted",
            f"{table.counted:,} of {table.measured or table.counted:,}",
            "their answer held the needle",
        )
    asked, cells = (table.facts.get(key) for key in ("asked", "cells"))
    if isinstance(asked, int) and isinstance(cells, int):
        yield "cells asked", f"{asked:,} of {cells:,}", f"{cells - asked:,} spared (sweep.samples)"
    if table.stability is not None:
        yield "stable", f"{100 * table.stability:.0f} %", "of the top 10 agree between random halves of the samples"


def _ablation(told: Mapping[str, Any]) -> dict[str, Any]:
    """The table of an ablation: accuracy by arm, its drop, and other behaviour under the same masks."""
    controls = told.get("controls") or {}
    rows = []
    for group in told["groups"]:
        found = [controls[arm] for arm in group["masks"] if arm in controls]
        draws = group["draws"].values()
        rows.append(
            [
                group["name"].replace("_", " "),
                f"{group['cells']:,}",
                _interval(group["accuracy"]),
                _interval(group["drop"]) if group["drop"] else "",
                f"{min(draws):.2f} to {max(draws):.2f}" if len(draws) > 1 else "",
                *(
                    f"{finite_mean([each[name] for each in found]):{shape}}" if found else ""
                    for name, shape in (("perplexity", ".1f"), ("closed_book", ".2f"))
                    if controls
                ),
            ]
        )
    comparison = _comparison(told.get("comparison") or [])
    excess = [
        f"The top {count} cost {_interval(value)} more accuracy than {count} others of the same layers."
        for count, value in (told.get("excess") or {}).items()
        if not comparison  # which says the same
    ]
    return {
        "suite": str(told["suite"]),
        "mode": str(told["mode"]),
        "columns": ["arm", "cells", "accuracy", "drop", "draws", *(["perplexity", "closed book"] if controls else [])],
        "rows": rows,
        "notes": [*excess, *_closed_book(told["groups"], controls), *map(str, told.get("notes") or [])],
        "comparison": comparison,
    }


def _comparison(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of several rankings: what masking the best heads of each costs; empty for one ranking."""
    figures = ("drop", "excess", "per_head", "behind")
    rows = [
        [
            f"top {one['count']} by {one['by']}",
            *(_interval(one[figure]) if one[figure] else "–" for figure in figures),
        ]
        for one in told
    ]
    columns = ["masked", "drop", "beyond others", "drop a head", "behind the first"]
    note = (
        "Beyond others: than as many heads of the same layers that are among the best of no ranking. Behind the first: "
        "how much less accuracy it costs than the ranking that costs most."
    )
    return {"columns": columns, "rows": rows, "notes": [note]} if rows else {}


def _compression(told: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a compression: accuracy by ranking and kept share, and the smallest share that suffices."""
    rows = []
    for point in told["points"]:
        draws = point["draws"].values()
        rows.append(
            [
                point["ranking"] or "everything",
                f"{point['keep']:g}",
                f"{point['cells']:,}",
                _interval(point["accuracy"]),
                _interval(point["drop"]) if point["drop"] else "",
                _interval(point["above"]) if point.get("above") else "",
                f"{min(draws):.2f} to {max(draws):.2f}" if len(draws) > 1 else "",
                "" if point["bytes_share"] is None else f"{100 * point['bytes_share']:.0f} %",
            ]
        )
    least: dict[str, list[str]] = {}
    for one in told["least"]:
        where = "" if one["length"] is None else f"at {one['length']:,} tokens "
        share = f"{where}{one['share']:g} [{one['low']:g}, {one['high']:g}]"
        least.setdefault(one["ranking"], []).append(share)
    smallest = f"The smallest share that keeps {100 * told['until']:g} % of accuracy by"
    sentences = [f"{smallest} {ranking}: {', '.join(shares)}." for ranking, shares in least.items()]
    return {
        "suite": str(told["suite"]),
        "columns": ["ranking", "kept", "cells", "accuracy", "drop", "above random", "draws", "KV cache kept"],
        "rows": rows,
        "notes": [f"{str(told['measures']).capitalize()}.", *sentences, *map(str, told.get("notes") or [])],
    }


def _closed_book(groups: Sequence[Mapping[str, Any]], controls: Mapping[str, Any]) -> list[str]:
    measured = {arm: Control(**control) for arm, control in controls.items()}
    shown = intervals({group["name"]: group["masks"] for group in groups}, measured)
    return [f"Closed book with its interval: {shown}."] if shown else []


def _interval(estimate: Mapping[str, float]) -> str:
    text = f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return text.replace("-", "−")


def _named_rows(records: Sequence[Record]) -> dict[str, Any]:
    """A suite's scores with their intervals, one row for each name, such as a task's."""
    measured = [record for record in records if _is_measured(record)]
    table, rows = Grid.of(records).table, []
    for down in table.downs:
        cells = [list(filter(_is_measured, table.cells.get((down, across), ()))) for across in table.acrosses]
        rows.append([str(down), *map(_mean, cells), _mean([each for cell in cells for each in cell])])
    down, across = map(axis_label, table.axes)
    metric = next((record.metric for record in measured), "score").replace("_", " ")
    return {
        "suite": records[0].suite,
        "caption": f"Mean {metric} by {down} and {across}; intervals are 95 %.",
        "columns": [down, *map(str, table.acrosses), "mean"],
        "rows": rows,
        "notes": totals_of(records),
    }


def _mean(records: Sequence[Record]) -> str:
    if not records:
        return "–"
    scores = [_score(record) or 0.0 for record in records]
    interval = mean_interval(scores)
    mean = f"{finite_mean(scores):.2f}"
    return f"{mean} [{interval.low:.2f}, {interval.high:.2f}]" if interval else f"{mean} (n={len(scores)})"


def _gates(gates: Mapping[str, Any]) -> dict[str, Any]:
    outcomes = [
        {
            "suite": str(gate.get("suite", "")),
            "gate": str(gate.get("gate", "")),
            "word": stored_word(gate),
            "sentence": str(gate.get("sentence", "")),
            "worst": ", ".join(map(str, gate.get("worst", []))),
        }
        for gate in gates.get("gates", [])
    ]
    words = [outcome["word"] for outcome in outcomes]
    told = (headline(words) if "held" in words else counts(words)) if words else ""
    return {
        # Broken ones first: they are what a reader came for.
        "outcomes": sorted(outcomes, key=lambda outcome: _WORDS.index(outcome["word"])),
        "headline": told,
        "broken": len(words) - words.count("held"),
        "warnings": [str(warning) for warning in gates.get("warnings", [])],
        "notes": [str(note) for note in gates.get("notes", [])],
    }


def _shown(key: str, value: object) -> str:
    """A fact for people: thousands apart, shares in percent, seconds to a tenth."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if key.endswith("_share") else f"{value:,.1f}"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
