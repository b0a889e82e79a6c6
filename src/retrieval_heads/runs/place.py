"""Where a question stands in its suite's grid: a value on each axis that its task declares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from retrieval_heads.plain import Plain

Value = int | float | str

LENGTH, DEPTH, NEEDLE = "length", "depth", "needle"
"""The needle's axes: tokens of the whole prompt, percent of the haystack before the needle, and the needle's name."""

_LABELS = {LENGTH: "context length (tokens)", DEPTH: "needle depth (%)"}


@dataclass(frozen=True, slots=True)
class Place(Plain):
    """A question's place; it comes back with the answer.

    Args:
        axes: Each axis of the task with the value on it, in the order that the task declares.
        seed: Chooses among questions that are alike in everything else.
        arm: Which heads are masked (ablate): one of `retrieval_heads.ablation.arms`; empty: none.
    """

    axes: tuple[tuple[str, Value], ...]
    seed: int = 0
    arm: str = ""

    def get(self, axis: str) -> Value | None:
        """The value on an axis; `None` where the task has no such axis."""
        return next((value for name, value in self.axes if name == axis), None)

    @property
    def grid(self) -> tuple[Value, ...]:
        """The values that a picture's two sides are, x first: those on the first two axes of numbers.

        A task of fewer has its first axes of names for the other sides; those that are left tell pictures apart.
        """
        return tuple(value for _, value in self._sides)

    @property
    def sides(self) -> tuple[str, ...]:
        """The axes of `grid`."""
        return tuple(name for name, _ in self._sides)

    @property
    def _sides(self) -> tuple[tuple[str, Value], ...]:
        numbers = [axis for axis in self.axes if not isinstance(axis[1], str)]
        names = [axis for axis in self.axes if isinstance(axis[1], str)]
        return (*numbers, *names)[:2]

    @property
    def facets(self) -> tuple[tuple[str, Value], ...]:
        """The other axes, with their values."""
        return tuple(axis for axis in self.axes if axis not in self._sides)

    def __str__(self) -> str:
        """Such as `4096/50`, in tokens and percent."""
        return "/".join(map(shown, self.grid))


def shown(value: Value) -> str:
    """A value as names write it: no more than six digits of a fraction."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def axis_label(axis: str) -> str:
    """An axis as pictures and tables name it."""
    return _LABELS.get(axis, axis.replace("_", " "))


def in_order(values: Iterable[Value]) -> list[Value]:
    """The values on an axis, each once: numbers ascending, then names as they came."""
    each = list(dict.fromkeys(values))
    numbers = [value for value in each if not isinstance(value, str)]
    return [*sorted(numbers), *(value for value in each if isinstance(value, str))]
