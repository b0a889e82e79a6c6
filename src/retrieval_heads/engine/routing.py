"""Which replica asks which cell: prompts that start alike stay together, and every replica has as much to compute.

Tokens are counted as a prefix cache that holds everything leaves them, see `retrieval_heads.prompts.reuse`: two
prompts of one haystack, seed and wording share all up to the needle that stands first, and two with their needle at the
same place all up to the end of the shorter one. Pure; imports neither torch nor vllm.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.runs.place import DEPTH, LENGTH, NEEDLE
from retrieval_heads.tasks.task import Cell, Question

ANSWER = 64
"""Tokens that a cell costs however much of its prompt is cached: its question and its answer."""

_WORTH = 0.01
"""The share of a replica's tokens by which its load must fall, or cells stay where they are."""
_PICKS = 16
"""Single cells that are tried at a time."""


@dataclass(frozen=True)
class Asked:
    """What routing needs to know of a cell.

    Args:
        prefix: Names what its prompt starts with: haystack, seed, wording, and the mask where there is one.
        needle: Names its needle.
        insertion: Tokens of the prompt before the needle, about.
        length: Tokens of the prompt.
    """

    prefix: str
    needle: str
    insertion: int
    length: int

    @classmethod
    def of(cls, question: Question, cell: Cell, limit: int) -> Asked:
        """A cell as it was submitted.

        Args:
            question: Its suite's.
            cell: What is asked.
            limit: Tokens that fit the model; a longer prompt is skipped, which costs nothing.
        """
        place = cell.place
        length, depth = place.get(LENGTH), place.get(DEPTH)
        # A task that says neither is asked of whichever replica has least to do.
        tokens = length if isinstance(length, int) else 0
        if tokens > limit:
            return cls("", "", 0, 0)
        if cell.stored is None:
            start = [question.source, place.seed, question.prompt and question.prompt.model_dump()]
        else:
            recipe = cell.stored.recipe
            start = [recipe and recipe.haystack, recipe and recipe.offset, recipe and recipe.wording]
        if place.arm not in ("", NONE):  # a mask's cache is its own
            start += [question.suite, place.arm]
        return cls(
            prefix=json.dumps(start, sort_keys=True),
            needle=str(place.get(NEEDLE) or ""),
            insertion=round(tokens * depth / 100) if isinstance(depth, int | float) else 0,
            length=tokens,
        )

    @property
    def work(self) -> int:
        """Tokens to compute where the prompt is cached up to the needle."""
        return self.length - self.insertion + ANSWER


def computed_tokens(cells: Iterable[Asked], cached: int = 0) -> int:
    """Tokens that one engine computes for cells of one prefix.

    Args:
        cells: In any order.
        cached: Tokens of that prefix which its cache holds.
    """
    deepest = answers = 0
    ends: dict[tuple[str, int], int] = {}
    for cell in cells:
        deepest = max(deepest, cell.insertion)
        place = (cell.needle, cell.insertion)
        ends[place] = max(ends.get(place, 0), cell.length)
        answers += ANSWER
    behind = sum(end - insertion for (_, insertion), end in ends.items())
    return max(0, deepest - cached) + behind + answers


def share_out(
    cells: Sequence[Asked], loads: Sequence[int], cached: Mapping[str, Sequence[int]] | None = None
) -> list[int]:
    """Choose a replica for every cell.

    Cells of one prefix go to one replica, the costliest first, each to the one that is then done first. A prefix is
    split only where a replica would otherwise be idle before the last is done. It is split by the needle's place: one
    replica gets cells whose needles stand first, another the rest. The first reads the haystack no further than to
    its own deepest needle, and that stretch is all that is computed twice; a split by length, or cells dealt in turn,
    would have both read nearly all of it. What is still uneven then is evened out cell by cell.

    Args:
        cells: To be asked, in any order.
        loads: Tokens that each replica still has to compute.
        cached: By prefix, its tokens in each replica's cache; 0 where it is not named.

    Returns:
        The replica of each cell, by its index in `loads`.
    """
    parts = _Parts(list(loads), cached or {})
    groups: dict[str, list[int]] = {}
    for index in sorted(range(len(cells)), key=lambda index: (cells[index].insertion, cells[index].length)):
        groups.setdefault(cells[index].prefix, []).append(index)
    costs = {prefix: computed_tokens(cells[index] for index in group) for prefix, group in groups.items()}
    for prefix in sorted(groups, key=lambda prefix: -costs[prefix]):
        parts.place(prefix, [(index, cells[index]) for index in groups[prefix]])
    while parts.level():
        pass
    chosen = [0] * len(cells)
    for replica, held in enumerate(parts.held):
        for part in held.values():
            for index, _ in part:
                chosen[index] = replica
    return chosen


