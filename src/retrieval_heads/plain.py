"""Declared values as plain JSON: the one way in which they cross from process to process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import JsonValue, TypeAdapter

Json = JsonValue
"""Anything that JSON holds."""
JsonObject = dict[str, Json]
Fields = Mapping[str, Any]
"""An open section of a user's settings, plain JSON by name: whoever it is handed to knows its keys (the engine those of
`model` and `generation`, a task its own).
"""


class Plain:
    """A frozen dataclass that crosses a process; its fields are builtins, other such classes or pydantic models."""

    __slots__ = ()

    def to_json(self) -> JsonObject:
        """Plain builtins that mean the same."""
        made: JsonObject = _adapter(type(self)).dump_python(self, mode="json")
        return made

    @classmethod
    def of_json(cls, data: Mapping[str, Json]) -> Self:
        """One as `to_json` gave it.

        Raises:
            pydantic.ValidationError: It is none.
        """
        made: Self = _adapter(cls).validate_python(data)
        return made


_ADAPTERS: dict[type[Plain], TypeAdapter[Any]] = {}


def _adapter(kind: type[Plain]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
