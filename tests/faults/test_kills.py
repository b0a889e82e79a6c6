"""Twenty kills of sessions on the stand-in engine; a thousand, and those of a real engine, by command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(1800)
def test_killed_and_resumed_nothing_is_lost_doubled_or_asked_again() -> None:
    command = [sys.executable, str(Path(__file__).with_name("kill_loop.py")), "--fork", "--rounds", "20", "--seed", "7"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0, ended.stdout
    found = re.search(r"20 rounds: (\d+) kills, (\d+) in the middle of a run", ended.stdout)
    assert found is not None, ended.stdout
    kills, in_the_middle = map(int, found.groups())
    assert kills >= 15, "sessions ended before they were killed"
    assert in_the_middle >= 8, "kills before the first record and after the last prove little"
    assert "0 lost, 0 doubled, 0 asked again" in ended.stdout
