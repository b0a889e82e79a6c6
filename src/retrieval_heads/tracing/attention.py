"""Which scorers of attention rows run where a cache is."""

from __future__ import annotations

from collections.abc import Callable

import torch

from retrieval_heads.tracing import attention_torch, written_torch
from retrieval_heads.tracing.rows import RowScores


def scorer(device: torch.device) -> Callable[..., RowScores]:
    """The `score_layers` for caches on a device: the Triton kernel on CUDA, imported only then, else the torch path."""
    if device.type != "cuda":
        return attention_torch.score_layers
    from retrieval_heads.tracing import attention_triton

    return attention_triton.score_layers


def written_scorer(device: torch.device) -> Callable[..., torch.Tensor]:
    """The `score_written` there, likewise."""
    if device.type != "cuda":
        return written_torch.score_written
    from retrieval_heads.tracing import written_triton

    return written_triton.score_written