_Part = list[tuple[int, Asked]]
"""Cells of one prefix with their indices, the needles that stand first ahead."""


class _Move(NamedTuple):
    """What two replicas hold of a prefix after cells were moved, and what that makes their loads."""

    loads: tuple[int, int]
    prefix: str
    kept: _Part
    taken: _Part


class _Parts:
    """Which cells each replica has so far, and how many tokens that makes."""

    def __init__(self, loads: list[int], cached: Mapping[str, Sequence[int]]) -> None:
        self._loads = loads
        self._cached = cached
        self.held: list[dict[str, _Part]] = [{} for _ in loads]

    def place(self, prefix: str, part: _Part) -> None:
        """Give all cells of a prefix to the replica that is then done first."""
        after = [load + self._cost(replica, prefix, part) for replica, load in enumerate(self._loads)]
        replica = after.index(min(after))
        self.held[replica][prefix] = part
        self._loads[replica] = after[replica]

    def level(self) -> bool:
        """Move cells from the replica that is done last to the one that is done first, if that is worth it."""
        last, first = self._loads.index(max(self._loads)), self._loads.index(min(self._loads))
        moves = (
            move
            for prefix, part in self.held[last].items()
            for move in (
                *self._cut(last, first, prefix, part, is_shallow=True),
                *self._cut(last, first, prefix, part, is_shallow=False),
                *self._picked(last, first, prefix, part),
            )
        )
        best = min(moves, key=lambda move: max(move.loads), default=None)
        if best is None or self._loads[last] - max(best.loads) <= _WORTH * self._loads[last]:
            return False
        self._loads[last], self._loads[first] = best.loads
        self.held[last][best.prefix], self.held[first][best.prefix] = best.kept, best.taken
        return True

    def _cut(self, last: int, first: int, prefix: str, part: _Part, *, is_shallow: bool) -> list[_Move]:
        """The two ways to move one end of a part that come nearest to making both loads equal."""

        def moved(count: int) -> _Move:
            cut = count if is_shallow else len(part) - count
            kept, taken = (part[cut:], part[:cut]) if is_shallow else (part[:cut], part[cut:])
            return self._move(last, first, prefix, kept, taken)

        fewest, most = 0, len(part)  # the load that falls and the one that rises cross once between them
        while most - fewest > 1:
            middle = (fewest + most) // 2
            falling, rising = moved(middle).loads
            fewest, most = (fewest, middle) if rising > falling else (middle, most)
        return [moved(fewest), moved(most)]

    def _picked(self, last: int, first: int, prefix: str, part: _Part) -> list[_Move]:
        """Ways to move one cell, which may cost no second reading: a needle ahead of the other part's deepest."""
        half = (self._loads[last] - self._loads[first]) / 2
        nearest = heapq.nsmallest(_PICKS, part, key=lambda one: abs(one[1].work - half))
        return [self._move(last, first, prefix, [one for one in part if one != pick], [pick]) for pick in nearest]

    def _move(self, last: int, first: int, prefix: str, kept: _Part, taken: _Part) -> _Move:
        there = self.held[first].get(prefix, [])
        taken = sorted([*there, *taken], key=lambda one: (one[1].insertion, one[1].length))
        falls = self._cost(last, prefix, self.held[last][prefix]) - self._cost(last, prefix, kept)
        rises = self._cost(first, prefix, taken) - self._cost(first, prefix, there)
        return _Move((self._loads[last] - falls, self._loads[first] + rises), prefix, kept, taken)

    def _cost(self, replica: int, prefix: str, part: _Part) -> int:
        cached = self._cached[prefix][replica] if prefix in self._cached else 0
        return computed_tokens((cell for _, cell in part), cached)
