"""What masking heads did: accuracy by arm with its interval, and the drop against the unmasked arm, cell by cell.

Accuracy is the share of cells whose answer retrieved the needle; a control's is the mean over its draws.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import variance

from retrieval_heads.ablation.arms import NONE, Arm, borrowed
from retrieval_heads.errors import ResultsError
from retrieval_heads.intervals import Interval, difference_interval, share_interval
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.place import Value
from retrieval_heads.runs.record import Record, finite_mean

SCHEMA = "retrieval-heads-ablation/1"

Cell = tuple[tuple[tuple[str, Value], ...], int, tuple[Value, ...]]
"""Needle, seed, length and depth: what arms share."""


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Group:
    """One arm on its cells, or every draw of a control.

    Args:
        name: `none`, `top_10` or `random_10`.
        count: How many heads are masked.
        cells: Cells measured in each of its arms.
        accuracy: Share of them that retrieved the needle.
        drop: How much lower that is than the unmasked arm's on the same cells; `None` for the unmasked arm.
        draws: Of a control, each draw's accuracy.
        masks: By arm, the heads masked.
    """

    name: str
    count: int
    cells: int
    accuracy: Figure
    drop: Figure | None
    draws: Mapping[str, float]
    masks: Mapping[str, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Effect:
    """An ablation's figures.

    Args:
        mode: How heads were masked.
        groups: The unmasked arm first, then by count: the best heads, their control.
        excess: By count: how much further accuracy fell under the best heads' mask than under the control's.
        until: The share of the unmasked accuracy that `reached` is about.
        reached: The smallest count that brings accuracy down to that share; `None` where none does.
        notes: What is odd, a sentence each.
    """

    mode: str
    groups: Sequence[Group]
    excess: Mapping[int, Figure]
    until: float
    reached: int | None
    notes: Sequence[str]

    def group(self, name: str) -> Group | None:
        """The group of a name."""
        return next((group for group in self.groups if group.name == name), None)


def effect_of(records: Sequence[Record], until: float = 0.5) -> Effect:
    """The figures of one suite's records.

    Raises:
        ResultsError: Nothing was measured unmasked, or nothing masked.
    """
    passed: dict[str, dict[Cell, float]] = defaultdict(dict)
    masks: dict[str, Sequence[tuple[int, int]]] = {}
    for record in records:
        if record.passed is not None and record.status in ("pass", "low"):
            arm = record.arm or NONE
            passed[arm][_cell(record)] = float(record.passed)
            masks[arm] = record.mask.heads if record.mask else []
    if NONE not in passed:
        raise ResultsError("no cell was measured with nothing masked, so there is no drop to tell")
    if len(passed) == 1:
        raise ResultsError("no cell was measured with heads masked")
    grouped: dict[tuple[int, bool], dict[str, dict[Cell, float]]] = defaultdict(dict)
    for name, cells in passed.items():
        masked = Arm.of(name)
        grouped[masked.count, bool(masked.draw)][name] = cells
    unmasked = passed[NONE]
    groups, means = [], {}
    for (count, is_control), drawn in sorted(grouped.items()):
        mean = _mean_of(drawn)
        name = Arm.of(next(iter(drawn))).group
        means[count, is_control] = mean, drawn
        groups.append(
            Group(
                name=name,
                count=count,
                cells=len(mean),
                accuracy=_accuracy(mean, drawn),
                drop=_difference(unmasked, {NONE: unmasked}, mean, drawn) if count else None,
                draws={arm: finite_mean(list(cells.values())) for arm, cells in sorted(drawn.items())}
                if is_control
                else {},
                masks={arm: masks[arm] for arm in sorted(drawn)},
            )
        )
    counts = sorted({count for count, _ in means if count})
    paired = [count for count in counts if (count, False) in means and (count, True) in means]
    best = finite_mean(list(unmasked.values()))
    falls = (count for count in counts if (count, False) in means and best > 0)
    mode = next((record.mask.mode for record in records if record.mask), "")
    return Effect(
        mode=mode,
        groups=groups,
        excess={count: _difference(*means[count, True], *means[count, False]) for count in paired},
        until=until,
        reached=next(
            (count for count in falls if finite_mean(list(means[count, False][0].values())) <= until * best + 1e-12),
            None,
        ),
        notes=list(_notes(groups, best)),
    )


def to_json(effect: Effect, facts: Facts) -> dict[str, object]:
    """The content of `ablation.json`: plain builtins, after what the run's facts say."""
    return {
        "schema": SCHEMA,
        **facts,
        "mode": effect.mode,
        "groups": [asdict(group) for group in effect.groups],
        "excess": {str(count): asdict(figure) for count, figure in effect.excess.items()},
        "until": effect.until,
        "reached": effect.reached,
        "notes": list(effect.notes),
    }


