"""Which replays need no forward, and what becomes of them. No engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from retrieval_heads.engine.backends.kept_replays import KeptReplays, Replay
from retrieval_heads.heads.looks import Rows


def replay(of: str | None, tokens: int = 10) -> Replay:
    rows = Rows(tokens - 1, (7, 8), (1, 3), (7, 8), (0, 0))
    return Replay(list(range(tokens)), rows, rows.first, of)


class Engine:
    """Scores replays of requests whose rows it has."""

    def __init__(self, *has: str) -> None:
        self.has = has
        self.queued: list[str] = []
        self.forgotten: list[str] = []
        self.refuses = False
        self.kept = KeptReplays(self.score, self.queue, self.forgotten.append)

    def score(self, asked: Mapping[str, tuple[str, Rows]]) -> dict[str, tuple[dict[str, Any], str | None]]:
        found = {name: request for name, (request, _) in asked.items() if request in self.has}
        return {
            name: ({}, "NaN") if request == "bad" else ({"head_scores": request}, None)
            for name, request in found.items()
        }

    def queue(self, name: str, asked: Replay) -> None:
        if self.refuses:
            raise RuntimeError("no room")
        self.queued.append(name)


@pytest.fixture
def ended() -> Engine:
    """Three requests of which rows are kept have just finished; of one, they were lost."""
    engine = Engine("a", "bad")
    for name in ("a", "bad", "lost", "running"):
        engine.kept.keep(name)
    engine.kept.end(["a", "bad", "lost", "another"])
    return engine


def test_replays_of_answers_that_have_just_ended_are_taken_and_no_others(ended: Engine) -> None:
    assert not ended.kept.take("of nobody", replay(None))
    assert not ended.kept.take("early", replay("running"))
    assert not ended.kept.take("not kept", replay("another"))
    assert not ended.kept.are_waiting
    assert ended.kept.take("one", replay("a"))
    assert ended.kept.are_waiting
    ended.kept.finish()
    assert not ended.kept.take("late", replay("a"))


def test_each_is_scored_or_queued_and_told_apart(ended: Engine) -> None:
    for name, of in (("one", "a"), ("two", "bad"), ("three", "lost"), ("four", "a")):
        assert ended.kept.take(name, replay(of))
    done = {each.id: each for each in ended.kept.finish()}
    assert set(done) == {"one", "two", "four"}
    assert (done["one"].head_scores, done["one"].error) == ("a", None)
    assert (done["two"].head_scores, done["two"].error) == (None, "NaN")
    assert done["one"].cached_tokens == done["one"].prompt_tokens == 10
    assert ended.queued == ["three"]
    assert ended.forgotten == ["a", "bad", "a"], "the queued one takes the hashes itself"
    assert ended.kept.finish() == []


def test_what_scoring_takes_is_shared_by_rows_times_keys(ended: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ended.kept.take("short", replay("a", 10))
    ended.kept.take("long", replay("a", 990))
    monkeypatch.setattr("time.perf_counter", iter([0.0, 1.0]).__next__)
    short, long = ended.kept.finish()
    assert (short.seconds, long.seconds) == (0.01, 0.99)


def test_one_that_cannot_be_queued_is_its_own_error(ended: Engine) -> None:
    ended.refuses = True
    ended.kept.take("one", replay("lost"))
    ended.kept.take("two", replay("a"))
    refused, scored = ended.kept.finish()
    assert (refused.id, refused.error) == ("one", "no room")
    assert (scored.id, scored.error) == ("two", None)
    assert ended.forgotten == ["lost", "a"]


def test_what_nobody_waits_for_is_not_scored(ended: Engine) -> None:
    ended.kept.take("one", replay("a"))
    ended.kept.drop(["one", "running", "bad"])
    assert not ended.kept.are_waiting
    assert ended.forgotten == ["a"]
    assert not ended.kept.take("two", replay("bad"))
    ended.kept.end(["running"])
    assert not ended.kept.take("three", replay("running"))


def test_a_name_that_is_used_again_is_that_of_the_new_request(ended: Engine) -> None:
    ended.kept.keep("a")
    assert not ended.kept.take("one", replay("a")), "it has not ended"
    ended.kept.finish()
    ended.kept.end(["a"])
    assert ended.kept.take("one", replay("a"))
