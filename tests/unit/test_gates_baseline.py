import json
import math

import pytest

from retrieval_heads.errors import ResultsError
from retrieval_heads.gates import Baseline, load_baseline, parse_max_drop, save_baseline, set_against
from retrieval_heads.runs.record import Record, dump_record

META = {"model": "m", "model_revision": "r", "dtype": "bfloat16", "engine": "vllm 0.32.0", "device": "cpu"}


def cell(depth=50.0, score=1 / 3, **fields):
    values = {
        "cell": f"niah/essays/sf/seed_0/len_4096/depth_{depth:g}",
        "suite": "essays",
        "context_length": 4096,
        "document_depth": depth,
        "needle": "The best thing to do in San Francisco",
        "needle_name": "sf",
        "question": "What?",
        "text": "an answer",
        "token_ids": [1, 2],
        "scores": {"recall": score, "substring": 1.0},
        "metric": "recall",
        "threshold": 0.5,
        "passed": score > 0.5,
        "rougeL": score,
    }
    return Record.model_validate(values | fields)


RUN = [cell(100), cell(0), cell(50, status="error", scores={}, passed=None, rougeL=None)]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "baselines" / "main.jsonl"
    save_baseline(RUN, META, path)
    return path


def rewrite(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


def test_what_is_saved_is_loaded(saved):
    baseline = load_baseline(saved)
    assert baseline.meta == META
    by_cell = {record.cell: record for record in baseline.records}
    for record in RUN:
        kept = by_cell[record.cell]
        assert (kept.status, kept.scores, kept.passed) == (record.status, record.scores, record.passed)
        assert (kept.context_length, kept.document_depth) == (record.context_length, record.document_depth)
        assert (kept.needle_name, kept.rougeL) == ("sf", record.rougeL)
        assert (kept.metric, kept.threshold) == ("recall", 0.5)


def test_a_run_equals_its_own_saved_baseline_to_the_last_bit(saved):
    measured = [record for record in RUN if record.status == "pass"]
    verdict = set_against(measured, load_baseline(saved), max_drop=parse_max_drop("0"), meta=META).judged()
    assert verdict.passed
    assert not verdict.warnings


def test_the_file_is_a_header_and_one_short_sorted_line_a_cell(saved):
    header, *lines = map(json.loads, saved.read_text().splitlines())
    assert header == {"schema": "retrieval-heads-baseline/1", "cells": 3, **META}
    assert [line["document_depth"] for line in lines] == [0, 50, 100]
    assert not {"token_ids", "prompt", "question_span", "around", "heads"} & set().union(*lines)
    assert {"text", "question", "needle"} <= set(lines[0]), "what it takes to score the answer again"


def test_the_order_of_the_run_does_not_change_the_file(saved, tmp_path):
    again = tmp_path / "again.jsonl"
    save_baseline(reversed(RUN), META, again)
    assert again.read_bytes() == saved.read_bytes()


def test_of_several_records_of_a_cell_the_last_is_saved(tmp_path):
    save_baseline([cell(score=0.1), cell(score=0.9)], META, tmp_path / "b.jsonl")
    assert [record.scores["recall"] for record in load_baseline(tmp_path / "b.jsonl").records] == [0.9]


def test_records_of_the_predecessor_are_saved_under_a_name_that_pairs(tmp_path):
    old = [cell(depth, 1.0, cell="", suite="", needle_name="", needle="N ") for depth in (0, 50)]
    save_baseline(old, META, tmp_path / "b.jsonl")
    verdict = set_against(old, load_baseline(tmp_path / "b.jsonl"), max_drop=parse_max_drop("0")).judged()
    assert verdict.passed


def test_a_failed_write_leaves_the_old_baseline_and_no_litter(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(ResultsError, match="No space left on device"):
        save_baseline([cell(0)], META, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "no cell was measured"),
        ([cell(status="skipped")], "no cell was measured"),
        ([cell(score=math.nan)], "a score of cell 4096/50 is not a number"),
        ([cell(), cell(0, rougeL=math.inf)], "a score of cell 4096/0 is not a number"),
    ],
)
def test_a_baseline_that_would_prove_nothing_is_not_written(tmp_path, records, said):
    with pytest.raises(ResultsError, match=said):
        save_baseline(records, META, tmp_path / "b.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_is_a_baseline_and_its_run_json_says_what_measured_it(tmp_path):
    (tmp_path / "results.jsonl").write_text("".join(f"{dump_record(record)}\n" for record in RUN))
    (tmp_path / "run.json").write_text(json.dumps({**META, "seconds": 3, "engine_args": {"x": 1}}))
    for path in (tmp_path, tmp_path / "results.jsonl"):
        assert load_baseline(path) == Baseline(tuple(RUN), META)


@pytest.mark.parametrize("content", [None, "[]", "torn {"])
def test_a_run_folder_without_readable_run_json_has_no_meta(tmp_path, content):
    (tmp_path / "results.jsonl").write_text(f"{dump_record(cell())}\n")
    if content:
        (tmp_path / "run.json").write_text(content)
    assert load_baseline(tmp_path).meta == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda lines: [lines[0].replace("baseline/1", "baseline/2")],
            "baseline of schema 'retrieval-heads-bas",
        ),
        (lambda lines: lines[:-1], "holds 2 of its 3 cells"),
        (lambda lines: [*lines[:-1], lines[-1][:40]], "main.jsonl:4: not a JSON object"),
        (lambda lines: [lines[0][:20], *lines[1:]], "main.jsonl:1: not a JSON object"),
        (lambda lines: lines[:1], "the baseline holds no cell"),
        (lambda lines: ["[1]"], "main.jsonl:1: expected a JSON object, found list"),
        (
            lambda lines: [lines[0], *lines[2:], '{"cell": "x"}'],
            "main.jsonl:4: context_length: Field required",
        ),
        (lambda lines: ['{"schema": "other/1"}', *lines[1:]], "schema 'other/1' is not read"),
        (lambda lines: [""], "the baseline is empty"),
    ],
)
def test_a_damaged_baseline_is_one_sentence(saved, change, said):
    rewrite(saved, change)
    with pytest.raises(ResultsError) as caught:
        load_baseline(saved)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_baseline_is_one_sentence(tmp_path):
    with pytest.raises(ResultsError, match="no such baseline"):
        load_baseline(tmp_path / "main.jsonl")
    with pytest.raises(ResultsError, match=r"no results.jsonl in this folder"):
        load_baseline(tmp_path)


def test_a_file_that_is_no_text_is_one_sentence(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsError, match="cannot be read"):
        load_baseline(tmp_path / "b.jsonl")
