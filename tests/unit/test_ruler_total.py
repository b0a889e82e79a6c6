"""RULER's tasks by lengths as a table, their totals, and what eleven of thirteen tasks may not be called."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from pytest_retrieval_heads.terminal import grid
from retrieval_heads.gates import check, parse_gate, to_markdown
from retrieval_heads.intervals import mean_interval, mean_of_means_interval
from retrieval_heads.plots.grid import measured_samples, panels
from retrieval_heads.report.overview import overview
from retrieval_heads.report.stored_run import StoredRun
from retrieval_heads.report.text import text_report
from retrieval_heads.runs.grid import Grid
from retrieval_heads.runs.record import Recipe, Record
from retrieval_heads.tasks.ruler.parts import NAMES
from retrieval_heads.tasks.ruler.total import effective_length, sentences, totals

THIRTEEN = (*NAMES[:11], "qa_1", "qa_2")
LENGTHS = (4096, 8192)


def record(task: str, length: int, seed: int, score: float, **fields: Any) -> Record:
    said = {
        "suite": "synthetic",
        "task": "ruler",
        "axes": {"length": length, "task": task},
        "cell": f"{task}/{length}/{seed}",
        "seed": seed,
        "status": "pass" if score > 0.99 else "low",
        "passed": score > 0.99,
        "metric": "string_match",
        "scores": {"string_match": score, "whole_words": score / 2},
    }
    return Record.model_validate({**said, **fields})


def records(tasks: Iterable[str], of: Callable[[str, int], float], seeds: int = 6) -> list[Record]:
    return [
        record(task, length, seed, of(task, length))
        for task, length, seed in itertools.product(tasks, LENGTHS, range(seeds))
    ]


def test_a_total_is_the_mean_over_tasks_and_not_over_samples() -> None:
    held = records(NAMES[:2], lambda task, _: float(task == NAMES[0]))
    held += [record(NAMES[1], 4096, seed, 0.0) for seed in range(100, 120)]
    assert [(total.length, total.tasks, total.mean) for total in totals(held)] == [(4096, 2, 0.5), (8192, 2, 0.5)]
    assert [total.mean for total in totals(held, "whole_words")] == [0.25, 0.25]


def test_eleven_tasks_are_no_ruler_total() -> None:
    held = records(THIRTEEN[:11], lambda *_: 1.0)
    assert effective_length(totals(held)) is None
    said = " ".join(sentences(held))
    assert "mean of 11 tasks at 4096 tokens: 100.0 (95 %: " in said
    assert "This is no RULER total, nor is there an effective length: both are of all 13 tasks, and 11 were" in said
    assert "The wordings are our own" in said


@pytest.mark.parametrize(
    ("scores", "length", "sentence"),
    [
        ((1.0, 1.0), 8192, "Effective length: 8192 tokens"),
        ((0.9, 0.856), 4096, "Effective length: 4096 tokens"),
        ((0.5, 1.0), 0, "No length is effective: no total is above 85.6 from the shortest on."),
    ],
)
def test_the_effective_length_is_judged_on_thirteen(scores: tuple[float, float], length: int, sentence: str) -> None:
    held = records(THIRTEEN, lambda _, at: scores[LENGTHS.index(at)])
    assert effective_length(totals(held)) == length
    assert any(line.startswith(sentence) for line in sentences(held))
    without = [each for each in held if (each.place.get("task"), each.place.get("length")) != ("qa_2", 8192)]
    assert effective_length(totals(without)) is None, "a task that one length lacks"
    assert "12 to 13 were answered" in " ".join(sentences(without))


def unanswered(each: Record) -> Record:
    return each.model_copy(update={"status": "error", "passed": False, "scores": {}, "reason": "the engine ended"})


def test_samples_without_an_answer_are_counted_wherever_totals_stand() -> None:
    held = [
        unanswered(each) if each.place.get("length") == 8192 and each.seed > 0 else each
        for each in records(THIRTEEN, lambda *_: 1.0)
    ]
    left_out = sum(not each.scores for each in held)
    sentence = f"{left_out} of {len(held)} samples have no answer and count in no total."
    assert sentence in sentences(held)
    assert sentence in text_report(held)
    assert any(sentence in grid["notes"] for grid in overview(StoredRun("run", held))["grids"])


def test_totals_of_an_ablation_are_those_with_nothing_masked() -> None:
    arms = {"none": 1.0, "top_10": 0.0}
    held = [
        each.model_copy(update={"kind": "ablate", "arm": arm})
        for arm, score in arms.items()
        for each in records(THIRTEEN[:2], lambda _, __, score=score: score)  # type: ignore[misc]
    ]
    ((name, lines),) = overview(StoredRun("run", held))["totals"]
    assert name == "synthetic: nothing masked"
    assert lines[0].startswith("mean of 2 tasks at 4096 tokens: 100.0 ")


def test_no_length_is_effective_where_one_has_no_answer() -> None:
    held = [
        unanswered(each) if each.place.get("length") == 4096 else each for each in records(THIRTEEN, lambda *_: 1.0)
    ]
    said = " ".join(sentences(held))
    assert "There is no effective length: of 4096 tokens no sample has an answer." in said
    assert "Effective length: " not in said


def test_rulers_wording_is_not_called_ours() -> None:
    recipe = {"wording": [], "template_hash": "a", "prompt_hash": "b", "options": {"wording": {"needle": "x"}}}
    held = [record("vt", 4096, seed, 1.0, recipe=recipe) for seed in range(5)]
    assert "our own" not in " ".join(sentences(held))


def test_the_interval_of_a_mean_of_means() -> None:
    certain, split = [1.0] * 6, [0.0, 1.0] * 3
    alone, of_one = mean_interval(split), mean_of_means_interval([split])
    assert alone is not None
    assert of_one is not None
    assert (of_one.low, of_one.high) == pytest.approx((alone.low, alone.high))
    both = mean_of_means_interval([certain, split])
    assert both is not None
    assert both.low < 0.75 < both.high
    assert both.high - both.low < alone.high - alone.low
    pooled = mean_of_means_interval([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert pooled == mean_interval([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]), "few in each: as one group"
    assert mean_of_means_interval([[1.0, 0.0], [0.0, 0.0, 1.0]]) is None
    assert mean_of_means_interval([]) is None


def test_tasks_are_rows_and_lengths_columns_everywhere() -> None:
    held = records(NAMES[:11], lambda task, length: float(task != "vt") if length == 4096 else 0.0)
    assert Grid.of(held).sides == ("length", "task")
    shown = grid(held, 80)
    assert max(map(len, shown)) <= 80
    assert shown[1].split() == ["task", "4096", "8192", "mean"]
    assert [line.split()[0] for line in shown[2:]] == list(NAMES[:11])
    assert next(line.split() for line in shown if "vt" in line) == ["vt", "0.00", "0.00", "0.00"]
    texts = {task: {"haystack": task, "wording": [], "template_hash": "", "prompt_hash": ""} for task in NAMES}
    of_texts = [each.model_copy(update={"recipe": Recipe(**texts[str(each.place.get("task"))])}) for each in held]
    (panel,), note = panels(measured_samples(of_texts, None))
    assert note == "mean over 6 seeds"
    assert (panel.sides, panel.xs, panel.ys) == (("length", "task"), list(LENGTHS), list(NAMES[:11]))
    assert "mean of 11 tasks at 8192 tokens: 0.0" in text_report(held)
    assert "| vt | 0.00 | 0.00 |" in to_markdown(check([], held, [each.cell for each in held]), held)
    (table,) = overview(StoredRun("run", held))["grids"]
    assert table["columns"] == ["task", "4096", "8192", "mean"]
    assert [row[0] for row in table["rows"]] == list(NAMES[:11])
    assert table["rows"][0][1].startswith("1.00 [0.")
    assert table["notes"] == sentences(held)


def test_a_gate_over_tasks_names_those_that_fell() -> None:
    held = records(NAMES[:4], lambda task, _: {NAMES[1]: 0.25, NAMES[3]: 0.5}.get(task, 1.0))
    gate = parse_gate("mean over task(string_match) >= 0.9", axes=("length", "task"))
    (outcome,) = check([gate], held, [each.cell for each in held]).outcomes
    assert outcome.worst == (f"task {NAMES[1]} 0.25", f"task {NAMES[3]} 0.5")
