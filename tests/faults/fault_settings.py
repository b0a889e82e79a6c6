"""How many cases are drawn, and which: always the same in `make test`, others in a soak."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import HealthCheck, settings

Item = TypeVar("Item")

TIMES = int(os.environ.get("RH_FAULTS", "0"))
"""How many times the cases of `make test` a soak draws; 0 outside of one."""


def some(items: Sequence[Item], share: int, first: int) -> Sequence[Item]:
    """In `make test` every so-manieth of a list, in a soak all of it.

    Args:
        items: What several readers are given, or several keys.
        share: One of how many is taken.
        first: Which is the first; readers that start at others take the whole list between them.
    """
    return items if TIMES else items[first % share :: share]


def drawn(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Settings of a test that draws so many cases in `make test`."""
    return settings(
        max_examples=examples * max(TIMES, 1),
        derandomize=not TIMES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
