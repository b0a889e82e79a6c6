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


_Cells = dict[str, dict[Cell, float]]
"""By arm, whether each cell retrieved the needle."""


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
        name: `none`, `top_10` (of several rankings `top_10_by_mass`) or `random_10`.
        count: How many heads are masked.
        by: Of several rankings, whose best heads are masked; else empty.
        cells: Cells measured in each of its arms.
        accuracy: Share of them that retrieved the needle.
        drop: How much lower that is than the unmasked arm's on the same cells; `None` for the unmasked arm.
        draws: Of a control, each draw's accuracy.
        masks: By arm, the heads masked.
    """

    name: str
    count: int
    by: str
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
        groups: The unmasked arm first, then by count: the best heads (of each ranking), their control.
        excess: By group of best heads: how much further accuracy fell under their mask than under the control's.
        comparison: Of several rankings, each one's best heads beside the others'.
        until: The share of the unmasked accuracy that `reached` is about.
        reached: By ranking the smallest count that brings accuracy down to that share; `None` where none does.
        notes: What is odd, a sentence each.
    """

    mode: str
    groups: Sequence[Group]
    excess: Mapping[str, Figure]
    comparison: Sequence[Compared]
    until: float
    reached: Mapping[str, int | None]
    notes: Sequence[str]

    def group(self, name: str) -> Group | None:
        """The group of a name."""
        return next((group for group in self.groups if group.name == name), None)


@dataclass(frozen=True)
class Compared:
    """The best heads of one of several rankings, beside those of the others.

    Args:
        by: The score that ranks them.
        count: How many of them are masked.
        drop: How much lower accuracy is than the unmasked arm's on the same cells.
        excess: How much further it falls than under the control's mask; `None` where that was not measured.
        per_head: The drop over the count.
        behind: How much less it falls than under the mask of the ranking that costs most at this count; `None` of that
            one.
    """

    by: str
    count: int
    drop: Figure
    excess: Figure | None
    per_head: Figure
    behind: Figure | None


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
            passed[arm][cell_of(record)] = float(record.passed)
            masks[arm] = record.mask.heads if record.mask else []
    if NONE not in passed:
        raise ResultsError("no cell was measured with nothing masked, so there is no drop to tell")
    if len(passed) == 1:
        raise ResultsError("no cell was measured with heads masked")
    arms: dict[str, _Cells] = defaultdict(dict)
    for name, cells in passed.items():
        arms[Arm.of(name).group][name] = cells
    groups, measured = [], {}
    for name in sorted(arms, key=_order):
        drawn, first = arms[name], Arm.of(next(iter(arms[name])))
        mean = mean_of(drawn)
        measured[name] = mean, drawn
        draws = {arm: finite_mean(list(cells.values())) for arm, cells in sorted(drawn.items())}
        groups.append(
            Group(
                name=name,
                count=first.count,
                by=first.by,
                cells=len(mean),
                accuracy=accuracy_of(mean, drawn),
                drop=difference_of(*measured[NONE], mean, drawn) if first.count else None,
                draws=draws if first.draw else {},
                masks={arm: masks[arm] for arm in sorted(drawn)},
            )
        )
    best = [group for group in groups if group.count and not group.draws]
    controls = {group.count: group.name for group in groups if group.draws}
    excess = {
        group.name: difference_of(*measured[controls[group.count]], *measured[group.name])
        for group in best
        if group.count in controls
    }
    return Effect(
        mode=next((record.mask.mode for record in records if record.mask), ""),
        groups=groups,
        excess=excess,
        comparison=list(_compared(best, excess, measured)) if any(group.by for group in best) else [],
        until=until,
        reached=_reached(best, until * groups[0].accuracy.value),
        notes=list(_notes(groups, groups[0].accuracy.value)),
    )


