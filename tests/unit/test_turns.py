"""Whose job is next: each run's in its turn."""

from __future__ import annotations

import queue
import threading

import pytest

from retrieval_heads.engine.turns import Turns


def drained(turns: Turns) -> list[str]:
    found = []
    while True:
        try:
            found.append(turns.get(block=False))
        except queue.Empty:
            return found


def test_jobs_of_one_run_keep_their_order() -> None:
    turns = Turns()
    for name in "abc":
        turns.put(name)
    assert drained(turns) == ["a", "b", "c"]


def test_runs_take_turns_and_none_waits_for_the_end_of_another() -> None:
    turns = Turns()
    for number in range(4):
        turns.put(f"long {number}", "long")
    assert turns.get() == "long 0"
    turns.put("short 0", "short")
    turns.put("short 1", "short")
    assert drained(turns) == ["long 1", "short 0", "long 2", "short 1", "long 3"]


def test_what_a_run_asked_that_is_gone_is_nobodys_turn() -> None:
    turns = Turns()
    for run in ("gone", "stays"):
        turns.put(f"{run} 0", run)
    turns.drop("gone")
    assert drained(turns) == ["stays 0"]


def test_a_run_that_goes_wakes_whoever_waits() -> None:
    turns = Turns()
    threading.Timer(0.1, turns.drop, ["gone"]).start()
    with pytest.raises(queue.Empty):
        turns.get()
