"""Values of a sweep: a list, or a range in equal gaps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from retrieval_heads.settings.section import Section, Whole

MOST_CELLS = 100_000
"""Of a suite. pytest lists, selects and reports each of them."""


class Range(Section):
    """`intervals` equal gaps from `min` to `max`, both ends included; without it every integer between."""

    min: Whole
    max: Whole
    intervals: Annotated[Whole, Field(ge=1, le=MOST_CELLS)] | None = None
    spacing: Literal["linear", "sigmoid"] = "linear"

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        if self.spacing == "sigmoid" and self.intervals is None:
            raise ValueError("sigmoid spacing needs intervals")
        if self.intervals is None and self.max - self.min >= MOST_CELLS:
            raise ValueError(f"{self.max - self.min + 1:,} values; a suite has at most {MOST_CELLS:,} cells")
        return self

    @property
    def points(self) -> list[float]:
        """Its points, not rounded."""
        if self.intervals is None:
            return [float(point) for point in range(self.min, self.max + 1)]
        if self.intervals == 1:
            return [float(self.min), float(self.max)]
        width = self.max - self.min
        return [self.min + width * step / self.intervals for step in range(self.intervals + 1)]


def branch_of(value: object) -> str:
    """What was written, a range or a list: only the mistakes of that branch are told."""
    return "Range" if isinstance(value, dict | Range) else "list[]"


Counts = Annotated[
    Annotated[list[Annotated[Whole, Field(ge=0)]], Tag("list[]")] | Annotated[Range, Tag("Range")],
    Discriminator(branch_of),
]
"""How many of something, several times."""


def whole_values(values: list[int] | Range) -> list[int]:
    """The values in order: a list as it is; a range rounded to integers, each once."""
    if isinstance(values, Range):
        return sorted({round(point) for point in values.points})
    return values
