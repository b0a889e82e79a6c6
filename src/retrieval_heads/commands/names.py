"""Short names of what a command compares."""

from __future__ import annotations

from collections.abc import Iterable


def distinct(names: Iterable[str]) -> list[str]:
    """The names in their order; one that is taken already gets a number behind it, from 2 on."""
    found: list[str] = []
    for name in names:
        number, made = 1, name
        while made in found:
            number += 1
            made = f"{name}-{number}"
        found.append(made)
    return found
