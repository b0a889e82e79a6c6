"""Stepping an engine by hand, in the scripts that the tests run."""

from __future__ import annotations

from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.backends.vllm import Engine


def finish(engine: Engine) -> dict[str, Finished]:
    """Run everything that is queued to its end; what finished, by its name."""
    finished: dict[str, Finished] = {}
    while engine.has_work:
        finished.update({each.id: each for each in engine.step()})
    return finished
