"""Libraries that answers are judged with, imported where they are first needed for their start-up time."""

from __future__ import annotations

import importlib
from typing import Any

from retrieval_heads.errors import RetrievalHeadsError


def library(name: str) -> Any:
    """A module by its name.

    Raises:
        RetrievalHeadsError: It cannot be imported, such as on a full disk.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        package = name.partition(".")[0]
        raise RetrievalHeadsError(f"answers cannot be judged: {package} cannot be imported ({error})") from None
