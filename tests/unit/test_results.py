"""Records: what is written is read again, the predecessor's are read, and what is no record is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.errors import ResultsError
from retrieval_heads.runs.record import SCHEMA, Record, dump_record, finite_mean, parse_record, read_records

RECORD: dict[str, Any] = {
    "schema": SCHEMA,
    "kind": "niah",
    "suite": "essays",
    "cell": "niah/essays/sf-1/seed_0/len_512/depth_50",
    "status": "pass",
    "context_length": 512,
    "document_depth": 50.0,
    "needle": "\nEat a sandwich.\n",
    "needle_span": [250, 256],
    "text": "Eat a sandwich.",
    "token_ids": [1, 2, 3],
    "scores": {"rouge1_recall": 1.0},
    "passed": True,
}

# The fields that the predecessor's README and DESIGN.md name, and the two more that 0.1.2 writes.
PREDECESSOR: dict[str, Any] = {
    "context_length": 1000,
    "document_depth": 30,
    "needle": "\nEat a sandwich in Dolores Park.\n",
    "context": "July 2010. What hard liquor ...",
    "needle_idx": 291,
    "prompt": "<|im_start|>user\nJuly 2010 ...",
    "token_ids": [36, 264, 27874],
    "text": "Eat a sandwich in the park.",
    "rougeL": 0.8333,
    "experiment_type": "niah",
}

ANY = st.text(max_size=30)
RECORDS = st.builds(
    Record,
    context_length=st.integers(1, 10**6),
    document_depth=st.floats(0, 100),
    needle=ANY,
    text=ANY,
    status=st.sampled_from(["pass", "low", "skipped", "error"]),
    reason=ANY,
    needle_span=st.none() | st.tuples(st.integers(0, 49), st.integers(49, 99)),
    token_ids=st.lists(st.integers(0, 10**6)),
    scores=st.dictionaries(st.sampled_from(["substring", "rougeL_f"]), st.floats(0, 1)),
    passed=st.none() | st.booleans(),
)


@given(RECORDS)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    line = dump_record(record)
    assert "\n" not in line
    assert parse_record(line, "here") == record


@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_a_file_has_a_line_a_record_whatever_an_answer_holds(tmp_path_factory: Any, records: list[Record]) -> None:
    file: Path = tmp_path_factory.getbasetemp() / "results.jsonl"
    file.write_text("".join(f"{dump_record(record)}\n" for record in records), encoding="utf-8")
    assert read_records(file) == records


def test_line_ends_of_unicode_do_not_end_a_record(tmp_path: Path) -> None:
    record = Record.model_validate({**RECORD, "text": "one\u2028two\u0085three\x1cfour"})
    (tmp_path / "results.jsonl").write_text(dump_record(record) + "\n", encoding="utf-8")
    assert read_records(tmp_path / "results.jsonl")[0].text == "one\u2028two\u0085three\x1cfour"


def test_a_line_is_readable_and_says_its_schema() -> None:
    data = json.loads(dump_record(Record.model_validate({**RECORD, "text": "三明治"})))
    assert data["schema"] == "retrieval-heads/1"
    assert "三明治" in dump_record(Record.model_validate({**RECORD, "text": "三明治"}))
    assert "recipe" not in data, "what is not known is left out"


def test_the_schema_holds_every_field_of_the_contract() -> None:
    contract = (
        "schema kind suite cell request status reason context_length document_depth achieved_depth prompt_tokens "
        "needle needle_span question_span seed arm text token_ids finish_reason rougeL scores passed recipe "
        "cached_tokens seconds"
    )
    named = {field.alias or name for name, field in Record.model_fields.items()}
    assert set(contract.split()) <= named


def test_nan_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_record(Record.model_validate({**RECORD, "scores": {"rougeL_f": math.nan}}))


@pytest.mark.parametrize(("score", "status"), [(0.8333, "pass"), (0.5, "low"), (0, "low")])
def test_a_record_of_the_predecessor_is_read(score: float, status: str) -> None:
    record = parse_record(json.dumps({**PREDECESSOR, "rougeL": score}), "here")
    assert (record.context_length, record.document_depth, record.needle_idx) == (1000, 30.0, 291)
    assert record.prompt == PREDECESSOR["prompt"]
    assert record.token_ids == [36, 264, 27874]
    assert record.reference == "Eat a sandwich in Dolores Park."
    assert record.scores == {"rougeL_f": score}
    assert (record.metric, record.threshold) == ("rougeL_f", 0.5)
    assert (record.status, record.passed) == (status, status == "pass")
    assert record.recipe is None


def test_a_record_of_the_predecessor_without_a_score_counts_for_nothing() -> None:
    record = parse_record(json.dumps({**PREDECESSOR, "rougeL": None}), "here")
    assert (record.status, record.passed, record.scores) == ("skipped", None, {})


def test_the_predecessors_file_is_read_without_a_last_line_end(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(json.dumps({**PREDECESSOR, "document_depth": depth}) for depth in (0, 50, 100)))
    assert [record.document_depth for record in read_records(file)] == [0, 50, 100]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "here: not a JSON object (Expecting property name"),
        ("[1]", "here: a record is a JSON object, found list"),
        ('{"schema": "retrieval-heads/9"}', "here: schema 'retrieval-heads/9' is not read by this version"),
        (json.dumps({**RECORD, "context_length": "many"}), "here: context_length: Input should be a valid integer"),
        (json.dumps({**RECORD, "status": "fine"}), "here: status: Input should be 'pass', 'low', 'skipped', 'error'"),
        (json.dumps({**PREDECESSOR, "needle": 3}), "here: needle: Input should be a valid string"),
        (json.dumps({**PREDECESSOR, "rougeL": "high"}), "here: rougeL: Input should be a valid number"),
        (json.dumps({"rougeL": 1.0, "needle": "n"}), "here: context_length: Field required"),
    ],
)
def test_what_is_no_record_is_named(line: str, sentence: str) -> None:
    with pytest.raises(ResultsError) as raised:
        parse_record(line, "here")
    assert str(raised.value).startswith(sentence)


def test_a_broken_line_is_named_with_its_number(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(f"{json.dumps(RECORD)}\n\n{{\n{json.dumps(RECORD)}\n")
    with pytest.raises(ResultsError, match=r"results\.jsonl:3: not a JSON object"):
        read_records(file, torn_last_line=True)


def test_a_line_that_a_killed_run_left_can_be_dropped(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD)[:40])
    assert len(read_records(file, torn_last_line=True)) == 1
    with pytest.raises(ResultsError, match=r"results\.jsonl:2"):
        read_records(file)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(ResultsError, match="holds no record"):
        read_records(tmp_path / "results.jsonl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"nowhere\.jsonl: cannot be read"):
        read_records(tmp_path / "nowhere.jsonl")


def test_the_mean_of_nothing_is_no_score() -> None:
    assert math.isnan(finite_mean([]))
    assert finite_mean([0.0, 1.0]) == 0.5
