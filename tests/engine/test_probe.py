"""The definitions of the scores, and what the probe refuses; torch alone, no engine."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from retrieval_heads.engine.cells import Request, scores_of
from retrieval_heads.engine.scheduler import ReplayHashes
from retrieval_heads.engine.vllm import Finished
from retrieval_heads.errors import EngineError
from retrieval_heads.tracing import probe
from retrieval_heads.tracing.attention import RowScores
from retrieval_heads.tracing.layer_kinds import SoftmaxAttention, Step, Taken, projected
from retrieval_heads.tracing.probe import Probe, Rows, _copies
from retrieval_heads.tracing.traced import TracedModel

pytestmark = pytest.mark.engine

NEEDLE = (7, 8, 9, 7)  # one token stands in it twice
PROMPT = 30


def rows(*answer: int, question_span: tuple[int, int] = (20, 23)) -> Rows:
    return Rows(PROMPT, answer, (10, 14), NEEDLE, question_span)


def copies(answer: tuple[int, ...], argmax: list[int]) -> tuple[float, float]:
    """`copy` and `copy_reference` of a head that looked at these positions."""
    copy, reference = _copies(torch.tensor(argmax, dtype=torch.int32)[None, :, None], rows(*answer))
    return float(copy), float(reference)


def test_a_head_that_copies_the_whole_needle_scores_one() -> None:
    assert copies(NEEDLE, [10, 11, 12, 13]) == (1, 1)


def test_copy_never_passes_one_and_copy_reference_does_when_the_answer_repeats_the_needle() -> None:
    copy, reference = copies(NEEDLE * 2, [10, 11, 12, 13] * 2)
    assert copy == 1
    assert reference == 2


def test_a_look_at_the_needle_counts_only_while_that_very_token_is_said() -> None:
    assert copies((8, 7, 5, 5), [10, 11, 12, 13]) == (0, 0)


def test_a_repeated_word_counts_at_the_position_that_was_looked_at() -> None:
    assert copies((7, 7), [10, 13]) == (0.5, 0.5)
    assert copies((7, 7), [13, 13]) == (0.25, 0.5)


@pytest.mark.parametrize("position", [9, 14, 0, 29, -1])
def test_a_look_beside_the_needle_does_not_count(position: int) -> None:
    assert copies((7,), [position]) == (0, 0)


def test_the_rows_scored_are_those_that_predicted_the_answer() -> None:
    wanted = rows(7, 8, 9)
    assert wanted.answer_rows == (PROMPT - 1, PROMPT + 2)
    assert wanted.first == 20
    assert wanted.end == PROMPT + 2
    assert rows(7, question_span=(0, 0)).first == PROMPT - 1


def part(count: int, heads: int = 2) -> RowScores:
    return RowScores(
        argmax=torch.zeros(count, heads, dtype=torch.int32),
        logsumexp=torch.zeros(count, heads),
        span_logsumexp=torch.full((count, heads), -1.0),
    )


def stepping(monkeypatch: pytest.MonkeyPatch, computed: int, tokens: int) -> None:
    """The step's batch as the runner tells it: one request."""
    monkeypatch.setattr(probe, "_mediator", lambda: SimpleNamespace(row=0, batch_group=[0, tokens]))
    batch = SimpleNamespace(num_computed_tokens_cpu=np.array([computed]), req_ids=["r"])
    monkeypatch.setattr(probe, "runner", lambda: SimpleNamespace(input_batch=batch))


class Kind(SoftmaxAttention):
    """Scores nothing, so that what is left is the bookkeeping."""

    def __init__(self, heads: int = 2, *, needs_whole_context: bool = False) -> None:
        self.count, self.needs_whole_context = heads, needs_whole_context

    def take(self, module: Any, values: Any, step: Step, memory: dict[str, Any]) -> torch.Tensor:
        memory["tokens"] = memory.get("tokens", 0) + step.tokens
        return values[0][step.rows]

    def score(self, taken: Sequence[Taken], step: Step) -> list[RowScores]:
        assert all(one.memory["tokens"] == step.position + step.tokens for one in taken) or not self.needs_whole_context
        return [part(len(one.rows), self.count) for one in taken]


def run_steps(monkeypatch: pytest.MonkeyPatch, one: Probe, *steps: tuple[int, int]) -> bool:
    is_done = False
    for computed, tokens in steps:
        stepping(monkeypatch, computed, tokens)
        one.begin_step()
        for layer in range(len(one.kinds)):
            one.take(layer, None, (torch.zeros(tokens, 2, 4),))
        is_done = one.end_step()
    return is_done


