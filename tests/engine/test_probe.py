"""The definitions of the scores, and what the probe refuses; torch alone, no engine."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnsight.intervention.interleaver import Interleaver, Mediator

from retrieval_heads.engine.answers import scores_of, steps_of
from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.backends.scheduler import BlockHashes
from retrieval_heads.errors import EngineError
from retrieval_heads.heads.looks import Look, Rows, Seen
from retrieval_heads.heads.score import HeadScore, head_score
from retrieval_heads.heads.steps import figures_of
from retrieval_heads.runs.layers import Layer
from retrieval_heads.tracing import probe
from retrieval_heads.tracing.figures import figures, gather_heads, looks_of, scored_looks
from retrieval_heads.tracing.figures import scores_of as scores_of_kinds
from retrieval_heads.tracing.layer_kinds import Batch, SoftmaxAttention, Taken, projected
from retrieval_heads.tracing.probe import Probe, Replay
from retrieval_heads.tracing.rows import RowScores
from retrieval_heads.tracing.traced import TracedModel
from retrieval_heads.tracing.worker import KEEP, PROBE, STREAM, Conducted, Scheduled

pytestmark = pytest.mark.engine

NEEDLE = (7, 8, 9, 7)  # one token stands in it twice
PROMPT = 30


def rows(*answer: int, question_span: tuple[int, int] = (20, 23)) -> Rows:
    return Rows(PROMPT, answer, (10, 14), NEEDLE, question_span)


CPU = torch.device("cpu")
EVERY_SCORE = tuple(score for score in scores_of_kinds([SoftmaxAttention()]) if score.is_default)
OF_WEIGHTS = tuple(score for score in EVERY_SCORE if not score.needs)
SCORES = tuple(score for score in OF_WEIGHTS if score.name != "mass_distractors")
"""Those that a prompt without distractors has."""


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_world_size", lambda: 1)


def scored(request: Rows, argmax: Sequence[int] = (), weight: float = 0.5) -> RowScores:
    """One head's: where its answer rows look, and how much of each row's weight lies on the needle."""
    count = request.end - request.first
    looks = torch.full((count, 1), -1, dtype=torch.int32)
    if argmax:
        looks[-len(argmax) :, 0] = torch.tensor(argmax, dtype=torch.int32)
    return RowScores(looks, torch.zeros(count, 1), torch.full((count, 1), weight).log())


def copies(answer: tuple[int, ...], argmax: list[int]) -> tuple[float, float]:
    """`copy` and `copy_reference` of a head that looked at these positions."""
    request = rows(*answer)
    found = figures([scored(request, argmax)], [request], SCORES)[0, :2, 0, 0]
    return float(found[0]), float(found[1])


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


def row_scores(count: int, heads: int = 2) -> RowScores:
    return RowScores(
        argmax=torch.zeros(count, heads, dtype=torch.int32),
        logsumexp=torch.zeros(count, heads),
        span_logsumexp=torch.full((count, heads), -1.0),
    )


class Kind(SoftmaxAttention):
    """Scores nothing, so that what is left is the bookkeeping: each row's argmax is the query that was taken for it."""

    def __init__(self, heads: int = 2, *, needs_whole_context: bool = False) -> None:
        self.count, self.needs_whole_context = heads, needs_whole_context
        self.calls = 0

    def take(self, module: Any, values: Any, batch: Batch, memories: Sequence[dict[str, Any]]) -> torch.Tensor:
        for part, memory in zip(batch.parts, memories, strict=True):
            memory["tokens"] = memory.get("tokens", 0) + part.tokens
        return values[0].index_select(0, batch.rows)

    def score(self, taken: Sequence[Taken], batch: Batch) -> list[RowScores]:
        self.calls += 1
        self.asked = batch.needs
        for one in taken:
            told = [memory["tokens"] for memory in one.memories]
            assert told == [part.position + part.tokens for part, _ in batch.scored] or not self.needs_whole_context
        found = [row_scores(len(one.rows), self.count) for one in taken]
        for one, scores in zip(taken, found, strict=True):
            scores.argmax[:] = one.rows[:, :1]
        return found


