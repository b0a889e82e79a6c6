"""A score of another distribution that aims at another span in each row, against a plain reference; no engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import foreign_score
from retrieval_heads.heads.looks import Look, Rows, Seen, Weigh, WeighBehind, Weighing
from retrieval_heads.heads.score import HeadScore
from retrieval_heads.tracing import key_weights, layer_kinds
from retrieval_heads.tracing.attention_torch import score_rows_dense
from retrieval_heads.tracing.figures import figures, looks_of, scored_looks, scores_of
from retrieval_heads.tracing.gated_delta import effective_weights, score_rows_gated_delta
from retrieval_heads.tracing.key_weights import Softmax
from retrieval_heads.tracing.keys import KeyOrder
from retrieval_heads.tracing.layer_kinds import GatedDelta, LayerKind, SoftmaxAttention
from retrieval_heads.tracing.probe import Probe, Replay
from retrieval_heads.tracing.rows import RowScores
from retrieval_heads.tracing.worker import Scheduled

pytestmark = pytest.mark.engine

LAYERS, HEADS, KV_HEADS, SIZE, BLOCK = 2, 4, 2, 8, 16
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_world_size", lambda: 1)
    with monkeypatch.context() as installed:
        foreign_score.install(tmp_path, installed, f"{foreign_score.SCORE.name} = foreign_score:SCORE")
        yield


@dataclass(frozen=True)
class Context:
    """A replayed request: what is asked of it, and every token's queries and keys in every layer."""

    rows: Rows
    queries: Tensor  # [layers, tokens, heads, size]
    keys: Tensor  # [layers, tokens, kv_heads, size]

    @classmethod
    def random(cls, rows: Rows, seed: int) -> Context:
        source = torch.Generator().manual_seed(seed)
        queries = torch.randn(LAYERS, rows.end, HEADS, SIZE, generator=source)
        return cls(rows, queries, torch.randn(LAYERS, rows.end, KV_HEADS, SIZE, generator=source))

    def weights(self) -> Tensor:
        """`[layers, heads, rows, keys]`, float64."""
        keys = self.keys.double().repeat_interleave(HEADS // KV_HEADS, dim=2)
        scores = torch.einsum("lqhd,lkhd->lhqk", self.queries.double(), keys) * 0.3
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(unseen, -math.inf).softmax(-1)

    def expected(self) -> dict[str, Tensor]:
        """Each score by its definition, `[layers, heads]`."""
        weights, (first, end) = self.weights(), self.rows.answer_rows
        start, stop = self.rows.needle_span
        asked = slice(*self.rows.question_span)
        answers, count = weights[..., first:end, :], stop - start
        inside, least = answers[..., start:stop], answers.topk(count, -1).values[..., -1:]
        before = torch.stack([weights[..., row, row - 1] for row in range(first, end)], dim=-1)
        return {
            "mass": weights[..., first:end, start:stop].sum(-1).mean(-1),
            "query": weights[..., asked, start:stop].sum(-1).mean(-1),
            "r2": inside.where(inside >= least, 0.0).sum((-1, -2)) / count,
            foreign_score.SCORE.name: before.amax(-1),
        }


def contexts() -> list[Context]:
    """Several lengths, needles and answers; one has no question."""
    asked = [
        Rows(60, (7, 8, 9, 7), (10, 14), (7, 8, 9, 7), (50, 55)),
        Rows(33, (8,), (3, 5), (8, 8), (20, 23)),
        Rows(90, (5, 5, 6, 1, 2, 3), (40, 43), (5, 6, 5), (0, 0)),
    ]
    return [Context.random(rows, seed) for seed, rows in enumerate(asked)]


def softmax_layers(all_: Sequence[Context], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Modules whose paged caches hold every context's keys; the block table has a row for each."""
    blocks = [-(-context.rows.end // BLOCK) for context in all_]
    order = torch.randperm(sum(blocks), generator=torch.Generator().manual_seed(9)).split(blocks)
    table = torch.stack([torch.nn.functional.pad(ids, (0, max(blocks) - len(ids))) for ids in order]).int()
    impl = SimpleNamespace(scale=0.3, logits_soft_cap=0)
    modules = []
    for layer in range(LAYERS):
        cache = torch.full((sum(blocks), KV_HEADS, BLOCK, 2 * SIZE), math.nan)
        for context, ids in zip(all_, order, strict=True):
            for position in range(context.rows.end):
                cache[ids[position // BLOCK], :, position % BLOCK, :SIZE] = context.keys[layer, position]
        modules.append(SimpleNamespace(kv_cache=cache, impl=impl, sliding_window=None))
    monkeypatch.setattr(layer_kinds, "_check", lambda modules: None)
    monkeypatch.setattr(layer_kinds, "_metadata", lambda module: SimpleNamespace(block_table=table))
    monkeypatch.setattr(
        layer_kinds, "_order", lambda module: KeyOrder((BLOCK, SIZE), (2 * SIZE, 1), torch.arange(BLOCK * SIZE))
    )
    return modules


def replayed(
    all_: Sequence[Context],
    kind: LayerKind,
    modules: Sequence[Any],
    starts: Sequence[int],
    size: int,
    scores: Sequence[HeadScore] | None = None,
) -> list[Any]:
    """The figures of contexts that are replayed beside each other, so many tokens of each a step.

    Args:
        all_: The contexts.
        kind: Of every layer.
        modules: The layers.
        starts: How much of each context comes from the prefix cache.
        size: Of a step.
        scores: Which are wanted; left out, all.
    """
    kinds = [kind] * LAYERS
    replays = [Replay(context.rows, LAYERS, scores or scores_of(kinds)) for context in all_]
    computed = list(starts)
    while not all(replay.is_done for replay in replays):
        parts, start, queries = [], 0, []
        for number, (context, replay) in enumerate(zip(all_, replays, strict=True)):
            tokens = min(size, context.rows.end - computed[number])
            if tokens:
                place = Scheduled({}, {}, number, start, tokens)
                parts.append((replay, replay.part(place, computed[number], needs_whole_context=False)))
                queries.append(context.queries[:, computed[number] : computed[number] + tokens])
                computed[number] += tokens
                start += tokens
        step = Probe(kinds, parts, CPU)
        for layer, module in enumerate(modules):
            step.take(layer, module, (torch.cat([each[layer] for each in queries]),))
        step.finish()
    return [torch.from_numpy(replay.saves["head_scores"].arrived()) for replay in replays]


def usual_names(kind: LayerKind) -> list[str]:
    """Of the scores that are measured where none is named, in order."""
    return [score.name for score in scores_of([kind]) if score.is_default]


@pytest.mark.parametrize("size", [1000, 7, 1], ids=["at once", "in chunks", "token by token"])
def test_each_row_looks_at_a_span_of_its_own(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*usual_names(SoftmaxAttention()), "r2"]
    names = [score.name for score in scores_of([SoftmaxAttention()]) if score.name in names]
    all_ = [replace(each, rows=replace(each.rows, scores=tuple(names))) for each in contexts()]
    starts = [context.rows.first - more for context, more in zip(all_, (12, 0, 5), strict=True)]
    found = replayed(all_, SoftmaxAttention(), softmax_layers(all_, monkeypatch), starts, size)
    for context, figures_ in zip(all_, found, strict=True):
        for name, expected in context.expected().items():
            if not (name == "query" and context.rows.question_span == (0, 0)):
                torch.testing.assert_close(figures_[names.index(name)], expected.float(), rtol=1e-5, atol=1e-6)


def test_our_own_scores_are_the_same_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    all_ = contexts()
    modules = softmax_layers(all_, monkeypatch)
    starts = [context.rows.first for context in all_]
    beside = replayed(all_, SoftmaxAttention(), modules, starts, 1000)
    own = [score for score in scores_of([SoftmaxAttention()]) if score is not foreign_score.SCORE]
    by_themselves = replayed(all_, SoftmaxAttention(), modules, starts, 1000, own)
    for both, alone in zip(beside, by_themselves, strict=True):
        assert len(both) == len(alone) + 1
        assert torch.equal(both[: len(alone)].nan_to_num(-1), alone.nan_to_num(-1))


def test_replays_of_one_step_each_get_the_scores_that_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, wanted = contexts(), [(), ("query", "mass"), (foreign_score.SCORE.name,)]
    named = [replace(each, rows=replace(each.rows, scores=names)) for each, names in zip(usual, wanted, strict=True)]
    modules, starts = softmax_layers(usual, monkeypatch), [context.rows.first for context in usual]
    every = usual_names(SoftmaxAttention())
    for size in (1000, 7):
        all_ = replayed(usual, SoftmaxAttention(), modules, starts, size)
        some = replayed(named, SoftmaxAttention(), modules, starts, size)
        for whole, part, names in zip(all_, some, wanted, strict=True):
            rows = [every.index(name) for name in every if name in names] or list(range(len(every)))
            assert torch.equal(part.nan_to_num(-1), whole[rows].nan_to_num(-1))


def test_a_score_that_is_not_wanted_has_no_rows_scored() -> None:
    rows = replace(contexts()[0].rows, scores=("mass",))
    assert Replay(rows, LAYERS, scores_of([SoftmaxAttention()])).looks == (
        Look((rows.first, rows.end), rows.needle_span),
    )


def test_without_it_every_row_is_scored_once() -> None:
    rows = contexts()[0].rows
    foreign = foreign_score.SCORE
    own = [score for score in scores_of([SoftmaxAttention()]) if score is not foreign]
    assert scored_looks(rows, looks_of(rows, own)) == (Look((rows.first, rows.end), rows.needle_span),)
    assert len(scored_looks(rows, looks_of(rows, [*own, foreign]))) == 1 + len(rows.answer)


class Remembered(GatedDelta):
    """Its keys, decay and strength are known; queries are handed to `take` as they are."""

    def _remember(self, module: Any, values: Sequence[Tensor], memory: dict[str, Any]) -> Tensor:
        tokens, start = len(values[0]), memory.get("tokens", 0)
        memory["tokens"] = start + tokens
        for name in ("keys", "log_decay", "strength"):
            memory.setdefault(name, []).append(getattr(module, name)[start : start + tokens])
        return values[0]


@pytest.mark.parametrize("size", [1000, 7])
def test_each_row_of_a_recurrence_does_too(size: int) -> None:
    context = contexts()[0]
    source = torch.Generator().manual_seed(3)
    modules = [
        SimpleNamespace(
            num_v_heads=HEADS,
            num_k_heads=HEADS,
            keys=torch.nn.functional.normalize(torch.randn(context.rows.end, HEADS, SIZE, generator=source), dim=-1),
            log_decay=-torch.rand(context.rows.end, HEADS, generator=source) / 10,
            strength=torch.rand(context.rows.end, HEADS, generator=source),
        )
        for _ in range(LAYERS)
    ]
    (found,) = replayed([context], Remembered(), modules, [0], size)
    names = usual_names(Remembered())
    own = ["copy", "copy_reference", "mass", "query", "mass_distractors", "write", "copy_by_value"]
    assert names == [*own, foreign_score.SCORE.name]
    for layer, module in enumerate(modules):
        shares = [
            score_rows_gated_delta(
                context.queries[layer, row : row + 1],
                row,
                module.keys,
                module.log_decay,
                module.strength,
                span=(row - 1, row),
            ).span_share[0]
            for row in range(*context.rows.answer_rows)
        ]
        torch.testing.assert_close(found[-1, layer], torch.stack(shares).amax(0), rtol=1e-5, atol=1e-6)
    (sums,) = replayed([context], Remembered(), modules, [0], size, [Behind()])
    for layer, module in enumerate(modules):
        whole = torch.zeros(context.rows.end, HEADS, context.rows.end)
        for start, weights in effective_weights(
            context.queries[layer], 0, module.keys, module.log_decay, module.strength
        ):
            whole[..., start : start + weights.shape[-1]] = weights.abs()
        shares_of_all = (whole / whole.sum(-1, keepdim=True)).transpose(0, 1)
        torch.testing.assert_close(sums[:, layer], behind_of(context.rows, shares_of_all).T, rtol=1e-4, atol=1e-5)


class Behind(HeadScore):
    """Weight on the tokens 3 and 9 behind the question's rows, and on each of two tokens from the answer's."""

    name, definition, label = "behind", "", ""

    def weighings(self, rows: Rows) -> Sequence[Weighing]:
        asked = (*rows.question_span, rows.question_span[0] < rows.question_span[1])
        behind = [WeighBehind(asked[:2], distance) for distance in (3, 9)] if asked[2] else []
        return [*behind, Weigh(rows.answer_rows, (4, 6))]

    def parts(self, rows: Rows) -> int:
        return sum(each.sums for each in self.weighings(rows))

    def figure(self, seen: Seen) -> Tensor:
        return seen.sums.movedim(2, 0)


def behind_of(rows: Rows, weights: Tensor) -> Tensor:
    """The same of `[..., rows, keys]`, `[..., sums]`."""
    asked, answered = range(*rows.question_span), range(*rows.answer_rows)
    sums = [sum(weights[..., row, row - distance] for row in asked) for distance in (3, 9)] if asked else []
    sums += [weights[..., list(answered), key].sum(-1) for key in (4, 5)]
    return torch.stack([torch.as_tensor(each) for each in sums], dim=-1)


@pytest.mark.parametrize("size", [1000, 7, 1], ids=["at once", "in chunks", "token by token"])
@pytest.mark.parametrize("numbers", [1 << 20, 2 * LAYERS * HEADS * SIZE], ids=["all rows", "two rows"])
def test_weights_on_single_keys_are_added_up_over_rows(
    size: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_weights, "NUMBERS_AT_A_TIME", numbers)
    all_ = contexts()
    starts = [context.rows.first - more for context, more in zip(all_, (12, 0, 5), strict=True)]
    found = replayed(all_, SoftmaxAttention(), softmax_layers(all_, monkeypatch), starts, size, [Behind()])
    for context, sums in zip(all_, found, strict=True):
        expected = behind_of(context.rows, context.weights()).movedim(-1, 0)
        assert len(sums) == len(expected), "as many as it has, of whatever the others of the step have"
        torch.testing.assert_close(sums, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("slopes", [None, torch.tensor([0.5, 0.1, 0.02, 0.3])])
def test_single_weights_have_windows_caps_slopes_and_sinks(
    window: int | None, cap: float | None, slopes: Tensor | None
) -> None:
    source = torch.Generator().manual_seed(1)
    q, keys = torch.randn(1, 9, HEADS, SIZE, generator=source), torch.randn(1, 20, KV_HEADS, SIZE, generator=source)
    sinks = torch.randn(HEADS, generator=source)
    whole = score_rows_dense(
        q[0], keys[0], 11, scale=0.3, span=(0, 0), sliding_window=window, soft_cap=cap, sinks=sinks, alibi_slopes=slopes
    )
    softmax = Softmax(0.3, window, cap, slopes)
    for weighing in (Weigh((11, 20), (8, 14)), WeighBehind((11, 20), 4), WeighBehind((11, 20), 15)):
        sums = key_weights.weigh(
            key_weights.Weighed(weighing, 11, 9), q, whole.logsumexp[None], lambda a, b: keys[:, a:b], softmax
        )[0]
        rows = range(9)
        pairs = (
            [[(row, key) for row in rows] for key in range(8, 14)]
            if isinstance(weighing, Weigh)
            else [[(row, 11 + row - weighing.distance) for row in rows]]
        )
        for each, found in zip(pairs, sums, strict=True):
            expected = torch.zeros(HEADS)
            for row, key in each:
                span = score_rows_dense(
                    q[0, row : row + 1],
                    keys[0],
                    11 + row,
                    scale=0.3,
                    span=(max(0, key), max(0, key + 1)),
                    sliding_window=window,
                    soft_cap=cap,
                    sinks=sinks,
                    alibi_slopes=slopes,
                )
                expected += (span.span_logsumexp - span.logsumexp).exp()[0]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Wrong(HeadScore):
    name, definition, label = "wrong", "", ""

    def __init__(self, look: Look, heads: int = 1) -> None:
        self._look, self._heads = look, heads

    def looks(self, rows: Rows) -> Sequence[Look]:
        return [self._look]

    def figure(self, seen: Seen) -> Any:
        return torch.zeros(1, len(seen.requests), self._heads)


ROWS = Rows(60, (7, 8), (10, 12), (7, 8), (50, 55))


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (Look((49, 51), (10, 12)), "wrong looks from rows 49 to 50; computed are 50 to 60"),
        (Look((60, 62), (10, 12)), "wrong looks from rows 60 to 61; computed are 50 to 60"),
        (Look((55, 55), (10, 12)), "wrong looks from rows 55 to 54"),
        (Look((55, 56), (12, 10)), r"wrong looks at \(12, 10\), which is no span"),
    ],
)
def test_a_look_from_rows_that_are_not_computed_is_refused(look: Look, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replay(ROWS, 1, [Wrong(look)])


@pytest.mark.parametrize("heads", [1, 3])
def test_figures_that_are_not_one_a_head_are_refused(heads: int) -> None:
    count, sums = ROWS.end - ROWS.first, torch.zeros(ROWS.end - ROWS.first, 1)
    seen = RowScores(torch.zeros(count, 1, dtype=torch.int32), sums, sums)
    refused = pytest.raises(ValueError, match=r"wrong gives figures of shape \[1, 1, 3\]; .* is \[1, 1, 1\]")
    with refused if heads > 1 else nullcontext():
        figures([seen], [ROWS], [Wrong(Look(ROWS.answer_rows, ROWS.needle_span), heads)])
