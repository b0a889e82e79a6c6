"""Configs and records of PyPI `retrieval-heads` 0.1.2: programs and the phonebook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from retrieval_heads.commands.session import pytest_arguments
from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.prompts.requests import Writer
from retrieval_heads.runs.record import parse_record
from retrieval_heads.suites.reading import overrides, read_settings
from retrieval_heads.suites.suite import Suite, load_suite
from retrieval_heads.tasks.phonebook import PHONEBOOK
from toy_tokenizer import WordTokenizer

CODE = {"num_vars": [16, 8], "num_steps": {"min": 2, "max": 6, "intervals": 2}, "num_tasks": 3, "seed": 7}
BOOK = {"phonebook_size": 50, "lengths": [3, 2, 3], "depths": [100, 0, 50], "store_context": False}

PHONEBOOK_RECORD: dict[str, Any] = {
    "phonebook_length": 5,
    "entry_pos": 1,
    "depth_percent": 30,
    "name": "Ada Bloom",
    "phone_number": "612-345-6789",
    "expected_digits": "6123456789",
    "prompt": "<|user|>Al Fox: 700-000-0001\nAda Bloom: 612-345-6789\n\nAda Bloom?<|end|>",
    "text": "612-345-6789",
    "token_ids": [5, 6],
    "output_digits": "6123456789",
    "correct": True,
    "experiment_type": "phonebook",
}
CODE_RECORD: dict[str, Any] = {
    "prompt": "bits = [0, 1]\na = 1\nbits[a]?",
    "context": "bits = [0, 1]\na = 1",
    "num_vars": 2,
    "num_steps": None,
    "target_var": "bits[a]",
    "target_value": 1,
    "output": "0",
    "correct": False,
    "experiment_type": "code_eval:RECALL",
}


@pytest.fixture(autouse=True)
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `names`, so that no test needs the one on PyPI."""
    package = tmp_path / "site" / "names"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for file in ("dist.male.first", "dist.female.first", "dist.all.last"):
        (package / file).write_text("".join(f"{file[5]}{chr(97 + n)} 4 {4 * n + 4} {n}\n" for n in range(24)))
    monkeypatch.syspath_prepend(tmp_path / "site")


def config(folder: Path, **sections: Any) -> Path:
    file = folder / "old.yaml"
    file.write_text(yaml.safe_dump({"model": {"model": "toy"}, "output_dir": "./out", **sections}))
    return file


def loaded(file: Path, *sets: str) -> Suite:
    return load_suite(file, read_settings(file), overrides(sets))


def test_a_config_of_programs_is_read_as_it_is(tmp_path: Path) -> None:
    suite = loaded(config(tmp_path, code_eval=CODE, report=True))
    assert suite.question.task == "program"
    assert {cell.place.seed for cell in suite.cells} == {7, 8, 9}
    assert len(suite.cells) == 3 * (2 + 2 * 2 * 3)
    assert {cell.place.get("steps") for cell in suite.cells} == {0, 2, 4, 6}
    assert suite.question.generation["max_tokens"] == 5
    assert suite.question.generation["stop"] == ["\n", ".", " "]
    assert suite.settings.scoring.metric == "exact"


def test_its_own_wording_is_asked(tmp_path: Path) -> None:
    suite = loaded(config(tmp_path, code_eval={**CODE, "prompt_template": "Run:\n{context}\nNow {target_var} is"}))
    writer = Writer(WordTokenizer(), {}, 10_000, takes_text=True)
    request = suite.task.request(suite.question, suite.cells[0].place, writer)
    assert request.text is not None
    content = request.text.messages[0]["content"]
    assert content.startswith("Run:\nbits = [")
    assert content.endswith("\nNow bits[a] is")


def test_a_config_of_a_phonebook_is_read_as_it_is(tmp_path: Path) -> None:
    suite = loaded(config(tmp_path, phonebook=BOOK))
    assert [cell.place.grid for cell in suite.cells] == [(2, 0), (2, 50), (3, 0), (3, 50), (3, 100)]
    assert {cell.place.seed for cell in suite.cells} == {42}
    assert suite.question.options["names"] == "package"
    assert suite.question.generation["max_tokens"] == 100