def run_step(kinds: Sequence[Kind], *steps: tuple[Replay, int, int], before: int = 0) -> Probe:
    """One forward: of each replay, how many of its tokens were computed before, and how many are now.

    Args:
        kinds: Of each layer.
        steps: The replays'.
        before: Tokens of other requests that stand before them.
    """
    needs_whole, start, parts = any(kind.needs_whole_context for kind in kinds), before, []
    for row, (replay, computed, tokens) in enumerate(steps):
        place = Scheduled({}, {}, row, start, tokens)
        parts.append((replay, replay.part(place, computed, needs_whole_context=needs_whole)))
        start += tokens
    one = Probe(kinds, parts, CPU)
    for layer in range(len(kinds)):
        one.take(layer, None, (torch.arange(start)[:, None].expand(start, 2),))
    one.finish()
    return one


def result(replay: Replay) -> Any:
    return replay.saves["head_scores"].arrived()


def test_a_replay_split_over_steps_is_put_together() -> None:
    kinds, replay = [Kind()], Replay(rows(7, 8, 9), 1, SCORES)
    for computed, tokens in ((12, 10), (22, 3), (25, 7)):
        assert not replay.saves
        run_step(kinds, (replay, computed, tokens))
    assert result(replay).shape == (4, 1, 2)
    np.testing.assert_allclose(result(replay)[2:], np.full((2, 1, 2), np.exp(-1)), rtol=1e-6)


def test_replays_of_one_step_have_their_own_rows_and_figures() -> None:
    def wants(*answer: int) -> Rows:
        return Rows(PROMPT, answer, (10, 14), NEEDLE, (20, 23), positions=True)

    kinds = [Kind(), Kind(3)]
    short, long, begun = (Replay(wants(*answer), 2, SCORES) for answer in ((7,), (7, 8, 9, 7, 7), (8, 9)))
    run_step(kinds, (begun, 4, 20))
    run_step(kinds, (long, 18, 16), (begun, 24, 7), (short, 20, 10), before=100)
    # A row's argmax is its place among the forward's tokens: 100, then 16 of the one and 7 of the other before.
    assert result(long)[len(SCORES) :, 0, 0].tolist() == [100 + 29 - 18 + step for step in range(5)]
    assert result(begun)[len(SCORES) :, 1, 2].tolist() == [116 + 29 - 24, 116 + 30 - 24]
    assert result(short)[len(SCORES) :, 0, 1].tolist() == [123 + 29 - 20]
    assert np.isnan(result(short)[:, 0, 2]).all()


def test_the_figures_of_many_requests_are_those_of_each_alone() -> None:
    random = torch.Generator().manual_seed(0)
    requests = [
        rows(7, 8, 9, 7),
        rows(8),
        Rows(40, (5, 5, 6), (0, 3), (5, 6, 5), (0, 0)),
        Rows(22, (9, 1, 2, 3, 4, 5, 6), (3, 9), (1, 2, 3, 4, 5, 6), (10, 20)),
    ]

    def one(count: int) -> RowScores:
        return RowScores(
            torch.randint(0, 16, (count, 5), generator=random, dtype=torch.int32),
            torch.rand(count, 5, generator=random) + 1,
            torch.rand(count, 5, generator=random),
        )

    alone = [[one(request.end - request.first) for _ in range(3)] for request in requests]
    together = figures([probe.joined(layer) for layer in zip(*alone, strict=True)], requests, SCORES)
    for place, (layers, request) in enumerate(zip(alone, requests, strict=True)):
        torch.testing.assert_close(
            together[place], figures(layers, [request], SCORES)[0], rtol=0, atol=1e-6, equal_nan=True
        )


