"""A project of a user's for each test, and the engines of all of them gone at its end."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

import pytest

# Loaded once here and not anew in every in-process run, which would forget them (and numpy refuses to come twice).
import scipy.stats  # noqa: F401
import tqdm.auto  # noqa: F401
from project import Project, is_gone

import pytest_retrieval_heads.run  # noqa: F401
from forks import Server
from retrieval_heads.scoring import score_answer

with contextlib.suppress(ImportError):  # it comes with vLLM
    import huggingface_hub.file_download  # noqa: F401

score_answer("dawn", "dawn", "?")  # loads what scoring loads late


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, forks: Server) -> Iterator[Project]:
    """A project without a suite; whatever a test does to the engine, nothing of it stays."""
    made = Project(pytester, monkeypatch, forks)
    yield made
    for process in made.starts:
        assert is_gone(process), f"engine {process} is still there"


@pytest.fixture(scope="session")
def drawing() -> None:
    """What pictures need, loaded before an in-process run that draws."""
    for module in ("seaborn", "retrieval_heads.plots"):
        importlib.import_module(module)


@pytest.fixture(params=[[], ["-n", "2"]], ids=["plain", "xdist"])
def workers(request: pytest.FixtureRequest) -> list[str]:
    """Once without and once with two workers."""
    found: list[str] = request.param
    return found
