"""Which scorer of attention rows runs where a cache is."""

from __future__ import annotations

from collections.abc import Callable

import torch

from retrieval_heads.tracing import attention_torch
from retrieval_heads.tracing.rows import RowScores


def scorer(device: torch.device) -> Callable[..., RowScores]:
    """The `score_layers` for caches on a device: the Triton kernel on CUDA, imported only then, else the torch path."""
    if device.type != "cuda":
        return attention_torch.score_layers
    from retrieval_heads.tracing import attention_triton

    return attention_triton.score_layers