@pytest.mark.parametrize("names", [(), ("query",)])
def test_steps_come_to_the_scores_that_are_measured(names: tuple[str, ...]) -> None:
    """Of requests beside each other, of unlike lengths, one of them with two needles; `query` alone needs no steps."""
    random, both = torch.Generator().manual_seed(1), ((15, 17),)
    requests = [
        replace(request, per_step=True, scores=names)
        for request in (
            rows(7, 8, 9, 7, 7, 8),
            rows(8),
            Rows(PROMPT, (8, 5, 6, 7, 5), (10, 12), (7, 8, 5, 6), (20, 21), more_spans=both),
            Rows(22, (9, 1, 2, 3, 4, 5, 6), (3, 9), (1, 2, 3, 4, 5, 6), (0, 0)),
        )
    ]
    wanted = [score for score in SCORES if not names or score.name in names]
    alone = []
    for request in requests:
        looks = scored_looks(request, looks_of(request, wanted))
        count = sum(look.rows[1] - look.rows[0] for look in looks)
        argmax = torch.randint(3, 18, (count, 40), generator=random, dtype=torch.int32)
        inside = torch.rand(count, 40, generator=random) - 3
        alone.append(RowScores(argmax, torch.zeros(count, 40), inside))
    found = figures([probe.joined(alone)], requests, wanted)
    for place, request in enumerate(requests):
        own = finished(found[place, : len(wanted) + 2 * len(request.answer)].numpy())
        heads, _ = scores_of(own, request, [score.name for score in SCORES], [Layer("layers.0", 0, heads=40)])
        steps = steps_of(own, request)
        assert steps is not None
        copied, mass = steps.arrays()
        assert copied.shape == (len(request.answer), 1, 40)
        derived, stored = figures_of(copied, mass, len(request.needle)), heads.lists()
        if not names:
            assert derived["copy_reference"].tolist() == stored["copy_reference"]
            assert derived["copy"].tolist() == stored["copy"]
            assert derived["mass"][0] == pytest.approx(stored["mass"][0], abs=1e-6)
        assert derived["copy_reference"].max() > 0


def test_several_needles_count_together_and_a_request_with_one_beside_them_as_it_does_alone() -> None:
    several = Rows(PROMPT, (8, 5, 6), (10, 12), (7, 8, 5), (20, 21), more_spans=((15, 16),))
    alone = rows(7, 8)
    looks = [scored(several, argmax=[11, 15, 12], weight=0.25), *(_weighed(count, 0.5) for count in (3, 1))]
    found = figures([probe.joined([*looks, scored(alone, argmax=[10, 11])])], [several, alone], SCORES)
    copy, copy_reference, mass, query = found[0, :, 0, 0].tolist()
    assert copy == copy_reference == pytest.approx(2 / 3), "8 of the first and 5 of the second; 12 is in neither"
    assert (mass, query) == pytest.approx((0.75, 0.75)), "0.25 on the first and 0.5 on the second"
    torch.testing.assert_close(found[1], figures([scored(alone, argmax=[10, 11])], [alone], SCORES)[0])


def test_distractors_have_a_mass_of_their_own_and_a_request_without_them_has_none() -> None:
    distractors = ((14, 16), (17, 18))
    with_two = Rows(PROMPT, (8, 5, 6), (10, 12), (7, 8), (20, 21), distractor_spans=distractors)
    alone = rows(7, 8)
    # The answer's three rows at each distractor, behind all rows at the needle.
    looks = [scored(with_two, argmax=[11, 15, 10], weight=0.25), _weighed(3, 0.125), _weighed(3, 0.5)]
    layer = probe.joined([*looks, scored(alone, argmax=[10, 11])])
    found = figures([layer], [with_two, alone], OF_WEIGHTS)
    copy, _, mass, query, on_distractors = found[0, :, 0, 0].tolist()
    assert copy == pytest.approx(1 / 2), "8, which the first row emits; a distractor's token is no hit"
    assert (mass, query, on_distractors) == pytest.approx((0.25, 0.25, 0.625))
    torch.testing.assert_close(found[1, :4], figures([scored(alone, argmax=[10, 11])], [alone], SCORES)[0])
    names = [score.name for score in OF_WEIGHTS]
    heads, _ = scores_of(finished(found[1].numpy()), alone, names, [Layer("layers.0", 0, heads=found.shape[3])])
    assert set(heads.lists()) == {"copy", "copy_reference", "mass", "query"}


