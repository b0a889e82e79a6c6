"""Which request a step's seconds were spent on."""

from __future__ import annotations

import pytest

from retrieval_heads.engine.backends.shares import Shares


def test_a_step_is_shared_out_by_the_tokens_that_it_computed() -> None:
    shares = Shares()
    assert shares.stepped(4.0, {"short": 100, "long": 300}, []) == {}
    assert shares.stepped(1.0, {"short": 100, "long": 400}, ["short"]) == {"short": pytest.approx(1.0 + 0.2)}
    assert shares.stepped(2.0, {"long": 1}, ["long"]) == {"long": pytest.approx(3.0 + 0.8 + 2.0)}


def test_all_shares_are_the_time_of_all_steps() -> None:
    shares = Shares()
    shares.stepped(1.0, {"a": 10, "b": 15}, [])
    found = shares.stepped(2.0, {"a": 1, "b": 1}, ["a", "b"])
    assert sum(found.values()) == pytest.approx(3.0)


def test_a_step_that_computed_nothing_is_nobodys() -> None:
    assert Shares().stepped(1.0, {}, ["a"]) == {"a": 0.0}


def test_a_request_whose_name_comes_again_begins_anew() -> None:
    shares = Shares()
    shares.stepped(1.0, {"a": 10}, [])
    shares.forget("a")
    assert shares.stepped(3.0, {"a": 7}, ["a"]) == {"a": 3.0}
