"""Which heads are masked, or stream, as a suite says it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from retrieval_heads.ablation.arms import named, repeated
from retrieval_heads.ablation.compression import RANDOM
from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.score import head_score, is_of_texts
from retrieval_heads.settings.section import HeadPair, Number, Section, Whole


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _refuse_twice(key: str, values: Sequence[object]) -> None:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{key}: {twice[0]} is given twice")


def _is_of_texts(name: str, key: str) -> bool:
    try:
        return is_of_texts(head_score(name))
    except ConfigError as error:
        raise ValueError(f"{key}: {error}") from None


_Heads = Annotated[list[HeadPair], Field(min_length=1)]


class Ablate(Section):
    """Which heads are masked, how, and beside how many controls."""

    heads: (
        Annotated[
            Annotated[_Heads, Tag("list[]")]
            | Annotated[dict[str, _Heads], Field(min_length=1), Tag("list[by]")]
            | Annotated[str, Tag("constrained-str")],
            Discriminator(lambda value: {list: "list[]", dict: "list[by]"}.get(type(value), "constrained-str")),
        ]
        | None
    ) = None
    """A head file, a list of [layer, head] with the best first, or `detect/NAME`: what that suite of the run finds. A
    mapping compares lists, each by its name."""
    by: Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)] | None = None
    """The head score that ranks the heads of a file or a suite; a list compares the best heads of each. Left out,
    `copy` or what stands there in its place."""
    top: Annotated[list[Annotated[Whole, Field(ge=1)]], Field(min_length=1), BeforeValidator(_as_list)] = [10]
    """How many of the best heads are masked; a list makes a dose curve."""
    draws: Annotated[Whole, Field(ge=1)] = 5
    """Controls: as many other heads of the same layers, drawn this often."""
    mode: Literal["zero", "mean", "uniform"] = "zero"
    """How a head is masked; see `retrieval_heads.ablation.arms.MODES`."""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """Chooses the control draws."""
    controls: bool = True
    """Measure other behaviour under each mask as well; see `retrieval_heads.ablation.controls`."""
    until: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    """The smallest count is told that brings accuracy down to this share of the unmasked."""

    @model_validator(mode="after")
    def _distinct(self) -> Ablate:
        for name, heads in self.lists.items():
            if not re.fullmatch(r"\w*", name):
                raise ValueError(f"heads: {name!r}: a ranking's name is of letters, digits and _")
            if twice := repeated(heads):
                raise ValueError(f"heads: head {named(twice)} is given twice")
        _refuse_no_source(self.heads)
        if self.by is not None and self.lists:
            raise ValueError("by: a list of heads is ranked as it stands; leave it out")
        for by in self.by or ():
            if self.awaited and _is_of_texts(by, "by"):
                raise ValueError(
                    f"by: {by} is measured when a run's cells are done; name the heads.json of an earlier run"
                )
        _refuse_twice("by", self.by or ())
        _refuse_twice("top", self.top)
        return self

    @property
    def rankings(self) -> tuple[str, ...]:
        """The head scores that rank heads, or the lists' names; an empty one is the usual score, or a nameless list."""
        return tuple(self.by or self.lists or ("",))

    @property
    def lists(self) -> Mapping[str, Sequence[tuple[int, int]]]:
        """The heads that are listed, by ranking; none where a file or a suite has them."""
        if isinstance(self.heads, dict):
            return self.heads
        return {"": self.heads} if isinstance(self.heads, list) else {}

    @property
    def awaited(self) -> str | None:
        """The detect suite of the same run whose heads are masked: `detect/NAME`."""
        return awaited_suite(self.heads) if isinstance(self.heads, str) else None


def _refuse_no_source(heads: object) -> None:
    if heads == "detect/":
        raise ValueError("heads: detect/ names no suite; expected detect/NAME")
    if heads == "":
        raise ValueError("heads: a head file or detect/NAME is expected, found ''")


def awaited_suite(heads: str | None) -> str | None:
    """The detect suite of the same run that finds heads: `detect/NAME`."""
    return heads if heads is not None and heads.startswith("detect/") else None


class Compress(Section):
    """Which KV heads keep a whole context, by several rankings, and what the others see."""

    heads: str | None = None
    """What has the scores: a head file, or `detect/NAME`, what that suite of the run measures."""
    scores: Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)] = ["copy", RANDOM]
    """Rankings: head scores of `heads`, further head files by their own score, and `random`."""
    keep: Annotated[list[Annotated[Number, Field(ge=0, le=1)]], Field(min_length=1), BeforeValidator(_as_list)] = [
        1.0,
        0.75,
        0.5,
        0.25,
        0.1,
    ]
    """Shares of the KV heads that keep everything; all of them do so in the arm `none`."""
    sink: Annotated[Whole, Field(ge=0)] = 16
    """First tokens that the others see."""
    recent: Annotated[Whole, Field(ge=1)] = 256
    """Last tokens that they see."""
    anchor: Literal["row", "context"] = "row"
    """Whether these move with each row, or are the context's last ones and all that follows."""
    prefill: bool = False
    """Whether the context's own rows see no more either."""
    draws: Annotated[Whole, Field(ge=1)] = 3
    """How often `random` is drawn."""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """Chooses the draws."""
    until: Annotated[Number, Field(gt=0, lt=1)] = 0.95
    """The smallest share is told that keeps this share of accuracy."""

    @model_validator(mode="after")
    def _sound(self) -> Compress:
        for key in ("scores", "keep"):
            values = getattr(self, key)
            if twice := [one for one in values if values.count(one) > 1]:
                raise ValueError(f"{key}: {twice[0]} is given twice")
        if self.prefill and self.anchor == "context":
            raise ValueError(
                "anchor: the context's own rows have no end of it behind them; with prefill, row is expected"
            )
        _refuse_no_source(self.heads)
        for name in self.measured:
            is_late = _is_of_texts(name, "scores")
            if self.heads is None:
                raise ValueError(
                    f"scores: {name} is a score of heads; expected `heads:` with a head file or detect/NAME"
                )
            if self.awaited and is_late:
                raise ValueError(
                    f"scores: {name} is measured when a run's cells are done; name the heads.json of an earlier run"
                )
        names = [ranking_name(one) for one in self.scores]
        if twice := [one for one in names if names.count(one) > 1]:
            raise ValueError(f"scores: two rankings are called {twice[0]}")
        if all(share == 1 for share in self.keep):
            raise ValueError("keep: nothing is compressed; a share below 1 is expected")
        return self

    @property
    def measured(self) -> list[str]:
        """The head scores among its rankings."""
        return [name for name in self.scores if name != RANDOM and not is_file(name)]

    @property
    def awaited(self) -> str | None:
        """The detect suite of the same run whose heads are ranked: `detect/NAME`."""
        return awaited_suite(self.heads)


def is_file(score: str) -> bool:
    """Whether a ranking is a head file's."""
    return "/" in score or Path(score).suffix != ""


def ranking_name(score: str) -> str:
    """What arms call a ranking."""
    if not is_file(score):
        return score
    path = Path(score)
    name = re.sub(r"\W+", "_", path.parent.name if path.stem == "heads" and path.parent.name else path.stem).strip("_")
    return name if name[:1].isalpha() else f"file_{name}"
