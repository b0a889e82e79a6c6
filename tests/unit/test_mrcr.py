"""The k-th of several near-identical requests: drawn conversations and those of a file, their grader, and bad rows."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.prompts.requests import Writer
from retrieval_heads.prompts.reuse import Reuse
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.prefixed import prefixed_ratio
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.suites.suite import Suite, load_suite
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.mrcr.conversation import drawn, tokens_of
from retrieval_heads.tasks.mrcr.task import MRCR, MRCR_FILE
from retrieval_heads.tasks.mrcr.writing import alike, ordinal, others, prefix
from retrieval_heads.tasks.task import TASKS, Cell, OwnTexts, Question
from toy_tokenizer import ByteTokenizer, ToyTokenizer, WordTokenizer

# Two poems about tapirs, and a riddle between them.
TALK = [
    {"role": "user", "content": "Write a poem about tapirs."},
    {"role": "assistant", "content": "A tapir walks by night."},
    {"role": "user", "content": "Write a riddle about rain."},
    {"role": "assistant", "content": "I fall and never climb."},
    {"role": "user", "content": "Write a poem about tapirs."},
    {"role": "assistant", "content": "A tapir swims at noon."},
    {"role": "user", "content": "Prepend Xq7 to the 2nd poem about tapirs."},
]
ROW = {
    "prompt": json.dumps(TALK),
    "answer": "Xq7A tapir swims at noon.",
    "random_string_to_prepend": "Xq7",
    "n_needles": 2,
}


def suite_of(folder: Path, task: Any, rows: Any = None, **keys: Any) -> Suite:
    if rows is not None:
        (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"task": task, **keys}
    (folder / "suite.yaml").write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
    return load_suite(folder / "suite.yaml")


def built(suite: Suite, place: Place, tokenizer: ToyTokenizer) -> tuple[list[int], Record, dict[str, Any]]:
    question = Question.of_json(json.loads(json.dumps(suite.question.to_json())))
    request = CellBuilder(tokenizer, {}, {}, 1 << 20).request(question, Cell("a", "a", place))
    asked = TASKS.find(question.task).asked(question, place)
    fields = {"task": question.task, "axes": dict(place.axes), "seed": place.seed}
    record = Record.model_validate({**fields, **asked.fields(), **request.facts.fields()})
    return request.ids, record, request.sampling


def text_at(ids: list[int], span: tuple[int, int] | None, tokenizer: ToyTokenizer) -> str:
    assert span is not None
    return tokenizer.decode(ids[span[0] : span[1]])


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([WordTokenizer, ByteTokenizer]),
    st.sampled_from(["{chat}", "{chat_with_bos}", "{trims}", None]),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 3),
    st.data(),
)
def test_spans_hold_their_texts_no_more_turns_would_fit_and_recipes_rebuild(
    tmp_path_factory: pytest.TempPathFactory,
    kind: type[ToyTokenizer],
    template: str | None,
    requests: int,
    seed: int,
    data: st.DataObject,
) -> None:
    tokenizer = kind(template)
    length = data.draw(st.integers(3000, 9000) if kind is ByteTokenizer else st.integers(900, 3000))
    number = data.draw(st.integers(1, requests))
    suite = suite_of(tmp_path_factory.mktemp("mrcr"), "mrcr", sweep={"context_lengths": [length]})
    place = Place((("length", length), ("requests", requests), ("asked", number)), seed)
    ids, record, sampling = built(suite, place, tokenizer)
    assert len(ids) == record.prompt_tokens
    assert len(ids) <= length
    same = [turn.reply for turn in alike(seed, requests)]
    assert text_at(ids, record.needle_span, tokenizer).strip() == same[number - 1]
    assert text_at(ids, record.question_span, tokenizer).strip() == record.question
    stood = record.insertions or []
    assert [each.role for each in stood] == ["asked", *["distractor"] * (requests - 1)]
    assert {text_at(ids, each.span, tokenizer).strip() for each in stood} == set(same)
    turns = tokenizer.decode(ids).count("Write a ")
    more = drawn(seed, requests, number, turns + 1, record.question)
    assert tokens_of(more.messages, Writer(tokenizer, {}, 1 << 20)) > length
    assert record.reference == prefix(seed) + same[number - 1]
    assert sampling["max_tokens"] >= len(tokenizer.encode(record.reference))
    assert CellBuilder(tokenizer, {}, {}, 1 << 20).stored(record).ids == ids


@given(st.integers(0, 50), st.integers(1, 8), st.integers(8, 40))
def test_the_requests_that_are_alike_stand_in_their_order_among_others(seed: int, requests: int, turns: int) -> None:
    talk = drawn(seed, requests, 1, turns, "Which?")
    same = alike(seed, requests)
    assert len(talk.messages) == 2 * turns + 1
    assert [message["role"] for message in talk.messages] == [*["user", "assistant"] * turns, "user"]
    replies = [reply for said, reply in itertools.pairwise(talk.messages) if said["content"] == same[0].request]
    assert [reply["content"] for reply in replies] == [turn.reply for turn in same]
    assert (talk.asked, set(talk.like)) == (same[0].reply, {turn.reply for turn in same[1:]})


def test_replies_say_a_and_an_rightly_and_questions_to_one_conversation_share_it(tmp_path: Path) -> None:
    said = " ".join(turn.reply.lower() for turn in itertools.islice(others(1), 400))
    assert not re.search(r"\ba [aeio]", said)
    suite = suite_of(tmp_path, {"name": "mrcr", "requests": [2]}, sweep={"context_lengths": [1500]})
    builder, reuse = CellBuilder(WordTokenizer(), {}, {}, 1 << 20), Reuse(1)
    first, second = (builder.request(suite.question, cell) for cell in suite.cells)
    assert first.prefix is not None
    assert second.prefix is not None
    assert reuse.add(first.prefix, len(first.ids)) == 0
    shared = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first.ids, second.ids, strict=False))
    )
    question = second.facts.question_span
    assert question is not None
    assert question[0] == reuse.add(second.prefix, len(second.ids)) <= shared


def test_its_prompts_are_built_ahead() -> None:
    question, place = Question("talk", "niah"), Place((("length", 9000), ("requests", 2), ("asked", 1)))
    assert isinstance(MRCR, OwnTexts)
    assert MRCR.has_own_text(question, place)


def test_other_turns_are_never_the_same_request_and_differ_until_all_were_written() -> None:
    same, seen = alike(3, 1)[0], list(itertools.islice(others(3), 300))
    assert same.request not in {turn.request for turn in seen}
    assert len({turn.request for turn in seen}) == 300


def test_a_question_asks_for_the_reply_by_its_ordinal(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, {"name": "mrcr", "requests": [4]}, sweep={"context_lengths": [2000]})
    assert [cell.name for cell in suite.cells] == [f"len_2000-requests_4-asked_{number}" for number in (1, 2, 3, 4)]
    turn = alike(0, 4)[1]
    assert MRCR.asked(suite.question, suite.cells[1].place).question == (
        f"Begin your answer with {prefix(0)} and then repeat, word for word, the 2nd {turn.form} about {turn.topic} "
        "that you wrote above. Write nothing else."
    )
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == (
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th"]
    )


@pytest.mark.parametrize(
    ("answer", "least", "most"),
    [
        ("Xq7A tapir swims at noon.", 1, 1),
        ("Xq7A tapir walks by night.", 0.3, 0.9),
        ("A tapir swims at noon.", 0, 0),
        (" Xq7A tapir swims at noon.", 0, 0),
        ("xq7A tapir swims at noon.", 0, 0),
        ("Xq7", 0, 0),
        ("", 0, 0),
    ],
)
def test_answers_that_are_right_and_wrong(answer: str, least: float, most: float) -> None:
    value = prefixed_ratio(answer, "Xq7A tapir swims at noon.", "Xq7")
    assert least <= value <= most
    expected = Expectation("Which?", "Xq7A tapir swims at noon.", answer_prefix="Xq7")
    found = MRCR.judge(answer, expected, Scoring(metric="ratio", threshold=0.9))
    assert found.scores == {"ratio": value}
    assert found.passed == (value > 0.9)
    assert bool(found.reason) != found.passed


@given(st.text("abc ", max_size=20), st.text("abc ", min_size=1, max_size=20))
def test_the_ratio_is_difflibs_of_what_stands_behind_the_prefix(answer: str, expected: str) -> None:
    assert prefixed_ratio(f"P{answer}", f"P{expected}", "P") == SequenceMatcher(None, answer, expected).ratio()


def test_a_files_rows_are_asked_with_spans_of_the_asked_reply_and_those_like_it(tmp_path: Path) -> None:
    plain = {**ROW, "prompt": TALK, "answer": "Xq7A tapir walks by night."}
    suite = suite_of(tmp_path, {"name": "mrcr_file", "file": "rows.jsonl"}, [ROW, plain])
    assert [cell.name for cell in suite.cells] == ["requests_2-row_row_1", "requests_2-row_row_2"]
    tokenizer = WordTokenizer()
    ids, record, _ = built(suite, suite.cells[0].place, tokenizer)
    prompt = tokenizer.decode(ids)
    assert prompt == "".join(f"<|user|>{message['content']}<|end|>\n" for message in TALK) + "<|assistant|>"
    assert text_at(ids, record.needle_span, tokenizer) == "A tapir swims at noon."
    assert [each.text for each in record.insertions or ()] == ["A tapir swims at noon.", "A tapir walks by night."]
    assert CellBuilder(tokenizer, {}, {}, 1 << 20).stored(record).ids == ids
    other = built(suite, suite.cells[1].place, tokenizer)[1]
    assert [each.text for each in other.insertions or ()] == ["A tapir walks by night.", "A tapir swims at noon."]
    assert MRCR_FILE.totals([replace_ratio(record, 0.5), replace_ratio(other, 1.0)]) == [
        "mean ratio by prompt tokens up to 64: 0.750 (n=2)"
    ]


def replace_ratio(record: Record, value: float) -> Record:
    return record.model_copy(update={"scores": {"ratio": value}, "prompt_tokens": 60})


def test_where_the_reply_stands_twice_it_is_asked_and_no_heads_are_scored(tmp_path: Path) -> None:
    twice = [*TALK[:-1], TALK[0], TALK[5], TALK[-1]]
    suite = suite_of(tmp_path, {"name": "mrcr_file", "file": "rows.jsonl"}, [{**ROW, "prompt": twice}])
    assert built(suite, suite.cells[0].place, WordTokenizer())[1].needle_span is None
    detecting = replace(suite.question, kind="detect")
    with pytest.raises(PromptError, match="does not hold the asked reply exactly once"):
        CellBuilder(WordTokenizer(), {}, {}, 1 << 20).request(detecting, suite.cells[0])


def test_a_row_that_changed_cannot_be_rebuilt(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, {"name": "mrcr_file", "file": "rows.jsonl"}, [ROW])
    _, record, _ = built(suite, suite.cells[0].place, WordTokenizer())
    suite_of(tmp_path, {"name": "mrcr_file", "file": "rows.jsonl"}, [{**ROW, "prompt": json.dumps(TALK[2:])}])
    with pytest.raises(PromptError, match="its hash differs"):
        CellBuilder(WordTokenizer(), {}, {}, 1 << 20).stored(record)


def test_a_length_that_is_too_short_says_what_is_needed(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, {"name": "mrcr", "requests": [2]}, sweep={"context_lengths": [50]})
    with pytest.raises(PromptError, match=r"a length of 50 tokens is too short: 2 turns and the question take \d+"):
        built(suite, suite.cells[0].place, WordTokenizer())


SWEEP = {"context_lengths": [2000]}


@pytest.mark.parametrize(
    ("task", "rows", "keys", "sentence"),
    [
        ({"name": "mrcr"}, None, {}, "sweep.context_lengths: the grid is empty"),
        ({"name": "mrcr", "requests": [2, 2]}, None, {"sweep": SWEEP}, "task.requests: 2 is given twice"),
        ({"name": "mrcr", "asked": [9]}, None, {"sweep": SWEEP}, "task.asked: the 9th of 8 requests is asked for"),
        ({"name": "mrcr", "question": "{form}"}, None, {"sweep": SWEEP}, "task.question: holds {prefix} 0 times"),
        ("mrcr", None, {"sweep": SWEEP, "haystack": "pydoc"}, "haystack: the task mrcr has none; leave it out"),
        ("mrcr", None, {"sweep": SWEEP, "prompt": "{context} {question}"}, "prompt: the conversation is the prompt"),
        ("mrcr", None, {"sweep": SWEEP, "scoring": {"metric": "exact"}}, "the score of a conversation is ratio"),
        ("mrcr_file", None, {}, "task.file: this key is missing"),
        (None, [{**ROW, "answer": "A tapir"}], {}, "row 1, column 'answer': it does not begin with the row's"),
        (None, [{**ROW, "n_needles": "two"}], {}, "row 1, column 'n_needles': a count of requests, 1 to 1000"),
        (None, [{**ROW, "n_needles": "9" * 5000}], {}, "a count of requests, 1 to 1000, is expected, found '999"),
        (
            None,
            [{**ROW, "answer": ROW["random_string_to_prepend"]}],
            {},
            "row 1, column 'answer': it holds nothing behind the row's random_string_to_prepend",
        ),
        (None, [ROW, {**ROW, "prompt": "[1"}], {}, "rows.jsonl:2: row 2, column 'prompt': not a JSON list of messages"),
        (None, [{**ROW, "prompt": [{"role": "me"}]}], {}, "column 'prompt': message 1: role (system, user, assistant)"),
        (None, [{**ROW, "prompt": TALK[:2]}], {}, "column 'prompt': a list of messages is expected that ends with"),
        (None, [{"prompt": "[]"}], {}, "rows.jsonl: has no column 'answer'; it has prompt"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, task: Any, rows: Any, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        suite_of(tmp_path, task or {"name": "mrcr_file", "file": "rows.jsonl"}, rows, **keys)
    assert sentence in str(error.value)


def test_a_name_that_leaves_nothing_is_the_rows_number(tmp_path: Path) -> None:
    task = {"name": "mrcr_file", "file": "rows.jsonl", "columns": {"name": "id"}}
    suite = suite_of(tmp_path, task, [{**ROW, "id": "a/b"}, {**ROW, "id": "//"}])
    assert [cell.place.get("row") for cell in suite.cells] == ["a_b", "row_2"]
