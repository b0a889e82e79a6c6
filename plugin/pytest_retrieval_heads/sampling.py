"""A suite of which as many cells are asked as it takes: which of them, and which are spared.

Every process that asks decides for itself, of the same results in the same order, and so they decide the same. Each
suite is decided in a thread of its own, whichever test is waited for: an engine that takes turns with others would
else stand still, and those that wait for its turn to end with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

from pytest_retrieval_heads.plan import SelectedCell, length_of
from retrieval_heads.errors import EngineError
from retrieval_heads.gates.expression import EffectiveLength
from retrieval_heads.gates.halving import next_length
from retrieval_heads.gates.number import stored_number
from retrieval_heads.heads.score import ranking_of
from retrieval_heads.heads.stopping import UntilStable
from retrieval_heads.matrix.comparison import Pair, change_of
from retrieval_heads.matrix.gate import NotWorse
from retrieval_heads.matrix.sequential import Bets, looks
from retrieval_heads.runs.record import Record, finite_mean

Choice = Generator[Sequence[SelectedCell], Sequence[Record], str]
"""Yields the cells to be asked next, is sent their records, and returns why all others are spared."""


@dataclass
class Sampling:
    """The cells of one suite.

    Args:
        choice: Of the cells that are asked.
        submit: Hands cells to the engine, and whether more may come.
        record: Waits for a cell's record.
    """

    choice: Choice
    submit: Callable[[Sequence[SelectedCell], bool], None]
    record: Callable[[SelectedCell], Record]
    reason: str = ""
    """Why no more cells are asked; empty while more may be."""
    _first: Sequence[SelectedCell] = ()
    _asked: set[str] = field(default_factory=set)
    """Keys of cells."""
    _failure: Exception | None = None
    _is_over: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def begin(self) -> None:
        """Ask the first cells."""
        self._first = next(self.choice)
        self._ask(self._first)

    def go_on(self) -> None:
        """Decide which others are asked as results come; once all suites have begun, for one may look at another."""
        threading.Thread(target=self._decide, daemon=True).start()

    def is_spared(self, cell: SelectedCell) -> bool:
        """Whether a cell is not asked; waits until that is decided.

        Raises:
            Exception: It could not be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or cell.key in self._asked)
            if cell.key in self._asked:
                return False
        if self._failure is not None:
            raise self._failure
        return True

    def _decide(self) -> None:
        asked = self._first
        try:
            while True:
                asked = self.choice.send([self.record(cell) for cell in asked])
                self._ask(asked)
        except StopIteration as end:
            self.reason = end.value
        except Exception as error:  # told to every test that waits
            self._failure = error
        with suppress(EngineError):  # whoever waits for a result is told
            self.submit([], False)
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _ask(self, cells: Sequence[SelectedCell]) -> None:
        self.submit(cells, True)
        with self._changed:
            self._asked.update(cell.key for cell in cells)
            self._changed.notify_all()


def until_stable(rule: UntilStable, cells: Sequence[SelectedCell]) -> Choice:
    """As many cells of a detect suite as settle its best heads.

    Args:
        rule: The suite's.
        cells: In the order in which they are asked.
    """
    import numpy as np

    figures: list[list[float]] = []
    asked, total = 0, len(cells)
    for look in rule.looks(total):
        records = yield cells[asked:look]
        asked = look
        figures += [
            list(chain.from_iterable(record.heads[ranking_of(record.heads)]))
            for record in records
            if record.passed and record.heads is not None
        ]
        if look < rule.looks(total)[-1] and rule.is_settled(np.array(figures), asked, total):
            return f"{asked} of {total} cells settled the top {rule.top}; this one was not needed"
    return f"at most {asked} of {total} cells were to be asked, and this one was not among them"


def bisected(measures: Sequence[EffectiveLength], cells: Sequence[SelectedCell]) -> Choice:
    """The lengths that an effective length takes.

    Args:
        measures: What the suite's gates measure.
        cells: In the suite's order.
    """
    by_length: dict[int, list[SelectedCell]] = {}
    for cell in cells:
        by_length.setdefault(length_of(cell.cell), []).append(cell)
    lengths, records = sorted(by_length), dict[int, Sequence[Record]]()
    for measure in measures:
        while True:
            means = {length: _mean(found, measure.number) for length, found in records.items()}
            if (length := next_length(lengths, means, measure.share)) is None:
                break
            records[length] = yield by_length[length]
    return (
        f"{len(records)} of {len(lengths)} lengths tell the effective length, if longer is not easier "
        "(sweep.samples: bisect_lengths); this one was not needed"
    )


def _mean(records: Sequence[Record], number: str) -> float | None:
    values = [value for record in records if (value := stored_number(record, number)) is not None]
    return finite_mean(values) if values else None


def until_decided(
    gates: Sequence[NotWorse], cells: Sequence[SelectedCell], reference: Callable[[SelectedCell], Record]
) -> Choice:
    """As many cells under a setting as make its gates certain.

    Args:
        gates: The setting's.
        cells: In the order drawn: judged in it, whichever is answered first.
        reference: Waits for the reference's record of a cell.
    """
    bets = [Bets(len(cells), -gate.margin) for gate in gates]
    asked, total = 0, len(cells)
    for look in looks(total):
        records = yield cells[asked:look]
        for cell, after in zip(cells[asked:look], records, strict=True):
            before = reference(cell)
            for gate, bet in zip(gates, bets, strict=True):
                if (change := change_of(Pair(before, after), gate.number)) is not None:
                    bet.see(change)
        asked = look
        if all(bet.decision for bet in bets):
            break
    return f"{asked} of {total} cells made the setting's gates certain; this one was not needed"
