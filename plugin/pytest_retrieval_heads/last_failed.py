"""`--lf` and `--ff` and a broken gate: its whole suite is asked again, and only a whole suite clears it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


class LastFailed:
    """pytest's set of what failed last, as far as gates are concerned; nothing where the cache is switched off.

    Keys of that set are plain texts in pytest 9.0 and objects that print as such later.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._plugin: Any = config.pluginmanager.get_plugin("lfplugin")
        self._added: set[str] = set()

    def select_whole(self, node: str, items: Iterable[pytest.Item]) -> None:
        """Count a suite's cells among what failed where one of its gates is, while pytest chooses by that set.

        Args:
            node: The node id that its items stand under.
            items: All of them.
        """
        if self._plugin is None or not self._plugin.active or not any(self._gates(node)):
            return
        for item in items:
            key = getattr(item, "id", item.nodeid)
            if key not in self._plugin.lastfailed:
                self._plugin.lastfailed[key] = True
                self._added.add(item.nodeid)

    def failed(self, node: str) -> None:
        """A cell failed by itself, and stays."""
        self._added.discard(node)

    def settle(self, node: str, judged: Collection[str], is_gone: Callable[[str], bool]) -> None:
        """Drop the gates of a suite, judged whole, that it has no more.

        Args:
            node: The node id that the suite's items stand under.
            judged: The node ids of the gates that were judged now.
            is_gone: Whether a gate that was not is none any more.
        """
        if self._plugin is None:
            return
        for key in list(self._gates(node)):
            gate = str(key).removeprefix(f"{node}::gate[").removesuffix("]")
            if str(key) not in judged and is_gone(gate):
                del self._plugin.lastfailed[key]

    def restore(self) -> None:
        """Forget the cells that were counted for their gate alone and were not asked in the end."""
        if self._plugin is not None and self._added:
            for key in [key for key in self._plugin.lastfailed if str(key) in self._added]:
                del self._plugin.lastfailed[key]

    def _gates(self, node: str) -> Iterable[Any]:
        return (key for key in self._plugin.lastfailed if str(key).startswith(f"{node}::gate["))