def _order(name: str) -> tuple[int, bool, str]:
    """Of a group: by count, the best heads before their control."""
    is_control = name.startswith("random_")
    first = Arm.of(f"{name}_draw_1" if is_control else name)
    return first.count, is_control, first.by


def _reached(best: Sequence[Group], accuracy: float) -> dict[str, int | None]:
    """By ranking the smallest count that brings accuracy down so far; none where nothing was retrieved unmasked."""
    found: dict[str, int | None] = {group.by: None for group in best}
    for group in reversed(best):
        if accuracy > 0 and group.accuracy.value <= accuracy + 1e-12:
            found[group.by] = group.count
    return found


def _compared(
    best: Sequence[Group], excess: Mapping[str, Figure], measured: Mapping[str, tuple[Mapping[Cell, float], _Cells]]
) -> Iterator[Compared]:
    """By count, the ranking whose best heads cost most first."""
    for count in sorted({group.count for group in best}):
        those = [(group, group.drop) for group in best if group.count == count and group.drop is not None]
        those.sort(key=lambda each: -each[1].value)
        first = those[0][0].name
        for group, drop in those:
            per_head = Figure(*(part / count for part in (drop.value, drop.low, drop.high)))
            behind = difference_of(*measured[group.name], *measured[first]) if group.name != first else None
            yield Compared(group.by, count, drop, excess.get(group.name), per_head, behind)


def to_json(effect: Effect, facts: Facts) -> dict[str, object]:
    """The content of `ablation.json`: plain builtins, after what the run's facts say."""
    return {
        "schema": SCHEMA,
        **facts,
        "mode": effect.mode,
        "groups": [asdict(group) for group in effect.groups],
        "excess": {name.removeprefix("top_"): asdict(figure) for name, figure in effect.excess.items()},
        "comparison": [asdict(compared) for compared in effect.comparison],
        "until": effect.until,
        # Of one ranking its count alone, as files of one ranking have had it.
        "reached": dict(effect.reached) if effect.comparison else next(iter(effect.reached.values()), None),
        "notes": list(effect.notes),
    }


def cell_of(record: Record) -> Cell:
    """What of a record the arms share."""
    return record.place.facets, record.seed, record.place.grid


def mean_of(drawn: Mapping[str, Mapping[Cell, float]]) -> dict[Cell, float]:
    """Each cell's mean over draws; cells that every draw measured."""
    shared = set.intersection(*(set(cells) for cells in drawn.values()))
    return {cell: finite_mean([cells[cell] for cells in drawn.values()]) for cell in sorted(shared)}


def accuracy_of(mean: Mapping[Cell, float], drawn: Mapping[str, Mapping[Cell, float]]) -> Figure:
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


def difference_of(
    high: Mapping[Cell, float],
    high_draws: Mapping[str, Mapping[Cell, float]],
    low: Mapping[Cell, float],
    low_draws: Mapping[str, Mapping[Cell, float]],
) -> Figure:
    """`high` minus `low` on the cells of both; see `intervals.difference_interval`."""
    shared = sorted(set(high) & set(low))
    first, second = {cell: high[cell] for cell in shared}, {cell: low[cell] for cell in shared}
    one, other = accuracy_of(first, high_draws), accuracy_of(second, low_draws)
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
    for group in filter(lambda group: group.draws, groups):
        tops = [other.masks[other.name] for other in groups if other.count == group.count and not other.draws]
        # Draws take the layers of one ranking after the other.
        moved = {min((borrowed(top, drawn) for top in tops), key=len, default=""): 0 for drawn in group.masks.values()}
        yield from (f"{group.name}: {sentence}" for sentence in moved if sentence)
    alike: dict[tuple[int, frozenset[tuple[int, int]]], list[str]] = defaultdict(list)
    for group in groups:
        if group.by:
            alike[group.count, frozenset(group.masks[group.name])].append(group.by)
    for (count, _), names in alike.items():
        if len(names) > 1:
            yield f"top_{count}: the same heads by {', '.join(names)}"
