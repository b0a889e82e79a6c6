"""What a setting costs: the same cells under it and under the reference, paired.

Pairs are cells that were answered under both. A difference is the setting less the reference. Its interval is that of
a mean of values in [−1, 1] (`retrieval_heads.intervals`), which assumes nothing of them but that cells are drawn alike;
its p value is the exact two-sided test of `gates.paired` (McNemar's where a cell passed or did not, sign flips else).
Where a setting was asked no more once its gates were certain, both are those of `matrix.sequential`, which hold
whenever one stops.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from retrieval_heads.gates.number import PASS_RATE, stored_number
from retrieval_heads.gates.paired import LEVEL, fall_p_value, holm
from retrieval_heads.intervals import Interval, mean_interval
from retrieval_heads.matrix.sequential import drawn, sequential_interval, sequential_p_value
from retrieval_heads.matrix.settings import AGAIN, REFERENCE
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.place import DEPTH, LENGTH, Value, in_order
from retrieval_heads.runs.record import Record, finite_mean


@dataclass(frozen=True)
class Pair:
    """One cell under both."""

    reference: Record
    setting: Record


@dataclass(frozen=True)
class Difference:
    """How a number differs, over cells.

    Args:
        number: `pass_rate`, or the score that decides.
        reference: Its mean under the reference.
        setting: Under the setting.
        interval: Of their difference, 95 %; `None` below `intervals.FEWEST` pairs.
        p_value: That it is none, two-sided; adjusted for all settings where `compare` gave it (Holm 1979).
        pairs: Cells that hold the number under both.
        moved: Those of them in which it differs.
    """

    number: str
    reference: float
    setting: float
    interval: Interval | None
    p_value: float
    pairs: int
    moved: int

    @property
    def value(self) -> float:
        """Below 0 where the setting is worse."""
        return self.setting - self.reference


@dataclass(frozen=True)
class Parting:
    """Where the answers of a setting leave those of the reference.

    Args:
        pairs: Pairs with the token ids of both answers.
        equal: Those with the same tokens from the first to the last.
        first: Of each other pair, the number of the first token that differs, from 0; in the order of the pairs.
        p_value: That answers part no more often than those of the reference asked again do, adjusted for all settings;
            `None` where it was not asked again, and where cells were spared.
    """

    pairs: int
    equal: int
    first: tuple[int, ...]
    p_value: float | None = None

    @property
    def is_more_than_noise(self) -> bool:
        """Whether chance does not explain how often answers part."""
        return self.p_value is not None and self.p_value <= LEVEL

    @property
    def median(self) -> float | None:
        """Of `first`; `None` where all answers are equal."""
        return statistics.median(self.first) if self.first else None


@dataclass(frozen=True)
class Comparison:
    """A suite under one setting, set against the reference.

    Args:
        setting: Its name.
        suite: The suite's id, as under the reference.
        pairs: Cells that were answered under both; where they were asked in an order drawn at random, in that order.
        unpaired: Cells that were not, under either, and were to be.
        spared: Cells that were not needed under the setting or the reference.
        cells: How many cells there are.
        is_drawn: Whether cells were asked in an order drawn at random until the setting's gates were certain.
        other_prompts: Pairs whose prompts are not the same tokens.
        differences: Of the pass rate, and of the score that decides.
        parting: Of the answers.
        by: By axis and value, the difference of the pass rate there.
    """

    setting: str
    suite: str
    pairs: tuple[Pair, ...]
    unpaired: int
    spared: int
    cells: int
    is_drawn: bool
    other_prompts: int
    differences: tuple[Difference, ...]
    parting: Parting
    by: Mapping[str, Mapping[Value, Difference]]

    def of(self, number: str) -> Difference | None:
        """The difference of a number; `None` where no pair holds it."""
        return next((one for one in self.differences if one.number == number), None) or difference(
            self.pairs, number, self.stopped_of
        )

    @property
    def stopped_of(self) -> int | None:
        """Of how many cells a part was asked, for it decided; `None` where all were, or the choice was another."""
        return self.cells if self.is_drawn and self.spared else None


def compare(records: Iterable[Record], facts: Facts | None = None) -> list[Comparison]:
    """Every setting of every suite against the reference.

    Args:
        records: A run's; those of no setting are left out, and so is a suite without a reference.
        facts: What `run.json` says; under `until_decided` settings with the `seed` of their order.
    """
    seeds = {setting: told["seed"] for setting, told in (facts or {}).get("until_decided", {}).items()}
    suites: defaultdict[str, defaultdict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.setting is not None:
            suites[f"{record.kind}/{base_name(record)}"][record.setting].append(record)
    found = [
        _compared(suite, setting, settings[REFERENCE], own, seeds.get(setting))
        for suite, settings in suites.items()
        if REFERENCE in settings
        for setting, own in settings.items()
        if setting != REFERENCE
    ]
    return _against_noise(_adjusted(found))


def base_name(record: Record) -> str:
    """The name that a record's suite has under the reference."""
    return record.suite.removesuffix(f"@{record.setting}")


def difference(pairs: Sequence[Pair], number: str, stopped_of: int | None = None) -> Difference | None:
    """How a number differs over pairs; `None` where none holds it.

    Args:
        pairs: In the order drawn, where it was stopped.
        number: Its name.
        stopped_of: How many cells there are, where no more were asked once these were enough.
    """
    held = [pair for pair in pairs if change_of(pair, number) is not None]
    if not held:
        return None
    changes = changes_of(held, number)
    if stopped_of:
        interval: Interval | None = sequential_interval(changes, stopped_of)
        p_value = sequential_p_value(changes, stopped_of)
    else:
        interval = change_interval(changes)
        p_value = min(1.0, 2 * min(fall_p_value(changes), fall_p_value([-change for change in changes])))
    return Difference(
        number=number,
        reference=finite_mean([stored_number(pair.reference, number) or 0.0 for pair in held]),
        setting=finite_mean([stored_number(pair.setting, number) or 0.0 for pair in held]),
        interval=interval,
        p_value=p_value,
        pairs=len(held),
        moved=sum(change != 0 for change in changes),
    )


