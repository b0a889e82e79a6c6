"""A section of the settings, and the values that stand in many of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from retrieval_heads.errors import UnreadableFile
from retrieval_heads.reading import path_of
from retrieval_heads.redaction import is_secret_key


class Section(BaseModel):
    """A part of the settings; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OpenSection(Section):
    """A section whose other keys belong to the backend that is named; what they may be only that one knows."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        """What a traceback or a failed assertion shows: no secret."""
        return ((name, value) for name, value in super().__repr_args__() if not is_secret_key(name))


def _number(value: object) -> object:
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


def _suite_file(value: str, info: ValidationInfo) -> str:
    path = Path(_path(value)).expanduser()
    base = (info.context or {}).get("base")
    if base is None or path.is_absolute():
        return value
    return str((path if path.exists() else base / path).absolute())


SuiteFile = Annotated[str, AfterValidator(_suite_file)]
"""A file that a suite names, relative to the working directory or else to the suite's folder (`base` in the context of
the validation); an absolute path from then on.
"""

HeadPair = tuple[Annotated[Whole, Field(ge=0)], Annotated[Whole, Field(ge=0)]]
"""A head as settings write it: [layer, head]."""
