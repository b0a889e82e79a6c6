"""What a detection or an ablation must come to, as a suite says it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from retrieval_heads.ablation.arms import named, repeated
from retrieval_heads.settings.section import HeadPair, Number, Section, Whole

_DROP = re.compile(r"top_(\d+)_drop_exceeds_random$")


class Expect(Section):
    """What a detection or an ablation must come to, decided once the run is over."""

    top_heads: list[HeadPair] = []
    """Heads, each [layer, head], that must be among the best by `copy`, or by what the suite measures in its
    place."""
    within_top: Annotated[Whole, Field(ge=1)] = 10
    """How many of the best count as such."""
    min_overlap_with: str | None = None
    """A file of heads whose best must be found again."""
    min_overlap: Annotated[Number, Field(gt=0, le=1)] = 0.8
    """The share of that file's `within_top` best heads that must be among ours."""
    drop_exceeds_random: dict[Annotated[int, Field(ge=1)], Annotated[Number, Field(ge=0, lt=1)]] = {}
    """By count: how much more accuracy must fall under the best heads' mask than under the controls'. Written as
    `top_10_drop_exceeds_random: 0.3`."""

    @model_validator(mode="before")
    @classmethod
    def _drops(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        said = {key: value for key, value in data.items() if not _DROP.match(str(key))}
        drops = dict(said.get("drop_exceeds_random", {}))
        for key, value in data.items():
            if found := _DROP.match(str(key)):
                if (count := int(found[1])) in drops:
                    raise ValueError(f"the drop of the top {count} is expected twice")
                drops[count] = value
        return {**said, "drop_exceeds_random": drops} if drops else said

    @model_validator(mode="after")
    def _possible(self) -> Expect:
        if twice := repeated(self.top_heads):
            raise ValueError(f"top_heads: head {named(twice)} is given twice")
        if len(self.top_heads) > self.within_top:
            raise ValueError(f"{len(self.top_heads)} top_heads cannot be within_top {self.within_top}")
        if not self.top_heads and self.min_overlap_with is None and not self.drop_exceeds_random:
            raise ValueError("expected top_heads, min_overlap_with or top_10_drop_exceeds_random")
        return self