class Needy(HeadScore):
    name, definition, label, needs = "needy", "", "", frozenset({"written"})

    def looks(self, rows: Rows) -> Sequence[Look]:
        return [Look(rows.answer_rows, rows.needle_span)]

    def figure(self, seen: Seen) -> torch.Tensor:
        return seen.mean(seen.written)


def test_what_a_score_needs_of_rows_is_asked_of_the_layers_and_no_more() -> None:
    plain, needy = Kind(), Kind()
    run_step([plain], (Replay(rows(7), 1, SCORES), 20, 10))
    run_step([needy], (Replay(rows(7), 1, [*SCORES, Needy()]), 20, 10))
    assert (plain.asked, needy.asked) == (frozenset(), {"written"})


def test_rows_whose_writing_is_wanted_are_the_answers_that_spell_it() -> None:
    write = next(score for score in EVERY_SCORE if score.name == "write")
    request = replace(rows(7, 8, 9, 7), spelled=(1, 3), more_spans=((12, 16),))
    replay = Replay(request, 1, [*SCORES, write])
    (batch,) = (Batch([replay.part(Scheduled({}, {}, 0, 100, 11), 20, needs_whole_context=False)], CPU),)
    (emission,) = batch.emissions
    assert (emission.first, emission.tokens, emission.spans) == (30, (8,), ((10, 16),)), (
        "the rest comes in a later step"
    )
    assert batch.emitted.tolist() == [110]
    assert (emission.place, batch.rows[emission.place]) == (10, 110)
    replay.covered = 31
    (emission,) = Batch([replay.part(Scheduled({}, {}, 0, 0, 4), 31, needs_whole_context=False)], CPU).emissions
    assert (emission.first, emission.tokens, emission.place) == (31, (9,), 0)


def test_rows_of_a_step_that_wanted_nothing_of_a_kind_are_no_numbers_among_those_that_did() -> None:
    first, second = row_scores(2), replace(row_scores(3), written=torch.ones(3, 2))
    written = probe.joined([first, second, first]).written
    assert written is not None
    assert written.isnan().all(1).tolist() == [True, True, False, False, False, True, True]


def test_what_a_layer_does_not_give_is_no_number_there_and_the_others_have_theirs() -> None:
    request = rows(7, 8)
    without = scored(request)
    having = replace(without, written=torch.arange(float(request.end - request.first))[:, None])
    found = figures([having, without], [request], [Needy()])
    assert found[0, 0, 0].tolist() == [pytest.approx(sum(range(*request.answer_rows)) / 2 - request.first)]
    assert found[0, 0, 1].isnan().all()


R2 = head_score("r2")


def topped(rows: RowScores, *weights: float) -> RowScores:
    """These rows, with what lies on keys among the top of the last of them."""
    top = torch.full_like(rows.logsumexp, torch.nan)
    top[-len(weights) :, 0] = torch.tensor(weights).log()
    return replace(rows, top_logsumexp=top)


def test_r2_sums_what_lies_among_the_top_over_the_steps_and_all_needles_over_their_tokens() -> None:
    several = Rows(PROMPT, (8, 5, 6), (10, 12), (7, 8, 5), (20, 21), more_spans=((15, 16),))
    alone = rows(7, 8)
    looks = [topped(scored(several), 0.5, 0.25, 0.0), topped(_weighed(3, 0.5), 0.0, 0.0, 0.75)]
    other = topped(scored(alone), 0.5, 0.125)
    found = figures([probe.joined([*looks, other])], [several, alone], [R2])
    assert found[:, 0, 0, 0].tolist() == [pytest.approx(1.5 / 3), pytest.approx(0.625 / 4)]
    torch.testing.assert_close(found[1], figures([other], [alone], [R2])[0])


