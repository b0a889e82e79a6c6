"""Needle-in-a-haystack sweeps and retrieval heads, measured on vLLM.

What a notebook uses is here, and loaded where it is used: `import retrieval_heads` alone imports nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval_heads.errors import RetrievalHeadsError as RetrievalHeadsError
    from retrieval_heads.notebook.comparison import Comparison as Comparison
    from retrieval_heads.notebook.comparison import compare as compare
    from retrieval_heads.notebook.engine import Engine as Engine
    from retrieval_heads.notebook.heads import Heads as Heads
    from retrieval_heads.notebook.run import Cells as Cells
    from retrieval_heads.notebook.run import Run as Run
    from retrieval_heads.notebook.run import load_run as load_run
    from retrieval_heads.notebook.suites import run_suite as run_suite
    from retrieval_heads.version import __version__ as __version__

_PLACES = {
    "Cells": "notebook.run",
    "Comparison": "notebook.comparison",
    "Engine": "notebook.engine",
    "Heads": "notebook.heads",
    "RetrievalHeadsError": "errors",
    "Run": "notebook.run",
    "compare": "notebook.comparison",
    "load_run": "notebook.run",
    "__version__": "version",
    "run_suite": "notebook.suites",
}

__all__ = [
    "Cells",
    "Comparison",
    "Engine",
    "Heads",
    "RetrievalHeadsError",
    "Run",
    "__version__",
    "compare",
    "load_run",
    "run_suite",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
