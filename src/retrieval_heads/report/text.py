"""A run's results as text: a grid of means for each suite, with its averages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from retrieval_heads.errors import ResultsError
from retrieval_heads.runs.grid import Grid
from retrieval_heads.runs.place import axis_label, shown
from retrieval_heads.runs.record import Record, finite_mean
from retrieval_heads.tasks.task import totals_of

_NONE = "-"


def text_report(records: Sequence[Record]) -> str:
    """The means of the score that decides, in percent, over both sides of each grid.

    Args:
        records: Ours or the predecessor's. Those without an answer are counted and left out.

    Raises:
        ResultsError: There is no answer among them.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    suites: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        suites.setdefault((record.suite_id if record.suite else record.task or "niah", record.arm), []).append(record)
        names = [f"{axis_label(axis)} {shown(value)}" for axis, value in record.place.facets if record.task]
        heading = (record.suite_id if record.suite else record.task or "niah", *names, record.arm)
        groups.setdefault(heading, []).append(record)
    if not any(_value(record) is not None for record in records):
        raise ResultsError("there is no answer among the records")
    blocks = []
    for heading, members in groups.items():
        whole = suites[heading[0], heading[-1]]
        lines = list(_table(" · ".join(filter(None, heading)), members))
        if len(members) == len(whole):
            lines[-1:-1] = totals_of(whole)
        blocks.append("\n".join(lines))
    for heading, whole in suites.items():
        # Of a suite with several tables its totals stand behind all of them.
        is_one = any(len(members) == len(whole) for key, members in groups.items() if (key[0], key[-1]) == heading)
        if not is_one and (lines := totals_of(whole)):
            blocks.append("\n".join([f"{' · '.join(filter(None, heading))}: totals", *lines]))
    return "\n\n".join(blocks)


def _table(heading: str, records: Sequence[Record]) -> Iterator[str]:
    answered = [record for record in records if _value(record) is not None]
    metric = next((record.metric for record in answered), "")
    yield f"{heading}: {metric.replace('_', ' ')}, mean in percent"
    if answered:
        grid = Grid.of(answered)
        x, y = grid.sides
        rows = [[f"{axis_label(y)} \\ {axis_label(x)}".strip(" \\"), *map(shown, grid.xs), "avg"]]
        for down in grid.ys:
            cells = [grid.cells.get((across, down), []) for across in grid.xs]
            rows.append([shown(down), *map(_mean, cells), _mean([each for cell in cells for each in cell])])
        columns = [[each for y in grid.ys for each in grid.cells.get((across, y), [])] for across in grid.xs]
        rows.append(["avg", *map(_mean, columns), _mean(answered)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, *values in rows:
            padded = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
            yield "  ".join([name.ljust(widths[0]), *padded])
    left_out = len(records) - len(answered)
    note = f"; {left_out:,} without an answer left out" if left_out else ""
    yield f"overall {_mean(answered)} (n={len(answered):,}){note}"


def _value(record: Record) -> float | None:
    return record.scores.get(record.metric) if record.status in ("pass", "low") else None


def _mean(records: Sequence[Record]) -> str:
    values = [value for record in records if (value := _value(record)) is not None]
    return f"{100 * finite_mean(values):.1f}" if values else _NONE