def test_the_greatest_keys_are_looked_for_in_rows_alone_that_r2_reads() -> None:
    request = Rows(PROMPT, (8, 5), (10, 12), (7, 8, 5), (20, 21), ((15, 16),), distractor_spans=((2, 4),))
    request = replace(request, scores=tuple(score.name for score in (*EVERY_SCORE, R2)))
    wanted, place = Replay(request, 1, [*EVERY_SCORE, R2]), Scheduled({}, {}, 0, 0, 12)
    stretches = wanted.part(place, 20, needs_whole_context=False).stretches
    assert [(each.span, each.top, each.rows - each.topless) for each in stretches] == [
        ((10, 12), 3, 2),
        ((15, 16), 3, 2),
        ((15, 16), 0, 0),
        ((2, 4), 0, 0),
    ], "the question's row looks at the second needle too, for `query`"
    without = Replay(request, 1, EVERY_SCORE).part(place, 20, needs_whole_context=False).stretches
    assert not any(each.top for each in without)


def _weighed(count: int, weight: float) -> RowScores:
    return RowScores(
        torch.full((count, 1), -1, dtype=torch.int32), torch.zeros(count, 1), torch.full((count, 1), weight).log()
    )


def test_nan_of_one_request_is_its_own() -> None:
    one, other = rows(7, 8), rows(9)
    broken = scored(one)
    broken.span_logsumexp[:] = torch.nan
    found = figures([probe.joined([broken, scored(other)])], [one, other], SCORES)
    assert found[0, 2].isnan().all()
    assert found[1].isfinite().all()


def test_queries_of_many_rows_do_not_wait_for_the_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "HELD_BYTES", 1)
    kind, replay = Kind(), Replay(rows(7, 8), 3, SCORES)
    run_step([kind, kind, kind], (replay, 12, 19))
    assert kind.calls == 3
    assert result(replay).shape == (4, 3, 2)


def test_layers_with_fewer_heads_end_in_nan() -> None:
    kinds, replay = [Kind(2), Kind(5), Kind(2)], Replay(rows(7, 8, 9), 3, SCORES)
    run_step(kinds, (replay, 12, 20))
    assert np.isnan(result(replay)).sum(-1)[0].tolist() == [3, 0, 3]


def test_heads_of_all_ranks_stand_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(mine: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat([mine, mine + 10], dim=dim)  # rank 1 has the heads after these

    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_world_size", lambda: 2)
    monkeypatch.setattr("vllm.distributed.tensor_model_parallel_all_gather", gather)
    found = gather_heads([torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0]])])
    torch.testing.assert_close(
        found[0], torch.tensor([[0, 1, 2, 10, 11, 12], [0, 10, *[np.nan] * 4]]), equal_nan=True, check_dtype=False
    )


def test_rows_that_came_from_the_cache_are_an_error_and_not_a_short_read() -> None:
    with pytest.raises(ValueError, match="rows 20 to 23 came from the prefix cache"):
        run_step([Kind()], (Replay(rows(7, 8, 9), 1, SCORES), 24, 8))


def test_a_layer_that_needs_the_whole_context_refuses_a_cached_prefix() -> None:
    with pytest.raises(ValueError, match="tokens 0 to 11 came from the prefix cache; a layer needs all"):
        run_step([Kind(), Kind(needs_whole_context=True)], (Replay(rows(7, 8, 9), 2, SCORES), 12, 20))


def test_a_preempted_replay_begins_again() -> None:
    kinds, replay = [Kind(needs_whole_context=True)], Replay(rows(7, 8, 9), 1, SCORES)
    for computed, tokens in ((0, 22), (0, 22), (22, 10)):
        run_step(kinds, (replay, computed, tokens))
    assert result(replay).shape == (4, 1, 2)


def test_fewer_rows_than_were_wanted_are_an_error() -> None:
    with pytest.raises(ValueError, match="11 rows were scored where 12 were wanted"):
        figures([row_scores(11)], [rows(7, 8, 9)], SCORES)


