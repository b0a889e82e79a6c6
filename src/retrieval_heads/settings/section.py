"""A section of the settings, and the values that stand in many of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from retrieval_heads.errors import UnreadableFile
from retrieval_heads.reading import path_of


class Section(BaseModel):
    """A part of the settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _number(value: Any) -> Any:
    """A number is written as one: YAML's `true` would be taken for a 1."""
    if isinstance(value, bool):
        raise ValueError(f"a number is expected, found {str(value).lower()}")
    return value


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("a text is expected, found none")
    return value


def _path(value: str) -> str:
    try:
        path_of(value)
    except UnreadableFile as error:
        raise ValueError(str(error)) from None
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]
Said = Annotated[str, AfterValidator(_said)]
"""A text that is more than white space."""


PathText = Annotated[str, AfterValidator(_path)]
"""A path that the system can have."""

HeadPair = tuple[Annotated[Whole, Field(ge=0)], Annotated[Whole, Field(ge=0)]]
"""A head as settings write it: [layer, head]."""
