"""A detect suite that stops asking once its best heads are settled: which of its cells are asked, and which are spared.

Every process that asks decides for itself, of the same results in the same order, and so they decide the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from pytest_retrieval_heads.plan import SelectedCell
from retrieval_heads.heads.score import ranking_of
from retrieval_heads.heads.stopping import UntilStable
from retrieval_heads.runs.record import Record


@dataclass
class Sampling:
    """The cells of one suite.

    Args:
        rule: The suite's.
        cells: Its selected cells, in the order in which they are asked.
        submit: Hands cells to the engine.
        record: Waits for a cell's record.
    """

    rule: UntilStable
    cells: Sequence[SelectedCell]
    submit: Callable[[Sequence[SelectedCell]], None]
    record: Callable[[SelectedCell], Record]
    reason: str = ""
    """Why no more cells are asked; empty while more may be."""
    _asked: int = 0
    _figures: list[list[float]] = field(default_factory=list)
    """Of each asked cell whose answer counts, and that was seen."""
    _seen: int = 0

    def __post_init__(self) -> None:
        self._looks = self.rule.looks(len(self.cells))
        self._places = {cell.key: place for place, cell in enumerate(self.cells)}

    def begin(self) -> None:
        """Ask the cells up to the first look."""
        self._ask(self._looks[0])

    def is_spared(self, cell: SelectedCell) -> bool:
        """Whether a cell is not asked; waits for the results of those whose turn is before it."""
        while self._places[cell.key] >= self._asked and not self.reason:
            self._look()
        return self._places[cell.key] >= self._asked

    def _look(self) -> None:
        """Ask the next cells, or none any more."""
        import numpy as np

        for cell in self.cells[self._seen : self._asked]:
            record = self.record(cell)
            if record.passed and record.heads is not None:
                self._figures.append(list(chain.from_iterable(record.heads[ranking_of(record.heads)])))
        self._seen, total = self._asked, len(self.cells)
        if self._asked == self._looks[-1]:
            self.reason = f"at most {self._asked} of {total} cells were to be asked, and this one was not among them"
        elif self.rule.is_settled(np.array(self._figures), self._asked, total):
            self.reason = f"{self._asked} of {total} cells settled the top {self.rule.top}; this one was not needed"
        else:
            self._ask(next(look for look in self._looks if look > self._asked))

    def _ask(self, count: int) -> None:
        self.submit(self.cells[self._asked : count])
        self._asked = count
