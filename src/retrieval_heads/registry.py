"""Things that are found by name: built-in ones, and those that other distributions register as entry points."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from retrieval_heads.errors import ConfigError

Thing = TypeVar("Thing")


class Registry(Generic[Thing]):
    """Finds what is registered under a name; nothing is imported before it is asked for.

    Args:
        group: The entry points' group, such as `retrieval_heads.tasks`.
        noun: What errors call one of them, such as `task`.
        builtin: The project's own, `module:attribute` by name, in order.
    """

    def __init__(self, group: str, noun: str, builtin: Mapping[str, str]) -> None:
        self._group = group
        self._noun = noun
        self._builtin = builtin
        self._loaded: dict[str, Thing] = {}

    @cached_property
    def _points(self) -> Mapping[str, EntryPoint]:
        points = {name: EntryPoint(name, value, self._group) for name, value in self._builtin.items()}
        for point in entry_points(group=self._group):
            known = points.setdefault(point.name, point)
            if known.value != point.value:
                by = f"{known.value} and {point.value}"
                raise ConfigError(f"the {self._noun} {point.name!r} is registered twice: by {by}")
        return points

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, the project's own first.

        Raises:
            ConfigError: A name is registered twice.
        """
        return tuple(self._points)

    def find(self, name: str) -> Thing:
        """What is registered under a name.

        Raises:
            ConfigError: Nothing is, or it cannot be imported.
        """
        if name not in self._loaded:
            if name not in self._points:
                close = difflib.get_close_matches(name, self.names, n=1, cutoff=0.6)
                meant = f"did you mean {close[0]!r}? " if close else ""
                raise ConfigError(f"unknown {self._noun} {name!r}; {meant}there are: {', '.join(self.names)}")
            point = self._points[name]
            try:
                self._loaded[name] = point.load()
            except Exception as error:  # another distribution's code: whatever it raises is told with its name
                why = f"{type(error).__name__}: {error}"
                raise ConfigError(f"the {self._noun} {name!r} ({point.value}) cannot be imported: {why}") from None
        return self._loaded[name]