def test_what_is_laid_over_it_wins_key_by_key(tmp_path: Path) -> None:
    file = config(tmp_path, code_eval=CODE)
    suite = loaded(file, "code_eval.num_tasks=2", "code_eval.task_types=[RECALL]", "generation.max_tokens=9")
    assert [cell.place.seed for cell in suite.cells] == [7, 7, 8, 8]
    assert suite.question.generation["max_tokens"] == 9


def test_what_it_came_to_runs_again(tmp_path: Path) -> None:
    suite = loaded(config(tmp_path, phonebook=BOOK))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(suite.resolved()))
    assert load_suite(again).cells == suite.cells


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"code_eval": CODE, "phonebook": BOOK}, "code_eval: says what is asked, and so does phonebook"),
        ({"code_eval": CODE, "haystack": "pydoc"}, "code_eval: says what is asked, and so does haystack"),
        ({"code_eval": {"num_var": [1]}}, "code_eval.num_var: unknown key; did you mean 'num_vars'"),
        ({"code_eval": {"task_types": ["RECAL"]}}, "code_eval.task_types.0: "),
        ({"code_eval": {"prompt_template": "{context}"}}, r"prompt_template: holds \{target_var\} 0 times; once"),
        ({"phonebook": {"lengths": [2000]}}, r"task.entries: 2,000 entries are asked of a book of 1,000"),
        ({"phonebook": {"lengths": [2], "depths": [101]}}, "document_depths"),
        ({"phonebook": {}}, "more than the 100,000 cells"),
    ],
)
def test_a_mistake_in_it_is_one_sentence(tmp_path: Path, sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as found:
        loaded(config(tmp_path, **sections))
    assert len(str(found.value).splitlines()) == 1


def test_its_programs_names_are_sessions_of_ours(tmp_path: Path) -> None:
    file = config(tmp_path, code_eval=CODE)
    line = ["--config", str(file), "--code-eval.num-vars", "4", "--report"]
    assert pytest_arguments("code-eval", line, "rh") == [
        *("-m", "niah", "--rh-config", str(file), "--rh-set", "code_eval.num_vars=[4]"),
        *("--rh-report", "--rh-verdict", "none"),
    ]
    with pytest.raises(ConfigError, match="expected --config FILE with a section phonebook"):
        pytest_arguments("phonebook", line, "rh")


def test_a_record_of_a_phonebook_is_read() -> None:
    record = parse_record(json.dumps(PHONEBOOK_RECORD), "results.jsonl:1")
    assert (record.task, record.axes) == ("phonebook", {"entries": 5, "depth": 30})
    assert (record.status, record.metric, record.scores) == ("pass", "exact", {"exact": 1.0})
    assert (record.achieved_depth, record.reference, record.text) == (25.0, "612-345-6789", "612-345-6789")
    assert parse_record(json.dumps(record.to_json()), "again:1") == record


def test_heads_are_scored_on_the_line_that_its_prompt_holds() -> None:
    record = parse_record(json.dumps(PHONEBOOK_RECORD), "results.jsonl:1")
    tokenizer = WordTokenizer()
    request = PHONEBOOK.rebuilt(record, Writer(tokenizer, {}, 1000))
    start, end = request.facts.needle_span
    assert tokenizer.decode(request.ids[start:end]).strip() == "Ada Bloom: 612-345-6789"


def test_a_record_of_a_program_is_read() -> None:
    record = parse_record(json.dumps(CODE_RECORD), "results.jsonl:1")
    assert record.axes == {"program": "recall", "variables": 2, "steps": 0}
    assert (record.status, record.scores, record.reference, record.text) == ("low", {"exact": 0.0}, "1", "0")
    later = {**CODE_RECORD, "experiment_type": "code_eval:STATE_TRACKING", "num_steps": 4}
    assert parse_record(json.dumps(later), "results.jsonl:1").axes == {
        "program": "state_tracking",
        "variables": 2,
        "steps": 4,
    }


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({**PHONEBOOK_RECORD, "correct": "yes"}, "results.jsonl:1: correct: "),
        ({**PHONEBOOK_RECORD, "phonebook_length": 0}, "results.jsonl:1: phonebook_length: "),
        ({name: CODE_RECORD[name] for name in CODE_RECORD if name != "output"}, "results.jsonl:1: output: "),
        ({**CODE_RECORD, "num_vars": "4"}, "results.jsonl:1: num_vars: "),
    ],
)
def test_a_record_that_is_none_is_named(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ResultsError, match=sentence):
        parse_record(json.dumps(fields), "results.jsonl:1")
