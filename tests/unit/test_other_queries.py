"""A prompt with another question in the place of its own, and a sample whose scores read both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.sample import Sample
from retrieval_heads.heads import qr
from retrieval_heads.heads.looks import Rows, Weigh
from retrieval_heads.heads.replays import ANSWERED, OtherQuery
from retrieval_heads.heads.score import head_score
from retrieval_heads.prompts.requests import Request
from retrieval_heads.runs.layers import Layer
from retrieval_heads.suites.suite import load_suite
from retrieval_heads.tasks.builder import CellBuilder
from toy_tokenizer import WordTokenizer

QUESTION = "When does the ferry leave?"
BUILDER = CellBuilder(WordTokenizer(), {}, {}, 1 << 20)


def request(folder: Path, **keys: Any) -> Request:
    suite = folder / "ferry.yaml"
    needle = {"needle": "The ferry to Oslo leaves at dawn.", "question": QUESTION}
    said = {
        "kind": "detect",
        "haystack": "pydoc",
        "needles": [needle],
        "sweep": {"context_lengths": [300], "document_depths": [50]},
    }
    suite.write_text(yaml.safe_dump(said | keys))
    loaded = load_suite(suite)
    return BUILDER.request(loaded.question, loaded.cells[0])


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"prompt": {"messages": [{"content": "<b>{context}</b>\n{question} Say it."}], "prefill": "It leaves"}},
        {"needles": [{"needle": "The ferry leaves at dawn.", "question": QUESTION, "distractors": ["A bus goes."]}]},
    ],
    ids=["book", "with more around it", "with distractors"],
)
def test_another_question_changes_nothing_up_to_the_contexts_end(tmp_path: Path, keys: dict[str, Any]) -> None:
    asked = request(tmp_path, **keys)
    span = BUILDER.query_span(asked, QUESTION)
    assert span is not None
    start, end = span
    assert asked.facts.question_span is not None
    assert asked.facts.needle_span is not None
    assert asked.facts.needle_span[1] <= start <= asked.facts.question_span[0] < end == len(asked.ids)
    decode = BUILDER.prompts.tokenizer.decode
    assert QUESTION in decode(asked.ids[start:])
    other = BUILDER.with_query(asked, QUESTION, "N/A")
    assert other[:start] == asked.ids[:start]
    assert decode(other[start:]) == decode(asked.ids[start:]).replace(QUESTION, "N/A")


@pytest.mark.parametrize(
    "task",
    [{"name": "needles"}, {"name": "phonebook", "entries": [20]}, {"name": "ruler", "tasks": ["niah_single_2"]}],
    ids=lambda task: str(task["name"]),
)
def test_questions_that_tasks_draw_stand_there_as_they_are_told(tmp_path: Path, task: dict[str, Any]) -> None:
    suite = tmp_path / "drawn.yaml"
    sections = {
        "needles": {"haystack": "pydoc", "sweep": {"context_lengths": [800], "document_depths": [50]}},
        "ruler": {"haystack": "pydoc", "sweep": {"context_lengths": [800]}},
        "phonebook": {"sweep": {"document_depths": [50]}},
    }
    suite.write_text(yaml.safe_dump({"kind": "detect", "task": task} | sections[task["name"]]))
    loaded = load_suite(suite)
    cell = loaded.cells[0]
    asked = BUILDER.request(loaded.question, cell)
    words = (asked.expected or loaded.task.asked(loaded.question, cell.place)).question
    span = BUILDER.query_span(asked, words)
    assert span is not None
    assert BUILDER.with_query(asked, words, "N/A")[: span[0]] == asked.ids[: span[0]]


def test_a_question_before_the_context_has_no_such_span(tmp_path: Path) -> None:
    before = {"messages": [{"content": "{question}\n{context}"}]}
    assert BUILDER.query_span(request(tmp_path, prompt=before), QUESTION) is None


def test_nor_has_a_prompt_of_another_question_or_without_a_recipe(tmp_path: Path) -> None:
    asked = request(tmp_path)
    assert BUILDER.query_span(asked, "Where to?") is None
    assert BUILDER.query_span(Request(asked.ids, {}, asked.facts.__class__()), QUESTION) is None


ROWS = Rows(60, (7, 8), (10, 13), (7, 8, 9), (50, 55), query_span=(45, 60), scores=("mass", "qr"))
LAYERS = [Layer("0", 0, 2)]


def finished(*figures: float) -> Finished:
    return Finished("", "", [], "length", 60, 32, 0.5, head_scores=[[[figure, 0.0]] for figure in figures])


def test_a_sample_is_replayed_once_for_each_prompt_that_its_scores_read() -> None:
    sample = Sample(range(61), ROWS)
    asked, blank = sample.to_replay(lambda other: [*range(45), *map(ord, other.query)])
    assert (asked.replayed, blank.replayed) == (ANSWERED, OtherQuery("N/A"))
    assert (asked.rows, list(asked.ids)) == (ROWS, list(range(61)))
    assert blank.rows == Rows(48, (), (10, 13), (7, 8, 9), (0, 0), query_span=(45, 48), scores=("qr",)), (
        "its rows are those behind the context, of a prompt that nothing answers"
    )
    assert (blank.rows.first, blank.rows.end) == (45, 48)
    assert not sample.take(blank, finished(0.1, 0.2, 0.3))
    assert sample.take(asked, finished(0.75, 0.5, 0.4, 0.4))
    found = sample.heads(LAYERS).lists()
    assert found["mass"] == [[0.75, 0.0]]
    assert found["qr"][0] == pytest.approx([0.4 + 0.2 + 0.1, 0.0])
    assert sample.replays[blank.replayed].computed_tokens == 28


def test_a_sample_whose_question_is_not_known_lacks_that_score_alone() -> None:
    sample = Sample(range(61), Rows(60, (7,), (10, 13), (7, 8, 9), (0, 0), scores=("mass", "qr")))
    assert [one.replayed for one in sample.to_replay(lambda _: [])] == [ANSWERED]
    assert sample.names == ["mass"]


def test_qr_weighs_the_rows_behind_the_context_on_all_needles_that_are_asked_for() -> None:
    rows = Rows(60, (7,), (10, 12), (7, 8, 9), (50, 55), more_spans=((20, 21),), query_span=(45, 60))
    score = head_score("qr")
    assert list(score.weighings(rows)) == [Weigh((45, 60), (10, 12)), Weigh((45, 60), (20, 21))]
    assert score.parts(rows) == 3


def test_each_needle_is_a_document_of_its_own() -> None:
    rows = Rows(60, (7,), (10, 18), (7,) * 16, (50, 55), more_spans=((20, 28),), query_span=(45, 60))
    asked = np.full((16, 1, 1), 0.1)
    asked[8:] = 0.5
    asked[3], asked[8] = 0.05, 0.45  # each low among its own alone
    found = head_score("qr").combined([asked, np.zeros_like(asked)], rows)
    assert found.item() == pytest.approx(7 * 0.1 + 7 * 0.5)


def test_low_tokens_are_left_out_head_by_head() -> None:
    weights = np.full((12, 1, 2), 0.1)
    weights[3] = [[-0.9, 0.09]]
    kept = qr.kept(weights)
    assert kept[:, 0, 0].sum() == pytest.approx(1.1), "far below the others"
    assert kept[3, 0, 1] == 0, "2.0 deviations are few where all others are equal"
    even = np.linspace(0.0, 0.3, 7)[:, None]
    assert (qr.kept(even) == even).all()
    assert (qr.kept(even[:1] - 0.5) == even[:1] - 0.5).all(), "of one token there is no deviation"