def test_a_replay_split_over_steps_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "gather_heads", lambda layers: torch.stack(layers, dim=1))
    one = Probe(rows(7, 8, 9), [Kind()])
    assert run_steps(monkeypatch, one, (12, 10), (22, 3), (25, 7))
    result = one.result().arrived()
    assert result.shape == (4, 1, 2)
    torch.testing.assert_close(result[2:], torch.full((2, 1, 2), float(np.exp(-1))))


def test_layers_with_fewer_heads_end_in_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_world_size", lambda: 1)
    one = Probe(rows(7, 8, 9), [Kind(2), Kind(5), Kind(2)])
    assert run_steps(monkeypatch, one, (12, 20))
    assert one.result().arrived().isnan().sum(-1)[0].tolist() == [3, 0, 3]


def test_heads_of_all_ranks_stand_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(mine: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat([mine, mine + 10], dim=dim)  # rank 1 has the heads after these

    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_world_size", lambda: 2)
    monkeypatch.setattr("vllm.distributed.tensor_model_parallel_all_gather", gather)
    found = probe.gather_heads([torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0]])])
    torch.testing.assert_close(
        found[0], torch.tensor([[0, 1, 2, 10, 11, 12], [0, 10, *[np.nan] * 4]]), equal_nan=True, check_dtype=False
    )


def test_rows_that_came_from_the_cache_are_an_error_and_not_a_short_read(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Probe(rows(7, 8, 9), [Kind()])
    stepping(monkeypatch, 24, 8)
    with pytest.raises(ValueError, match="rows 20 to 23 came from the prefix cache"):
        one.begin_step()


def test_a_layer_that_needs_the_whole_context_refuses_a_cached_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Probe(rows(7, 8, 9), [Kind(), Kind(needs_whole_context=True)])
    stepping(monkeypatch, 12, 20)
    with pytest.raises(ValueError, match="tokens 0 to 11 came from the prefix cache; a layer needs all"):
        one.begin_step()


def test_a_preempted_replay_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "gather_heads", lambda layers: torch.stack(layers, dim=1))
    one = Probe(rows(7, 8, 9), [Kind(needs_whole_context=True)])
    assert run_steps(monkeypatch, one, (0, 22), (0, 22), (22, 10))
    assert one.result().arrived().shape == (4, 1, 2)


def test_fewer_rows_than_answer_ids_are_an_error() -> None:
    one = Probe(rows(7, 8, 9), [Kind()])
    one.found = [[part(11)]]
    with pytest.raises(ValueError, match="11 rows were scored where 12 were wanted"):
        one.result().arrived()


LAYERS = [
    {"path": "model.layers.0.attn", "heads": 3},
    {"path": "model.layers.1.mixer", "heads": 0},
    {"path": "model.layers.2.attn", "heads": 2},
]
NAMES = ("copy", "copy_reference", "mass", "query")


def finished(scores: Any, error: str | None = None) -> Finished:
    return Finished("r", "", [1], "length", 40, 32, 0.1, head_scores=scores, error=error)


def request(question_span: tuple[int, int] = (20, 23)) -> Request:
    return Request(list(range(PROMPT)), {}, {"needle_span": (10, 14), "question_span": question_span})


def test_nan_names_its_layer_and_head() -> None:
    scores = np.zeros((4, 2, 3))
    scores[2, 1, 1] = np.nan
    with pytest.raises(EngineError, match=r"NaN in the queries, keys or decay of model\.layers\.2\.attn, head 1"):
        scores_of(finished(scores), request(), NAMES, LAYERS)


def test_nan_in_the_question_alone_is_an_error_of_the_cell_too() -> None:
    scores = np.zeros((4, 2, 3))
    scores[3, 0, 2] = np.nan
    with pytest.raises(EngineError, match=r"query is no number, for NaN in .*model\.layers\.0\.attn, head 2"):
        scores_of(finished(scores), request(), NAMES, LAYERS)


def test_every_layer_has_a_row_of_its_own_heads() -> None:
    scores = np.arange(24).reshape(4, 2, 3).astype(float)
    scores[:, 1, 2] = np.nan
    assert scores_of(finished(scores), request(), NAMES, LAYERS)["heads"]["copy"] == [[0, 1, 2], [], [3, 4]]


def test_what_the_probe_raised_is_told() -> None:
    with pytest.raises(EngineError, match="not scored: rows 1 to 2"):
        scores_of(finished(None, "rows 1 to 2 came from the prefix cache"), request(), NAMES, LAYERS)


def test_without_a_question_query_is_not_measured() -> None:
    scores = np.zeros((4, 2, 3))
    scores[3] = np.nan
    told = scores_of(finished(scores), request((0, 0)), NAMES, LAYERS)
    assert set(told["heads"]) == {"copy", "copy_reference", "mass"}
    assert told["replay"]["computed_tokens"] == 8


