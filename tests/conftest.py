"""For all tests: this folder on the import path (`toy_tokenizer`), pytester, hypothesis without a clock, and forks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from forks import Server

pytest_plugins = ["pytester"]

# Two busy cores make any deadline a coin toss; a failure is replayed from the printed blob, not from a local database.
settings.register_profile("rh", deadline=None, database=None, print_blob=True)
settings.load_profile("rh")


@pytest.fixture(scope="session")
def forks() -> Iterator[Server]:
    """Where this process's tests get sessions, workers and stand-in engines from."""
    server = Server()
    yield server
    server.end()
