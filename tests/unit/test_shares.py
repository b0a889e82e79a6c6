"""Which request a step's seconds were spent on."""

from __future__ import annotations

import pytest

from retrieval_heads.engine.backends.shares import Shares


def test_a_step_is_shared_out_by_the_tokens_that_it_computed() -> None:
    shares = Shares()
    assert shares.stepped(4.0, {"short": (100, 0), "long": (300, 0)}, {}) == {}
    assert shares.stepped(1.0, {"long": (700, 0)}, {"short": (200, 0)}) == {"short": pytest.approx(1.0 + 0.2)}
    assert shares.stepped(2.0, {}, {"long": (701, 0)}) == {"long": pytest.approx(3.0 + 0.8 + 2.0)}


def test_tokens_of_the_cache_cost_nothing() -> None:
    assert Shares().stepped(1.0, {"whole": (90, 0)}, {"cached": (100, 90)})["cached"] == pytest.approx(0.1)


def test_all_shares_are_the_time_of_all_steps() -> None:
    shares = Shares()
    shares.stepped(1.0, {"a": (10, 0), "b": (20, 5)}, {})
    found = shares.stepped(2.0, {}, {"a": (11, 0), "b": (21, 5)})
    assert sum(found.values()) == pytest.approx(3.0)


def test_a_request_whose_name_comes_again_begins_anew() -> None:
    shares = Shares()
    shares.stepped(1.0, {"a": (10, 0)}, {})
    shares.forget("a")
    assert shares.stepped(3.0, {}, {"a": (7, 0)}) == {"a": 3.0}