class Runner(Conducted):
    """A runner of one layer, on which the probe is what a test gives it."""

    def __init__(self, block: str) -> None:
        self.conduct()
        interleaver = Interleaver()
        interleaver.defer_exceptions = True
        template = SimpleNamespace(code=compile(block, "probe", "exec"), glbls={}, lcls={})
        self.nnsight_requests = SimpleNamespace(names={1: "another", 2: PROBE}, templates={1: None, 2: template})
        self.nnsight_model = SimpleNamespace(interleaver=interleaver)
        self.input_batch = SimpleNamespace(
            req_ids=["plain", "a-0123abcd", "b-0123abcd"], num_computed_tokens_cpu=[0, 0, 0]
        )

    def step(self, *new: str, **streaming: Any) -> None:
        """A forward over all of them, of which these are new; of some the `extra_args` are given."""
        asked = {name: {PROBE: {}} if "-" in name else None for name in new} | streaming
        made = [
            SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(extra_args=extra_args))
            for name, extra_args in asked.items()
        ]
        tokens = dict.fromkeys(self.input_batch.req_ids, 4)
        output = SimpleNamespace(scheduled_new_reqs=made, num_scheduled_tokens=tokens, finished_req_ids={"plain"})
        self._vllms_execute = lambda: self._update_states(output)
        self.execute_model()


class Vllms:
    """What of vLLM's runner is gone through."""

    def _update_states(self, scheduler_output: Any) -> None: ...

    def execute_model(self) -> None:
        self._vllms_execute()  # type: ignore[attr-defined]
        interleaver = self.nnsight_model.interleaver  # type: ignore[attr-defined]
        with interleaver:
            interleaver.handle("layer.output", torch.ones(12, 2))


def runner_of(block: str) -> Runner:
    runner: Runner = type("Both", (Runner, Vllms), {})(block)
    return runner


def test_one_block_a_step_is_given_the_tokens_of_all_replays() -> None:
    runner = runner_of("")
    seen: list[Any] = []
    runner.nnsight_requests.templates[2].lcls = {"seen": seen, "runner": runner, "Mediator": Mediator}
    block = """
tokens = Mediator.value('layer.output').shape[0]
seen.append((tokens, [(one.row, one.start) for one in runner.scheduled['rh_probe']]))
"""
    runner.nnsight_requests.templates[2].code = compile(block, "probe", "exec")
    runner.step("plain", "a-0123abcd", "b-0123abcd")
    assert seen == [(12, [(1, 4), (2, 8)])]
    assert not runner.scheduled
    assert runner.collect_carried({"a"}) == {"a": ({}, None)}
    assert list(runner.carried) == ["b-0123abcd"]


def test_streams_have_a_block_of_their_own_in_steps_that_have_rows_of_theirs() -> None:
    runner = runner_of("")
    seen: list[Any] = []
    runner.nnsight_requests.templates[3] = SimpleNamespace(
        code=compile("seen.append([one.row for one in runner.scheduled['rh_stream']])", "stream", "exec"),
        glbls={},
        lcls={"seen": seen, "runner": runner},
    )
    runner.nnsight_requests.names[3] = STREAM
    runner.input_batch.num_computed_tokens_cpu = [0, 0, 0]
    runner.step("plain", "a-0123abcd", **{"b-0123abcd": {STREAM: {"first_row": 7}}})
    assert seen == []
    runner.input_batch.num_computed_tokens_cpu = [4, 4, 4]
    runner.step()
    assert seen == [[2]]
    assert runner.collect_carried({"a", "b"}) == {"a": ({}, None), "b": ({}, None)}


def test_rows_of_a_new_request_are_not_forgotten_with_those_of_one_of_its_name() -> None:
    runner, told = runner_of(""), []
    runner.kept_rows = SimpleNamespace(
        forget=lambda gone: told.append(("forget", set(gone))),
        ask=lambda *asked: told.append(("ask", *asked)),
        begin=lambda batch: told.append(("begin", *batch)),
        end=lambda: told.append(("end",)),
    )
    runner.input_batch.num_computed_tokens_cpu = [0, 16, 32]
    runner.step(plain={KEEP: ["it", 7, []]})
    batch = [("plain", 0, 0, 0, 4), ("a-0123abcd", 1, 4, 16, 4), ("b-0123abcd", 2, 8, 32, 4)]
    assert told == [("forget", {"plain"}), ("ask", "plain", "it", 7, []), ("begin", *batch), ("end",)]