def _cell(record: Record) -> Cell:
    return record.place.facets, record.seed, record.place.grid


def _mean_of(drawn: Mapping[str, Mapping[Cell, float]]) -> dict[Cell, float]:
    """Each cell's mean over draws; cells that every draw measured."""
    shared = set.intersection(*(set(cells) for cells in drawn.values()))
    return {cell: finite_mean([cells[cell] for cells in drawn.values()]) for cell in sorted(shared)}


def _accuracy(mean: Mapping[Cell, float], drawn: Mapping[str, Mapping[Cell, float]]) -> Figure:
    """The share's exact interval over cells, on as many cells as leave room for the spread of the draws.

    Cells are what is sampled: draws repeat the same ones. Where draws differ, their variance over their number adds to
    the share's own, and the interval is that of so many fewer cells (an effective sample size, Kish 1965).
    """
    if not mean:
        raise ResultsError(f"{', '.join(drawn)}: no cell was measured in each of these arms")
    share, count = finite_mean(list(mean.values())), float(len(mean))
    own = share * (1 - share)
    shares = [finite_mean([cells[cell] for cell in mean]) for cells in drawn.values()]
    if len(shares) > 1 and own > 0:
        count = own / (own / count + variance(shares) / len(shares))
    interval = share_interval(share, count)
    return Figure(share, interval.low, interval.high)


def _difference(
    high: Mapping[Cell, float],
    high_draws: Mapping[str, Mapping[Cell, float]],
    low: Mapping[Cell, float],
    low_draws: Mapping[str, Mapping[Cell, float]],
) -> Figure:
    """`high` minus `low` on the cells of both; see `intervals.difference_interval`."""
    shared = sorted(set(high) & set(low))
    first, second = {cell: high[cell] for cell in shared}, {cell: low[cell] for cell in shared}
    one, other = _accuracy(first, high_draws), _accuracy(second, low_draws)
    value = one.value - other.value
    interval = difference_interval(
        value,
        (one.value, Interval(one.low, one.high)),
        (other.value, Interval(other.low, other.high)),
        _correlation(list(first.values()), list(second.values())),
    )
    return Figure(value, interval.low, interval.high)


def _correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    mean, other = finite_mean(list(first)), finite_mean(list(second))
    covariance = math.fsum((a - mean) * (b - other) for a, b in zip(first, second, strict=True))
    spread = math.fsum((a - mean) ** 2 for a in first) * math.fsum((b - other) ** 2 for b in second)
    return covariance / math.sqrt(spread) if spread > 0 else 0.0


def _notes(groups: Sequence[Group], unmasked: float) -> Iterator[str]:
    if unmasked == 0:
        yield "the unmasked model retrieves no cell, so that masking can lower nothing; ask easier cells"
    for group in groups:
        best = next((other for other in groups if other.name == f"top_{group.count}"), None)
        if group.draws and best is not None:
            control = next(iter(group.masks.values()))
            if moved := borrowed(next(iter(best.masks.values())), control):
                yield f"{group.name}: {moved}"
