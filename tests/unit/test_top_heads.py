"""Which heads are the best whatever order ties are put in, and how far those of two runs agree."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.heads.top_heads import overlap, top_heads


def top(scores: dict[tuple[int, int], float], count: int = 10):  # type: ignore[no-untyped-def]
    idle = {(0, head): 0.0 for head in range(50)}
    return top_heads([*(idle | scores).items()], count)


def test_heads_that_never_copied_match_nothing() -> None:
    """One copying head before, two others now: 9 of the 10 best were heads of score 0 in both."""
    before, now = top({(1, 1): 0.6}), top({(2, 2): 0.5, (3, 3): 0.5})
    assert overlap(before, now) == 0
    assert overlap(before, before) == 1
    assert overlap(before, top({(1, 1): 0.1, (2, 2): 0.5})) == 0.5
    assert now.note("this run") == "2 of the top 10 stand out in this run, the others tie"


def test_no_head_at_all_is_no_agreement() -> None:
    assert overlap(top({}), top({})) is None
    assert overlap(top({}), top({(1, 1): 0.6})) == 0


def test_heads_that_tie_across_the_last_place_are_left_out_and_said() -> None:
    scores = {(1, head): 0.5 for head in range(4)} | {(2, 0): 0.9, (2, 1): 0.8}
    found = top(scores, 4)
    assert found.heads == {(2, 0), (2, 1)}
    assert found.note("the baseline") == "2 of the top 4 stand out in the baseline, the others tie"
    assert top(scores, 6).heads == set(scores)
    assert top(scores, 6).note("x") == ""


def test_scores_that_differ_by_less_than_a_file_keeps_tie() -> None:
    assert top({(1, 0): 0.5, (1, 1): 0.3333333, (1, 2): 0.333333}, 2).heads == {(1, 0)}


def test_a_head_without_a_score_is_none() -> None:
    assert top({(1, 0): math.nan, (1, 1): 0.2}).heads == {(1, 1)}


@given(st.lists(st.sampled_from([0.0, 0.1, 0.1, 0.2, 0.7]), max_size=30), st.integers(1, 12), st.randoms())
def test_the_order_of_heads_changes_nothing(scores: list[float], count: int, shuffler: random.Random) -> None:
    heads = list(enumerate(scores))
    found = top_heads(heads, count)
    shuffler.shuffle(heads)
    assert top_heads(heads, count) == found
    assert len(found.heads) <= count
    assert all(scores[head] > 0 for head in found.heads)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_of_distinct_scores_the_best_are_all_there(count: int) -> None:
    assert top_heads(((head, head + 1.0) for head in range(10)), count).heads == set(range(10 - count, 10))
