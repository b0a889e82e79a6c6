"""Kills of sessions on the stand-in engine; a thousand, and those of a real engine, by command."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from kill_loop import KillLoop

from forks import Server


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("rounds", "seed"), [(14, 7), pytest.param(20, 8, marks=pytest.mark.long)])
def test_killed_and_resumed_nothing_is_lost_doubled_or_asked_again(forks: Server, rounds: int, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:  # short names: sockets lie in it
        loop = KillLoop(Path(folder), seed=seed, forks=forks)
        for _ in range(rounds):
            loop.round()
        loop.finish()
    kills = sum(loop.tally.where.values())
    assert kills >= 0.75 * rounds, "sessions ended before they were killed"
    assert loop.tally.in_the_middle >= 0.4 * rounds, "kills before the first record and after the last prove little"
