"""What the start of this process's engine is at, for whoever waits for it."""

from __future__ import annotations

_now = ["starting a process"]


def enter(phase: str) -> None:
    """The start is at this now, in a few words."""
    _now[0] = phase


def phase_now() -> str:
    """What the start is at."""
    return _now[0]
