"""The paper's figures of a recorded attention trace are those of `copy_reference` (`record_trace.py` recorded it)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval_heads.heads.looks import Rows
from retrieval_heads.heads.score import head_score
from retrieval_heads.tracing.figures import figures
from retrieval_heads.tracing.rows import RowScores

pytestmark = pytest.mark.engine

TRACE = Path(__file__).with_name("attention_trace.npz")


@pytest.mark.parametrize(("answer", "greatest"), [("own", 0.6), ("repeated", 1.2)])
def test_the_papers_figures_of_a_trace_are_reproduced(
    answer: str, greatest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_world_size", lambda: 1)
    trace = np.load(TRACE)
    prompt, (start, end) = trace["prompt"].tolist(), trace["needle_span"].tolist()
    said = tuple(trace[f"{answer}.answer"].tolist())
    rows = Rows(len(prompt), said, (start, end), tuple(prompt[start:end]), (0, 0))
    argmax = torch.from_numpy(trace[f"{answer}.argmax"]).int()
    nothing = torch.zeros(argmax[:, 0].shape)
    layers = [RowScores(argmax[:, layer], nothing, nothing) for layer in range(argmax.shape[1])]
    found = figures(layers, [rows], [head_score("copy_reference")])[0, 0]
    paper = trace[f"{answer}.paper"]
    np.testing.assert_allclose(found.numpy(), paper, rtol=0, atol=1e-6)
    assert paper.max() > greatest
    assert (paper == 0).mean() > 0.5, "most heads never copy"
