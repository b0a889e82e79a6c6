"""What a reasoning model says before its answer is kept, and counts in no score, no head score and no verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_retrieval_heads.recording import record_of
from retrieval_heads.engine.answers import spelled, without_thoughts
from retrieval_heads.engine.results import Answered
from retrieval_heads.gates import check, parse_gate
from retrieval_heads.heads.score import head_score
from retrieval_heads.prompts.requests import Request
from retrieval_heads.prompts.settings import Prompt
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.facts import Expectation, PromptFacts
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.settings import TAGS, Scoring
from retrieval_heads.scoring.thoughts import opens_thoughts, thoughts_in
from retrieval_heads.tasks.needle import TheNeedle
from toy_tokenizer import ByteTokenizer, ToyTokenizer, WordTokenizer

FERRY, QUESTION = "The ferry to Oslo leaves at dawn.", "When does the ferry to Oslo leave?"


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("At dawn.", "At dawn."),
        ("<think>Noon?</think>\n\nAt dawn.", "At dawn."),
        ("Noon? No.</think>At dawn.", "At dawn."),
        ("<think>a</think> Noon. <think>b</think> At dawn.", "At dawn."),
        ("<think>a <think>b</think> c</think>At dawn.", "At dawn."),
        ("[THINK]Noon?[/THINK]At dawn.", "At dawn."),
        ("<|channel|>analysis<|message|>Noon?<|end|><|start|>assistant<|channel|>final<|message|>At dawn.", "At dawn."),
        ("At dawn; it thinks in <think> tags.", "At dawn; it thinks in <think> tags."),
        ("<think>Is it noon", None),
        ("  <think>Is it noon", None),
        ("<think>a</think><think>b", None),
        ("<think>a</think>", ""),
    ],
)
def test_the_answer_stands_behind_the_last_closing_tag(said: str, answer: str | None) -> None:
    found = thoughts_in(said, TAGS)
    assert found.is_open == (answer is None)
    assert said[found.answer :] == (answer or "")


@pytest.mark.parametrize(
    ("said", "sayings", "found"),
    [
        ("It leaves at dawn today.", ["at dawn"], (len("It leaves "), len("It leaves at dawn"))),
        ("AT DAWN or at dawn", ["at dawn"], (0, 7)),
        ("at noon", ["at dawn", "noon"], (3, 7)),
        ("at noon", ["at dawn"], (0, 7)),
        ("", ["at dawn"], (0, 0)),
        ("é at dawn", [" at dawn. ", "at dawn"], (3, 10)),
    ],
)
def test_what_is_expected_is_found_in_an_answers_tokens(said: str, sayings: list[str], found: tuple[int, int]) -> None:
    tokenizer = ByteTokenizer()
    assert spelled(tokenizer.encode(said), sayings, tokenizer) == found


def test_where_the_prompt_opens_thoughts_an_answer_without_a_tag_has_none() -> None:
    assert thoughts_in("It leaves at dawn", TAGS, inside=True).is_open
    assert not thoughts_in("It leaves at dawn", TAGS).is_open
    found = thoughts_in("Noon?</think> At dawn.", TAGS, inside=True)
    assert (found.is_open, found.answer) == (False, len("Noon?</think> "))


@pytest.mark.parametrize(
    ("prompt", "prefill", "is_open"),
    [
        ("When?<|assistant|>", "", False),
        ("When?<|assistant|><think>\n", "", True),
        ("When?<|assistant|><think>\n\n</think>\n\n", "", False),
        ("When?<|assistant|><think>\nThe ferry", "The ferry", True),
        ("When?<|assistant|><think>\nWell", "<think>\nWell", True),
        ("When?<|assistant|><think>\n</think>It is", "</think>It is", False),
        ("Think in <think> tags. When?<|assistant|>", "", False),
    ],
)
def test_a_prompt_may_end_within_thoughts(prompt: str, prefill: str, is_open: bool) -> None:
    assert opens_thoughts(prompt, prefill, TAGS) == is_open


class Special(WordTokenizer):
    """`[THINK]` and `[/THINK]` are special tokens: an answer's text does not hold them."""

    ids: ClassVar = {"[THINK]": 7, "[/THINK]": 8}

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        names = {number: "" if skip_special_tokens else name for name, number in self.ids.items()}
        return "".join(names[token] if token in names else super(Special, self).decode([token]) for token in token_ids)


def answer_of(text: str, token_ids: list[int], **more: Any) -> Answer:
    return Answer(text, token_ids, **{"finish_reason": "stop", **more}, prompt_tokens=9, cached_tokens=0, seconds=0.5)


def parted(said: str, ids: list[int], tokenizer: ToyTokenizer, prompt: str = "When?") -> Answer:
    request = Request(tokenizer.encode(prompt), {}, PromptFacts())
    return without_thoughts(answer_of(said, ids), request, TAGS, tokenizer)


@given(
    st.sampled_from([WordTokenizer, ByteTokenizer]),
    st.text("abc .\né<", max_size=30),
    st.sampled_from(["", " ", "\n\n"]),
    st.text("abc .\né", min_size=1, max_size=30).filter(str.strip),
)
def test_nothing_that_was_said_is_lost_and_the_answers_tokens_are_its_own(
    kind: type[ToyTokenizer], thoughts: str, space: str, answer: str
) -> None:
    tokenizer = kind()
    said = f"<think>{thoughts}</think>{space}{answer}"
    ids = tokenizer.encode(said)
    found = parted(said, ids, tokenizer)
    assert (found.thoughts or "") + found.text == said
    assert found.text == answer.lstrip()
    own = tokenizer.decode(ids[found.thought_tokens :])
    # A token that holds the tag's end belongs to the thoughts, and so does white space behind it.
    assert found.text.endswith(own.lstrip())
    assert len(found.text) - len(own.lstrip()) <= (1 if kind is WordTokenizer else 0) * len(answer)
    assert found.token_ids == ids


