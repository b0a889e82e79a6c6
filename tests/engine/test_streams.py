"""Of a step's requests, the heads and rows that stream are written by the rank that has them, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm import distributed

from retrieval_heads.runs.mask import Stream
from retrieval_heads.tracing.stream import HOW, LAYERS, Streams
from retrieval_heads.tracing.streamed import Seen, write
from retrieval_heads.tracing.worker import STREAM, Scheduled

pytestmark = pytest.mark.engine

SIZE, VALUE = 8, 6


@pytest.mark.parametrize("rank", [0, 1])
def test_the_heads_of_a_rank_that_stream_are_written_and_nothing_else(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests of one step; of the first the last two rows stream, of the second every row that hides a key."""
    monkeypatch.setattr(distributed, "get_tensor_model_parallel_rank", lambda: rank)
    asked = [
        (Stream(1, 2, context=6), [[0, [0, 1]], [1, [4, 5]]], 1, 4),
        (Stream(1, 2, prefill=True), [[1, [0, 1, 2, 3]]], 0, 5),
    ]
    scheduled, start = [], 0
    for row, (window, layers, _, tokens) in enumerate(asked):
        told = {STREAM: {HOW: window.to_json(), LAYERS: layers}}
        scheduled.append(Scheduled(told, {}, row, start, tokens))
        start += tokens
    kinds: Any = [SimpleNamespace(stream=stream), SimpleNamespace(stream=stream)]
    streams = Streams(kinds, scheduled, [4, 0], torch.device("cpu"))
    assert streams.layers == [0, 1]
    heads_here = 3
    expected = {
        0: {(row, head) for row in (2, 3) for head in (0, 1)},
        1: {(row, head) for row in (2, 3) for head in (4, 5)}
        | {(4 + row, head) for row in (3, 4) for head in range(4)},
    }
    for layer in streams.layers:
        streams.take(layer, torch.zeros(10, heads_here, SIZE))  # one token more than there are, as vLLM pads
        output = torch.zeros(10, heads_here * VALUE)
        streams.write(layer, SimpleNamespace(), output)  # type: ignore[arg-type]
        found = output.view(10, heads_here, VALUE)
        assert found.unique().tolist() in ([0.0, 1.0], [0.0])
        written = {(row, rank * heads_here + head) for row, head, _ in found.nonzero().tolist()}
        assert written == {(row, head) for row, head in expected[layer] if head // heads_here == rank}


def stream(_: Any, queries: Tensor, seen: Seen, streaming: Tensor, output: Tensor) -> None:
    write(torch.ones(*queries.shape[:3], VALUE), seen, streaming, output)
