"""RULER's totals: the mean over tasks at each length, and the effective length where all thirteen were asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrieval_heads.intervals import Interval, mean_of_means_interval
from retrieval_heads.intervals import shown as interval_shown
from retrieval_heads.runs.place import LENGTH, Value, in_order
from retrieval_heads.runs.record import Record, finite_mean
from retrieval_heads.scoring.settings import STRING_MATCH, WHOLE_WORDS

TASKS = 13
"""Of which RULER's total is the mean."""

THRESHOLD = 0.856
"""The total of Llama-2-7B at 4k, which a length must exceed to be effective (arXiv 2404.06654, section 4)."""


@dataclass(frozen=True)
class Total:
    """The mean over tasks at one length.

    Args:
        length: Tokens.
        tasks: How many were answered.
        mean: Of the tasks' mean scores, 0–1.
        interval: Of that mean; `None` for too few samples.
    """

    length: int
    tasks: int
    mean: float
    interval: Interval | None


def totals(records: Sequence[Record], score: str = STRING_MATCH) -> list[Total]:
    """The total of each length at which a sample was answered.

    Args:
        records: Of one suite of the task; those without the score are left out.
        score: By its name; RULER's own is `string_match`.
    """
    found = []
    measured = [record for record in records if record.task == "ruler" and score in record.scores]
    for length in in_order(map(_length, measured)):
        groups: dict[str, list[float]] = {}
        for record in measured:
            if record.place.get(LENGTH) == length:
                groups.setdefault(str(record.place.get("task")), []).append(record.scores[score])
        mean = finite_mean([finite_mean(values) for values in groups.values()])
        assert isinstance(length, int)
        found.append(Total(length, len(groups), mean, mean_of_means_interval(list(groups.values()))))
    return found


def effective_length(found: Sequence[Total]) -> int | None:
    """The longest length whose total, and that of each shorter one, is above `THRESHOLD`; 0 where there is none.

    `None` where not all of RULER's tasks were answered at each length: fewer are no RULER total.
    """
    if not found or any(total.tasks < TASKS for total in found):
        return None
    reached = 0
    for total in found:
        if total.mean <= THRESHOLD:
            break
        reached = total.length
    return reached


def sentences(records: Sequence[Record]) -> list[str]:
    """Totals in words, and how many samples are in none; nothing for records of another task."""
    found = totals(records)
    if not found:
        return []
    said = [_line(total, whole) for total, whole in zip(found, totals(records, WHOLE_WORDS), strict=True)]
    asked = [record for record in records if record.task == "ruler"]
    missing = [record for record in asked if STRING_MATCH not in record.scores]
    if missing:
        said.append(f"{len(missing):,} of {len(asked):,} samples have no answer and count in no total.")
    answered = {total.length for total in found}
    silent = [length for length in in_order(map(_length, missing)) if length not in answered]
    length = effective_length(found)
    if silent:
        listed = ", ".join(map(str, silent))
        said.append(f"There is no effective length: of {listed} tokens no sample has an answer.")
    elif length is None:
        fewest, most = min(total.tasks for total in found), max(total.tasks for total in found)
        counted = f"{fewest} to {most}" if fewest < most else f"{most}"
        said.append(
            f"This is no RULER total, nor is there an effective length: both are of all {TASKS} tasks, and {counted} "
            f"{'was' if most == 1 else 'were'} answered at a length."
        )
    elif length:
        said.append(f"Effective length: {length} tokens, the longest up to which the total is above {100 * THRESHOLD}.")
    else:
        said.append(f"No length is effective: no total is above {100 * THRESHOLD} from the shortest on.")
    if not all(record.recipe and (record.recipe.options or {}).get("wording") for record in _asked(records)):
        said.append("The wordings are our own: published totals are of RULER's (task.wording: ruler).")
    return said


def _length(record: Record) -> Value:
    return record.place.get(LENGTH) or 0


def _asked(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.task == "ruler" and record.scores]


def _line(total: Total, whole: Total) -> str:
    count = f"{total.tasks} task" if total.tasks == 1 else f"{total.tasks} tasks"
    return (
        f"mean of {count} at {total.length} tokens: {100 * total.mean:.1f} (95 %: {_percent(total.interval)}), "
        f"by whole words {100 * whole.mean:.1f}"
    )


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return interval_shown(None)
    return interval_shown(Interval(100 * interval.low, 100 * interval.high), 1)