class Projections:
    """What a gated delta layer's two projections give, put together from each head's parts."""

    def __init__(self, tokens: int = 3, k_heads: int = 2, v_heads: int = 4, dk: int = 3, dv: int = 5) -> None:
        random = torch.Generator().manual_seed(0)
        self.q, self.k = (torch.randn(tokens, k_heads, dk, generator=random) for _ in range(2))
        self.v, self.z = (torch.randn(tokens, v_heads, dv, generator=random) for _ in range(2))
        self.b, self.a = (torch.randn(tokens, v_heads, generator=random) for _ in range(2))

    def part(self, ranks: int, rank: int) -> dict[str, torch.Tensor]:
        """A rank's heads."""
        return {name: each.chunk(ranks, dim=1)[rank] for name, each in vars(self).items()}

    def given(self, ranks: int, *, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Every rank's, rank by rank."""
        parts = [self.part(ranks, rank) for rank in range(ranks)]
        form = self.interleaved if interleaved else self.flat
        qkvz, ba = zip(*(form(part) for part in parts), strict=True)
        return torch.cat(qkvz, dim=-1), torch.cat(ba, dim=-1)

    @staticmethod
    def flat(part: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([part[name].flatten(1) for name in "qkvz"], -1), torch.cat([part["b"], part["a"]], -1)

    @staticmethod
    def interleaved(part: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        k_heads = part["k"].shape[1]
        each = {name: values.chunk(k_heads, dim=1) for name, values in part.items()}
        qkvz = [each[name][head].flatten(1) for head in range(k_heads) for name in "qkvz"]
        ba = [each[name][head] for head in range(k_heads) for name in "ba"]
        return torch.cat(qkvz, -1), torch.cat(ba, -1)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("interleaved", [True, False])
def test_a_gated_delta_layers_projections_are_taken_apart(interleaved: bool, ranks: int) -> None:
    from vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn import QwenGatedDeltaNetAttention as Layer

    layer = Layer.__new__(Layer)
    torch.nn.Module.__init__(layer)
    shape = {"num_k_heads": 2, "num_v_heads": 4, "head_k_dim": 3, "head_v_dim": 5, "key_dim": 6, "value_dim": 20}
    for name, value in {**shape, "tp_size": ranks, "gqa_interleaved_layout": interleaved}.items():
        setattr(layer, name, value)
    projections = Projections()
    for layer.tp_rank in range(ranks):
        mixed, b, a = projected(layer, *projections.given(ranks, interleaved=interleaved))
        part = projections.part(ranks, layer.tp_rank)
        torch.testing.assert_close(mixed, torch.cat([part[name].flatten(1) for name in "qkv"], -1))
        torch.testing.assert_close(b, part["b"])
        torch.testing.assert_close(a, part["a"])


@pytest.mark.parametrize("prompt", [3, 16, 50])
def test_a_replays_prompt_is_not_hashed_again_and_hashes_alike(prompt: int) -> None:
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request as Queued

    hashed = 0

    def counting(values: Any) -> bytes:
        nonlocal hashed
        hashed += 1
        return sha256(values)

    def queued(ids: Sequence[int], hasher: Any, **extra_args: str) -> Queued:
        return Queued("r", list(ids), SamplingParams(extra_args=extra_args), None, block_hasher=hasher)

    init_none_hash(sha256)
    plain, ids = get_request_block_hasher(16, counting), list(range(prompt + 20))
    shared = ReplayHashes(plain)
    asked = queued(ids[:prompt], shared, rh_hashed="r")
    asked.append_output_token_ids(ids[prompt:])
    before = hashed
    replay = queued(ids[:-1], shared, rh_hashed_as="r")
    again = hashed - before
    alone = queued(ids[:-1], plain)
    assert replay.block_hashes == alone.block_hashes
    assert len(alone.block_hashes) == (prompt + 19) // 16
    assert again == len(alone.block_hashes) - prompt // 16
    assert queued(ids[:-1], shared, rh_hashed_as="r").block_hashes == alone.block_hashes, "handed over once"


def test_an_error_of_any_rank_is_told() -> None:
    ranks = [{"r": ({"head_scores": 1}, None), "s": ({}, None)}, {"r": ({"head_scores": 2}, "out of memory")}]
    one = TracedModel.__new__(TracedModel)
    one.engine = SimpleNamespace(collective_rpc=lambda name, args: [pickle.dumps(rank) for rank in ranks])
    assert one.collect(["r", "s"]) == {"r": ({"head_scores": 1}, "out of memory"), "s": ({}, None)}
