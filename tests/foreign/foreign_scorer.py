"""A scorer of another distribution, in one function: how early in an answer what is expected stands."""

from __future__ import annotations

from retrieval_heads.runs.facts import Expectation


def early(answer: str, expected: Expectation) -> float:
    """1 at the start, less the more is said before, 0 where it is not said."""
    found = answer.lower().find(expected.reference.lower())
    return 1 - found / len(answer) if found >= 0 else 0.0
