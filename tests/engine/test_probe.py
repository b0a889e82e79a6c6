"""The definitions of the scores, and what the probe refuses; torch alone, no engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from retrieval_heads.engine.cells import Request, scores_of
from retrieval_heads.engine.vllm import Finished
from retrieval_heads.errors import EngineError
from retrieval_heads.tracing import probe
from retrieval_heads.tracing.attention import RowScores
from retrieval_heads.tracing.probe import Probe, Rows, _copies

pytestmark = pytest.mark.engine

NEEDLE = (7, 8, 9, 7)  # one token stands in it twice
PROMPT = 30


def rows(*answer: int, question_span: tuple[int, int] = (20, 23)) -> Rows:
    return Rows(PROMPT, answer, (10, 14), NEEDLE, question_span)


def copies(answer: tuple[int, ...], argmax: list[int]) -> tuple[float, float]:
    """`copy` and `copy_reference` of a head that looked at these positions."""
    copy, reference = _copies(torch.tensor(argmax, dtype=torch.int32)[:, None], rows(*answer))
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


def test_a_replay_split_over_steps_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_groups", lambda asked: [[0]])
    monkeypatch.setattr(probe, "_score", lambda asked, first, row, span: [part(len(asked[0].rows))])
    monkeypatch.setattr(probe, "_gather", lambda scores: scores)
    attention = SimpleNamespace(head_size=4)
    one = Probe(rows(7, 8, 9), layers=1)
    for computed, tokens in ((12, 10), (22, 3), (25, 7)):
        stepping(monkeypatch, computed, tokens)
        one.begin_step()
        one.take(attention, torch.zeros(tokens, 8))
        is_done = one.end_step()
    assert is_done
    result = one.result()
    assert result.shape == (4, 1, 2)
    torch.testing.assert_close(result[2:], torch.full((2, 1, 2), float(np.exp(-1))))


def test_rows_that_came_from_the_cache_are_an_error_and_not_a_short_read(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Probe(rows(7, 8, 9), layers=1)
    stepping(monkeypatch, 24, 8)
    with pytest.raises(ValueError, match="rows 20 to 23 came from the prefix cache"):
        one.begin_step()


def test_fewer_rows_than_answer_ids_are_an_error() -> None:
    one = Probe(rows(7, 8, 9), layers=1)
    one.found = [[part(11)]]
    with pytest.raises(ValueError, match="11 rows were scored where 12 were wanted"):
        one.result()


LAYERS = [{"path": "model.layers.0.attn"}, {"path": "model.layers.1.attn"}]


def finished(scores: Any, error: str | None = None) -> Finished:
    return Finished("r", "", [1], "length", 40, 32, 0.1, head_scores=scores, error=error)


def request(question_span: tuple[int, int] = (20, 23)) -> Request:
    return Request(list(range(PROMPT)), {}, {"needle_span": (10, 14), "question_span": question_span})


def test_nan_names_its_layer_and_head() -> None:
    scores = np.zeros((4, 2, 3))
    scores[2, 1, 2] = np.nan
    with pytest.raises(EngineError, match=r"NaN in the queries or keys of model\.layers\.1\.attn, head 2"):
        scores_of(finished(scores), request(), LAYERS)


def test_what_the_probe_raised_is_told() -> None:
    with pytest.raises(EngineError, match="not scored: rows 1 to 2"):
        scores_of(finished(None, "rows 1 to 2 came from the prefix cache"), request(), LAYERS)


def test_without_a_question_query_is_not_measured() -> None:
    scores = np.zeros((4, 2, 3))
    scores[3] = np.nan
    told = scores_of(finished(scores), request((0, 0)), LAYERS)
    assert set(told["heads"]) == {"copy", "copy_reference", "mass"}
    assert told["replay"]["computed_tokens"] == 8
