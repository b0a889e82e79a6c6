"""For all tests: this folder on the import path (`toy_tokenizer`), pytester, hypothesis without a clock, and forks."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import settings

import installed  # noqa: F401
from forks import Server

pytest_plugins = ["pytester"]

# Two busy cores make any deadline a coin toss; a failure is replayed from the printed blob, not from a local database.
settings.register_profile("rh", deadline=None, database=None, print_blob=True)
settings.load_profile("rh")


def pytest_collection_finish() -> None:
    """What the tests import stays: the garbage collector need not look at it again, which takes half a second each time
    where torch and vLLM are among it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def forks() -> Iterator[Server]:
    """Where this process's tests get sessions, workers and stand-in engines from."""
    server = Server()
    yield server
    server.end()
