"""Rows whose writing is wanted: which token each predicted, and which keys are needles', on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True)
class Emission:
    """Consecutive rows of one request, each of which predicted a token.

    Args:
        first: Position of the first of them in the request.
        tokens: The token that each predicted.
        spans: The needles' positions, in order and apart from each other.
        stretch: Which of a step's stretches the rows are among.
        place: Of the first of them among all rows that the step scores.
    """

    first: int
    tokens: tuple[int, ...]
    spans: tuple[Span, ...]
    stretch: int = 0
    place: int = 0

    @property
    def end(self) -> int:
        """Position behind the last row."""
        return self.first + len(self.tokens)

    def needle(self, sliding_window: int | None = None) -> list[int]:
        """Positions of the needles' keys that a row sees at least, in order."""
        first = 0 if sliding_window is None else max(0, self.first - sliding_window + 1)
        return [key for start, end in self.spans for key in range(max(start, first), min(end, self.end))]

    def ratios(self, sliding_window: int | None = None) -> list[float]:
        """Of each row n / m: n of the keys that it sees are needles', m are others; 0 where there are no others."""
        found = []
        for row in range(self.first, self.end):
            first = 0 if sliding_window is None else max(0, row - sliding_window + 1)
            needles = sum(max(0, min(end, row + 1) - max(start, first)) for start, end in self.spans)
            others = row + 1 - first - needles
            found.append(needles / others if others else 0.0)
        return found


def united(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The same positions in spans that are in order and apart from each other."""
    found: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)
