"""What a user reads in the terminal: the grid of scores, and where everything was written."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

import pytest

from pytest_retrieval_heads import ablating, compressing, detection
from retrieval_heads.errors import printable
from retrieval_heads.gates import Verdict
from retrieval_heads.gates import lines as gate_lines
from retrieval_heads.intervals import mean_interval
from retrieval_heads.intervals import shown as interval_shown
from retrieval_heads.matrix.comparison import Comparison
from retrieval_heads.matrix.stored import lines as matrix_lines
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.grid import Grid
from retrieval_heads.runs.place import DEPTH, LENGTH, shown
from retrieval_heads.runs.record import Record, Status, finite_mean
from retrieval_heads.tasks.task import totals_of

_STATUSES = get_args(Status)
_TITLES = {LENGTH: "tokens", DEPTH: "depth %"}
_BARS = "▁▂▃▄▅▆▇█"


def summary(
    reporter: pytest.TerminalReporter,
    records: Sequence[Record],
    detections: Sequence[detection.DetectionOutcome],
    ablations: Sequence[ablating.AblationOutcome],
    selected: int,
    resume: str,
    paths: Mapping[str, str],
    notes: Sequence[str],
    complaints: Sequence[str],
    verdict: Verdict,
    comparisons: Sequence[Comparison] = (),
    facts: Facts | None = None,
    compressions: Sequence[compressing.CompressionOutcome] = (),
) -> None:
    """Write the section that ends a run.

    Args:
        reporter: pytest's own.
        records: Every record of the run.
        detections: What its detect suites came to.
        ablations: What its ablate suites came to.
        selected: How many cells were selected, with or without a record.
        resume: What to type so that those without one are asked.
        paths: What was written, by a short name.
        notes: What is worth knowing of the run, a sentence each.
        complaints: What could not be made, a sentence each.
        verdict: The gates.
        comparisons: The settings of a matrix, each set against the reference.
        facts: What `run.json` says; of a matrix.
        compressions: What its compress suites came to.
    """
    width = reporter._tw.fullwidth
    compared = {f"{one.suite}@{one.setting}" for one in comparisons}
    # Of a matrix the reference's grids stand here; the page has the others.
    for suite_id in dict.fromkeys(record.suite_id for record in records if record.suite_id not in compared):
        mine = [record for record in records if record.suite_id == suite_id]
        kind, _, suite = suite_id.partition("/")
        detected = next((one for one in detections if kind == "detect" and one.suite == suite), None)
        ablated = next((one for one in ablations if kind == "ablate" and one.suite == suite), None)
        compressed = next((one for one in compressions if kind == "compress" and one.suite == suite), None)
        if detected is not None:
            heading, lines = "retrieval heads", [*detection.table(detected), *totals(mine)]
        elif ablated is not None:
            heading, lines = "ablation", [*ablating.table(ablated), *totals(mine)]
        elif compressed is not None:
            heading, lines = "compression", [*compressing.table(compressed), *totals(mine)]
        else:
            heading = mine[0].task or "needle in a haystack"
            lines = [*grid(mine, width), *totals(mine)]
            lines += [line for said in totals_of(mine) for line in textwrap.wrap(said, width)]
        reporter.section(printable(f"{heading}: {suite}"), "-")
        for line in lines:
            reporter.write_line(printable(line), red=line.startswith(("broken", "inconclusive")))
    for suite in dict.fromkeys(one.suite for one in comparisons):
        reporter.section(printable(f"matrix: {suite.partition('/')[2]}"), "-")
        for line in matrix_lines([one for one in comparisons if one.suite == suite], facts or {}):
            reporter.write_line(printable(line))
    if missing := selected - len(records):
        reporter.write_line(f"{missing} of {selected} selected cells have no result", yellow=True)
        if records:
            reporter.write_line(f"to go on with the run: {resume}")
    for note in notes:
        reporter.write_line(printable(note))
    if verdict.outcomes or verdict.warnings:
        reporter.section("gates", "-")
        for line in gate_lines(verdict, width):
            reporter.write_line(printable(line), red=line.startswith("FAIL"), yellow=line.startswith("WARN"))
    for complaint in complaints:
        reporter.write_line(printable(complaint), yellow=True)
    longest = max(map(len, paths), default=0)
    for name, path in paths.items():
        reporter.write_line(printable(f"{name:<{longest}}  {path}"))


def done(facts: Facts) -> list[str]:
    """What the prefix cache gave, how long the engine waited for us, and what replays of other prompts took.

    Args:
        facts: of the run, as `run.json` has them.
    """
    if not facts.get("prompt_tokens") or (facts.get("usage") and not facts["cached_tokens"]):
        return []  # most servers do not say what their cache gave
    cached, best = (facts[name] / facts["prompt_tokens"] for name in ("cached_tokens", "reusable_tokens"))
    told = f"prefix cache: {cached:.1%} of {facts['prompt_tokens']:,} tokens (at best {best:.1%})"
    share = facts.get("feed_gap_share")  # none where no step was timed
    lines = [told if share is None else f"{told}; between steps: {share:.1%}"]
    if facts.get("other_replays"):
        lines.append(
            f"head scores of other prompts: {facts['other_replays']:,} replays, "
            f"{facts['other_replay_tokens']:,} tokens computed, in steps of {facts['other_replay_seconds']:.1f} s"
        )
    return lines


def taken(facts: Facts) -> list[str]:
    """What an endpoint says that the session took of it, in one line; none where no endpoint was asked.

    Args:
        facts: Of the run, as `run.json` has them.
    """
    if not (usage := facts.get("usage")):
        return []
    told = f"endpoint: {usage['requests']:,} requests, {usage['tokens_in']:,} tokens in, {usage['tokens_out']:,} out"
    return [told if usage.get("cost") is None else f"{told}; at engine.price {usage['cost']:.4g}"]


def count_gap(records: Sequence[Record]) -> list[str]:
    """How far a server's counts of prompt tokens lie from the tokenizer's, in one line; none where they are the same.

    Args:
        records: Of the run.
    """
    shares = [
        record.server_prompt_tokens / record.prompt_tokens - 1
        for record in records
        if record.server_prompt_tokens and record.prompt_tokens
    ]
    apart = [share for share in shares if share]
    if not apart:
        return []
    return [
        f"prompt tokens of {len(apart)} of {len(shares)} cells as the server counts them: {min(apart):+.1%} to "
        f"{max(apart):+.1%} beside the tokenizer's count"
    ]


def lost(records: Sequence[Record]) -> list[str]:
    """How many cells another replica was asked before, a line for each that was lost.

    Args:
        records: Of the run.
    """
    found = Counter(record.lost_replica for record in records if record.lost_replica)
    return [f"{count} of {len(records)} cells were asked again: {why}" for why, count in found.items()]


def totals(records: Sequence[Record]) -> list[str]:
    """How many cells ended how, and the mean score; skipped cells are named."""
    counts = {status: sum(record.status == status for record in records) for status in _STATUSES}
    named = {status: status for status in _STATUSES}
    named |= {"pass": "retrieved", "low": "below the threshold", "error": "in error"}
    if cut_off := sum(record.is_cut_off for record in records):
        named["low"] += f" ({cut_off} cut off while thinking)"
    told = ", ".join(f"{counts[status]} {named[status]}" for status in _STATUSES if counts[status])
    measured = [record for record in records if record.scores]
    lines = [f"{len(records)} {'cell' if len(records) == 1 else 'cells'}: {told}"]
    if measured:
        metric = measured[0].metric
        values = [record.scores[metric] for record in measured]
        lines[0] += f"; mean {metric} {finite_mean(values):.3f}"
        lines.append(f"95 % interval of that mean: {interval_shown(mean_interval(values))}")
    if counts["spared"]:
        lines.append(f"spared: {next(record.reason for record in records if record.status == 'spared')}")
    reasons: dict[str, list[Record]] = {}
    for record in records:
        if record.status == "skipped":
            reasons.setdefault(record.reason, []).append(record)
    for reason, skipped in reasons.items():
        lines.append(f"skipped: {_places(skipped)}: {reason}")
    return lines


def _places(records: Sequence[Record]) -> str:
    """Where records of one reason stand."""
    found = Grid.of(records)
    (x, y), ys = found.sides, ", ".join(map(shown, found.ys))
    return f"{x} {shown(found.xs[0])} at {y}s {ys}" if y else f"{x} {', '.join(map(shown, found.xs))}"


def grid(records: Sequence[Record], width: int) -> list[str]:
    """The passing metric's mean in each cell: lengths down and depths across, tasks down and lengths across.

    Args:
        records: Of one suite; needles and seeds are averaged.
        width: Columns of the terminal. Numbers get shorter, then become bars, so that the grid fits.

    Returns:
        Lines. `-` is a skipped cell, `!` one in error, blank one without a result.
    """
    found = Grid.of(records).table
    down, across = (_TITLES.get(side, side) for side in found.axes)
    edge = max(8, *(len(shown(value)) for value in found.downs))
    room = (width - 8 - edge) // max(1, len(found.acrosses))
    heads = [shown(value) for value in found.acrosses]
    if room >= max(5, max(map(len, heads)) + 1):
        column, show = min(room, 8), _digits
    elif room >= max(4, max(map(len, heads)) + 1):
        column, show = room, _percent
    else:
        column, show, heads = 1, _bar, []
    top = "".join(f"{head:>{column}}" for head in heads)
    if not heads:
        unit = " %" if found.axes[1] == DEPTH else ""
        top = f"  {found.axes[1]} {shown(found.acrosses[0])} to {shown(found.acrosses[-1])}{unit}"
    lines = [f"{down:>{edge}}{top}{'mean':>8}" if heads else f"{down:>{edge}}{top}"]
    if heads and across:
        lines.insert(0, f"{'':{edge}}{across:>{column * len(heads)}}")
    gap = " " if column == 1 else ""
    for value in found.downs:
        row = [found.cells.get((value, other), []) for other in found.acrosses]
        figures = "".join(f"{show(cell):>{column}}" for cell in row)
        mean = finite_mean([value for cell in row for value in _values(cell)])
        lines.append(f"{shown(value):>{edge}}{gap}{figures}{'' if math.isnan(mean) else f'{mean:8.2f}'}")
    return lines


def _values(cell: Sequence[Record]) -> list[float]:
    return [record.scores[record.metric] for record in cell if record.scores]


def _sign(cell: Sequence[Record]) -> str:
    """A cell without a score."""
    if not cell:
        return ""
    return "!" if any(record.status == "error" for record in cell) else "-"


def _digits(cell: Sequence[Record]) -> str:
    values = _values(cell)
    return f"{finite_mean(values):.2f}" if values else _sign(cell)


def _percent(cell: Sequence[Record]) -> str:
    values = _values(cell)
    return f"{100 * finite_mean(values):.0f}" if values else _sign(cell)


def _bar(cell: Sequence[Record]) -> str:
    values = _values(cell)
    if not values:
        return _sign(cell) or " "
    return _BARS[min(len(_BARS) - 1, int(finite_mean(values) * len(_BARS)))]