@pytest.mark.parametrize("block", ["raise ValueError('no room')", "import nothing_of_that_name"])
def test_what_the_probe_raises_is_the_error_of_its_replays(block: str) -> None:
    runner = runner_of(block)
    runner.step("plain", "a-0123abcd", "b-0123abcd")
    for _, error in runner.collect_carried({"a", "b"}).values():
        assert error in ("ValueError: no room", "ModuleNotFoundError: No module named 'nothing_of_that_name'")
    assert not runner.carried


def test_a_layer_that_a_forward_does_not_reach_leaves_nothing_behind() -> None:
    runner = runner_of("from nnsight.intervention.interleaver import Mediator\nMediator.value('other.output')")
    runner.step("plain", "a-0123abcd", "b-0123abcd")
    assert not runner._conductors
    why = "other.output.i0 was not reached: layers ran in another order than they stand in"
    assert runner.collect_carried({"a"}) == {"a": ({}, why)}


LAYERS = [
    Layer("model.layers.0.attn", 0, 3),
    Layer("model.layers.1.mixer", 1, 0),
    Layer("model.layers.2.attn", 2, 2),
]
NAMES = ("copy", "copy_reference", "mass", "query")


def finished(scores: Any, error: str | None = None) -> Finished:
    return Finished("r", "", [1], "length", 40, 32, 0.1, head_scores=scores, error=error)


def test_nan_names_its_layer_and_head() -> None:
    scores = np.zeros((4, 2, 3))
    scores[2, 1, 1] = np.nan
    with pytest.raises(EngineError, match=r"NaN in the queries, keys or decay of model\.layers\.2\.attn, head 1"):
        scores_of(finished(scores), rows(7), NAMES, LAYERS)


def test_a_layer_that_gives_no_such_score_has_an_empty_row() -> None:
    figures = np.zeros((1, 2, 3))
    figures[0, 0] = np.nan
    layers = [replace(LAYERS[0], lacks={"written": "a recurrence"}), *LAYERS[1:]]
    packed, _ = scores_of(finished(figures), replace(rows(7), scores=("write",)), [*NAMES, "write"], layers)
    assert packed.lists()["write"][0] == []
    assert [len(row) for row in packed.lists()["write"][1:]] == [layer.heads for layer in layers[1:]]
    with pytest.raises(EngineError, match=r"write is no number, for NaN in .*model\.layers\.0\.attn"):
        scores_of(finished(figures), replace(rows(7), scores=("write",)), [*NAMES, "write"], LAYERS)


def test_nan_in_the_question_alone_is_an_error_of_the_cell_too() -> None:
    scores = np.zeros((4, 2, 3))
    scores[3, 0, 2] = np.nan
    with pytest.raises(EngineError, match=r"query is no number, for NaN in .*model\.layers\.0\.attn, head 2"):
        scores_of(finished(scores), rows(7), NAMES, LAYERS)


def test_every_layer_has_a_row_of_its_own_heads() -> None:
    scores = np.arange(24).reshape(4, 2, 3).astype(float)
    scores[:, 1, 2] = np.nan
    assert scores_of(finished(scores), rows(7), NAMES, LAYERS)[0].lists()["copy"] == [[0, 1, 2], [], [3, 4]]


def test_what_the_probe_raised_is_told() -> None:
    with pytest.raises(EngineError, match="not scored: rows 1 to 2"):
        scores_of(finished(None, "rows 1 to 2 came from the prefix cache"), rows(7), NAMES, LAYERS)


def test_without_a_question_query_is_not_measured() -> None:
    scores = np.zeros((4, 2, 3))
    scores[3] = np.nan
    heads, replay = scores_of(finished(scores), rows(7, question_span=(0, 0)), NAMES, LAYERS)
    assert set(heads.lists()) == {"copy", "copy_reference", "mass"}
    assert replay.computed_tokens == 8


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
    shared = BlockHashes(plain)
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