def test_tags_that_are_special_tokens_are_found_by_their_ids() -> None:
    tokenizer = Special()
    ids = [7, *tokenizer.encode("Noon?"), 8, *tokenizer.encode("At dawn.")]
    found = parted("Noon?At dawn.", ids, tokenizer)
    assert found.text == "At dawn."
    assert found.thoughts == "[THINK]Noon?[/THINK]"
    assert ids[found.thought_tokens :] == tokenizer.encode("At dawn.")


def test_an_answer_without_thoughts_is_left_as_it_is() -> None:
    tokenizer = WordTokenizer()
    answer = answer_of(FERRY, tokenizer.encode(FERRY))
    assert parted(FERRY, answer.token_ids, tokenizer) == answer
    tagged = replace(answer, text="a</think>b")
    assert without_thoughts(tagged, Request([], {}, PromptFacts()), (), tokenizer) == tagged


def test_heads_are_scored_on_the_rows_of_the_answer_alone() -> None:
    request = Request(list(range(10)), {}, PromptFacts(needle_span=(3, 6), question_span=(7, 9)))
    rows = request.rows([100, 101, 102, 103], 3)
    assert rows.answer == (103,)
    assert rows.answer_rows == (12, 13), "the row of the last thought's token predicts it"
    record = Record(needle_span=(3, 6), token_ids=[100, 101, 102, 103], thought_tokens=3)
    assert head_score("copy_reference").greatest(record) == 1.0


def recorded(answer: dict[str, Any], **scoring: Any) -> Record:
    """The record that an item makes of the engine's result."""
    place = Place((("length", 128), ("depth", 50.0), ("needle", "ferry")))
    asked = Expectation(QUESTION, FERRY, needle=FERRY)
    task = SimpleNamespace(asked=lambda question, place: asked, judge=TheNeedle.judge)
    settings = SimpleNamespace(
        kind="niah",
        scoring=Scoring(**scoring),
        prompt=Prompt.model_validate({"messages": [{"content": "{context} {question}"}]}),
    )
    question = SimpleNamespace(
        task="needle", prompt=Prompt.model_validate({"messages": [{"content": "{context} {question}"}]})
    )
    suite = SimpleNamespace(settings=settings, task=task, question=question, name="tale", setting="")
    cell = SimpleNamespace(stored=None, id="niah/tale", place=place)
    said = answer_of(token_ids=[1, 2, 3], **answer)
    return record_of(suite, cell, Answered(said))  # type: ignore[arg-type]


def test_what_is_only_thought_does_not_retrieve() -> None:
    low = recorded({"text": "I do not know.", "thoughts": f"<think>{FERRY}</think>", "thought_tokens": 2})
    assert (low.status, low.scores["key_words"]) == ("low", 0)
    assert not low.is_cut_off
    passed = recorded({"text": FERRY, "thoughts": "<think>It leaves at noon.</think>", "thought_tokens": 2})
    assert passed.status == "pass"


def test_a_budget_that_ends_within_thoughts_is_its_own_reason() -> None:
    record = recorded(
        {"text": "", "thoughts": f"<think>{FERRY}", "thought_tokens": 3, "finish_reason": "length"}, metric="substring"
    )
    assert (record.status, record.passed, record.is_cut_off) == ("low", False, True)
    assert record.reason.startswith("cut off while thinking: the budget of 3 tokens ended before an answer began")
    (outcome,) = check([parse_gate("mean(pass_rate) >= 0.5")], [record], [record.cell]).outcomes
    assert outcome.sentence.endswith("1 of 1 answers were cut off while thinking")


def test_a_model_that_stops_within_its_thoughts_is_told_apart() -> None:
    record = recorded({"text": "", "thoughts": f"<think>{FERRY}", "thought_tokens": 3})
    assert record.reason.startswith("stopped while thinking: no closing tag")
    assert not record.is_cut_off


def test_stored_answers_are_told_apart_again_by_other_tags() -> None:
    before = {"text": f"<why>At noon?</why> {FERRY}"}
    assert recorded(before).thoughts is None
    again = recorded(before, thinking={"start": "<why>", "end": "</why>"})
    assert (again.text, again.thoughts) == (FERRY, "<why>At noon?</why> ")
    parted = {"text": FERRY, "thoughts": "<think>At noon?</think> ", "thought_tokens": 2}
    whole = recorded(parted, thinking=False)
    assert (whole.text, whole.thoughts) == (f"<think>At noon?</think> {FERRY}", None)


@pytest.mark.parametrize(
    ("thinking", "message"),
    [
        (True, "expected {start, end}, a list of such, or false; found 'true'"),
        ("</think>", "expected {start, end}, a list of such, or false; found '</think>'"),
        ({"start": "<a>"}, "Field required"),
        ({"start": "<a>", "end": " "}, "a text is expected, found none"),
    ],
)
def test_tags_that_are_none_are_refused(thinking: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("{", "\\{").replace("/", "/")):
        Scoring(thinking=thinking)