def change_of(pair: Pair, number: str) -> float | None:
    """A number under the setting less that under the reference; `None` where either does not hold it."""
    before, after = stored_number(pair.reference, number), stored_number(pair.setting, number)
    return None if before is None or after is None else after - before


def changes_of(pairs: Iterable[Pair], number: str) -> list[float]:
    """Those of the pairs that hold the number under both, in their order."""
    return [change for pair in pairs if (change := change_of(pair, number)) is not None]


def change_interval(changes: Sequence[float]) -> Interval | None:
    """The 95 % interval of the mean of changes, each in [−1, 1]; `None` for fewer than `intervals.FEWEST`."""
    found = mean_interval([change + 1 for change in changes], top=2.0)
    return found and Interval(found.low - 1, found.high - 1)


def _compared(
    suite: str, setting: str, reference: Sequence[Record], own: Sequence[Record], seed: int | None
) -> Comparison:
    before = {record.cell: record for record in reference if record.passed is not None}
    after = {record.cell: record for record in own if record.passed is not None}
    cells = {record.cell for record in (*reference, *own)}
    spared = {record.cell for record in (*reference, *own) if record.status == "spared"}
    both = [cell for cell in before if cell in after]
    pairs = tuple(Pair(before[cell], after[cell]) for cell in (both if seed is None else drawn(both, seed)))
    stopped_of = len(cells) if seed is not None and spared else None
    metrics = dict.fromkeys(pair.setting.metric for pair in pairs)
    numbers = [PASS_RATE, *(metric for metric in metrics if metric)]
    return Comparison(
        setting=setting,
        suite=suite,
        pairs=pairs,
        unpaired=len(cells - spared) - len(pairs),
        spared=len(spared),
        cells=len(cells),
        is_drawn=seed is not None,
        other_prompts=sum(_prompt(pair.reference) != _prompt(pair.setting) for pair in pairs),
        differences=tuple(one for number in numbers if (one := difference(pairs, number, stopped_of)) is not None),
        parting=_parting(pairs),
        by={axis: values for axis in (LENGTH, DEPTH) if (values := _by(pairs, axis, stopped_of))},
    )


def _prompt(record: Record) -> str | None:
    return record.recipe.prompt_hash if record.recipe else None


def _by(pairs: Sequence[Pair], axis: str, stopped_of: int | None) -> dict[Value, Difference]:
    groups: defaultdict[Value, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if (value := pair.reference.place.get(axis)) is not None:
            groups[value].append(pair)
    found = {value: difference(groups[value], PASS_RATE, stopped_of) for value in in_order(groups)}
    return {value: one for value, one in found.items() if one is not None}


def _parting(pairs: Sequence[Pair]) -> Parting:
    known = [pair for pair in pairs if pair.reference.token_ids and pair.setting.token_ids]
    parted = [one for one in map(first_parted, known) if one is not None]
    return Parting(len(known), len(known) - len(parted), tuple(parted))


def first_parted(pair: Pair) -> int | None:
    """The number of the first token in which two answers differ, one that only the longer has too; `None` for none."""
    one, other = pair.reference.token_ids, pair.setting.token_ids
    if one == other:
        return None
    shared = zip(one, other, strict=False)
    return next((place for place, (first, second) in enumerate(shared) if first != second), min(len(one), len(other)))


def _against_noise(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Whether answers part more often than noise has them part.

    Were a setting nothing but the reference asked again, it and `again` would be as likely to be the one of the two
    whose answer to a cell parts from the reference's: McNemar's test, one-sided.
    """
    noise = {one.suite: _equal_cells(one) for one in comparisons if one.setting == AGAIN and not one.stopped_of}
    found: dict[int, float] = {}
    for at, one in enumerate(comparisons):
        if one.setting != AGAIN and one.suite in noise and not one.stopped_of:
            own, again = _equal_cells(one), noise[one.suite]
            if drops := [float(again[cell]) - float(own[cell]) for cell in own if cell in again]:
                found[at] = fall_p_value(drops)
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))
    return [replace(one, parting=replace(one.parting, p_value=adjusted.get(at))) for at, one in enumerate(comparisons)]


def _equal_cells(one: Comparison) -> dict[str, bool]:
    """Of each cell whose answers' tokens are known, whether they are equal."""
    known = [pair for pair in one.pairs if pair.reference.token_ids and pair.setting.token_ids]
    return {pair.reference.cell: first_parted(pair) is None for pair in known}


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The p values of each number adjusted over all settings and suites; noise by itself is no setting."""
    places = [
        (at, number)
        for at, one in enumerate(comparisons)
        if one.setting != AGAIN
        for number in range(len(one.differences))
    ]
    kinds: defaultdict[bool, list[tuple[int, int]]] = defaultdict(list)
    for at, number in places:
        kinds[comparisons[at].differences[number].number == PASS_RATE].append((at, number))
    adjusted: dict[tuple[int, int], float] = {}
    for family in kinds.values():
        values = holm([comparisons[at].differences[number].p_value for at, number in family])
        adjusted |= dict(zip(family, values, strict=True))
    return [
        replace(
            one,
            differences=tuple(
                replace(each, p_value=adjusted.get((at, number), each.p_value))
                for number, each in enumerate(one.differences)
            ),
        )
        for at, one in enumerate(comparisons)
    ]
