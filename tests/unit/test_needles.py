"""Many needles in one haystack: exact lengths, a span and a depth for each, and the same prompt from the record."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_heads.errors import PromptError
from retrieval_heads.heads.looks import Look, Rows
from retrieval_heads.heads.score import head_score
from retrieval_heads.prompts.haystack import Haystack
from retrieval_heads.prompts.requests import Request
from retrieval_heads.prompts.settings import PROMPTS, Prompt
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.needles import NEEDLES, NeedlesOptions
from retrieval_heads.tasks.task import Cell, Question
from toy_tokenizer import ByteTokenizer, ToyTokenizer, WordTokenizer

TALE = "Once upon a time. There was a ferry. It left at dawn! 从前有一座山。山里有座庙。 Café 🙂 talk\n" * 5


@pytest.fixture(scope="module")
def tales(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tales")
    (folder / "a.txt").write_text(TALE)
    return str(folder)


def question(source: str, *, prefill: str | None = None, boundary: str = "sentence", **options: Any) -> Question:
    prompt = PROMPTS["book"]
    if prefill:
        prompt = Prompt.model_validate({**prompt.model_dump(), "prefill": prefill})
    said = NeedlesOptions.model_validate(options).model_dump(mode="json")
    return Question("many", "niah", task="needles", options=said, source=source, prompt=prompt, boundary=boundary)


def asked(question: Question, place: Place, tokenizer: ToyTokenizer, *, takes_text: bool = False) -> Request:
    builder = CellBuilder(tokenizer, {}, {}, 1 << 20, takes_text=takes_text)
    return builder.request(question, Cell("a", "a", place))


def record_of(question: Question, place: Place, request: Request) -> Record:
    fields = {"task": question.task, "axes": dict(place.axes), "seed": place.seed, "suite": question.suite}
    return Record.model_validate({**fields, **NEEDLES.asked(question, place).fields(), **request.facts.fields()})


def place(length: int = 600, depth: float = 50, seed: int = 0) -> Place:
    return Place((("length", length), ("depth", depth)), seed)


OPTIONS = st.fixed_dictionaries(
    {
        "values": st.integers(1, 3),
        "queries": st.integers(1, 3),
        "keys": st.integers(0, 3),
        "distractors": st.lists(st.sampled_from(["A code is a code.", " It is 7.", "钥匙在这里。"]), max_size=2),
        "apart": st.sampled_from([0, 2.5]),
        "moves": st.sampled_from(["first", "all"]),
    }
)


@settings(deadline=None)
@given(
    OPTIONS,
    st.sampled_from([WordTokenizer, ByteTokenizer]),
    st.integers(1800, 2500),
    st.floats(0, 100),
    st.integers(0, 5),
    st.sampled_from(["sentence", "token"]),
    st.sampled_from([None, "The codes are"]),
)
def test_length_spans_and_the_rebuilt_prompt_are_exact(
    tales: str,
    options: dict[str, Any],
    kind: type[ToyTokenizer],
    length: int,
    depth: float,
    seed: int,
    boundary: str,
    prefill: str | None,
) -> None:
    tokenizer, at = kind(adds_bos=True), place(length, depth, seed)
    given_ = question(tales, prefill=prefill, boundary=boundary, **options)
    request = asked(given_, at, tokenizer)
    assert len(request.ids) == length == request.facts.prompt_tokens
    record = record_of(given_, at, request)
    assert record.insertions is not None
    wanted = options["values"] * options["queries"]
    roles = [each.role for each in record.insertions]
    assert roles == ["asked"] * wanted + ["distractor"] * (options["keys"] + len(options["distractors"]))
    for each in record.insertions:
        assert each.span is not None
        assert tokenizer.decode(request.ids[slice(*each.span)]).strip() == (each.counted or each.text).strip()
        assert 0 <= each.achieved_depth <= 100
    spans = sorted(each.span for each in record.insertions if each.span)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert [each.counted for each in record.insertions[:wanted]] == record.expected
    assert record.insertions[0].depth == depth
    assert record.needle_span == record.insertions[0].span
    again = CellBuilder(kind(adds_bos=True), {}, {}, 1 << 20).stored(Record.model_validate(record.to_json()))
    assert again.ids == request.ids
    assert again.facts.insertions == request.facts.insertions


def test_what_is_asked_is_the_seeds_alone(tales: str) -> None:
    asks = question(tales, values=2, keys=2)
    here, there, other = (NEEDLES.asked(asks, at) for at in (place(600, 0), place(900, 75), place(600, 0, seed=1)))
    assert here == there
    assert here.expected != other.expected
    assert len(here.expected or ()) == 2


def test_the_depth_moves_the_first_or_all(tales: str) -> None:
    def depths(moves: str, depth: float) -> list[float]:
        request = asked(question(tales, values=4, moves=moves), place(1000, depth), WordTokenizer())
        return [each.depth for each in request.facts.insertions or ()]

    assert depths("first", 0)[1:] == depths("first", 80)[1:]
    assert depths("first", 80)[0] == 80
    assert depths("all", 20) == [20, 40, 60, 80], "spread evenly from the depth to the end"


def test_distractors_are_kept_away_from_what_is_asked(tales: str) -> None:
    for seed in range(20):
        request = asked(question(tales, keys=8, apart=20), place(1500, 50, seed), WordTokenizer())
        depths = [each.depth for each in request.facts.insertions or ()]
        assert all(abs(depth - 50) >= 20 for depth in depths[1:])


def test_where_no_depth_is_far_enough_it_is_said(tales: str) -> None:
    with pytest.raises(PromptError, match=r"no depth is 50 % away from all of 1 needles; give task\.apart a smaller"):
        asked(question(tales, keys=1, apart=50.0), place(depth=50), WordTokenizer())


def test_a_length_without_room_is_told(tales: str) -> None:
    with pytest.raises(PromptError, match=r"a length of 40 tokens is too short: .* the 3 needles \d+; at least"):
        asked(question(tales, values=3), place(40), WordTokenizer())


def test_another_wording_is_another_prompt(tales: str) -> None:
    asks, at = question(tales, values=2), place()
    record = record_of(asks, at, asked(asks, at, WordTokenizer()))
    assert record.recipe is not None
    changed = record.recipe.model_copy(update={"prefill": "Well:"})
    with pytest.raises(PromptError, match="is not the one that the stored answer was given to"):
        CellBuilder(WordTokenizer(), {}, {}, 4096).stored(record.model_copy(update={"recipe": changed}))


def test_text_holds_all_needles_and_no_spans(tales: str) -> None:
    asks, at = question(tales, values=2, keys=2), place(800, 30, 3)
    tokenizer = WordTokenizer()
    request = asked(asks, at, tokenizer, takes_text=True)
    assert request.text is not None
    assert request.text.text == tokenizer.decode(request.ids)
    assert [each.text in request.text.text for each in request.facts.insertions or ()] == [True] * 4
    assert {each.span for each in request.facts.insertions or ()} == {None}


def test_head_scores_aim_at_all_that_is_asked(tales: str) -> None:
    request = asked(question(tales, values=3, keys=2), place(900), WordTokenizer())
    rows = request.rows([5, 6])
    spans = [each.span for each in (request.facts.insertions or ())[:3] if each.span]
    assert list(rows.spans) == spans
    assert rows.needle == tuple(token for start, end in spans for token in request.ids[start:end])
    assert head_score("mass").looks(rows) == [Look(rows.answer_rows, span) for span in spans]
    assert head_score("copy").looks(rows) == [Look(rows.answer_rows, spans[0])]
    assert Rows.of_json(json.loads(json.dumps(rows.to_json()))) == rows, "as it crosses to the worker"
    others = [each.span for each in (request.facts.insertions or ())[3:] if each.span]
    assert len(others) == 2
    assert head_score("mass_distractors").looks(rows) == [Look(rows.answer_rows, span) for span in others]
    one = asked(question(tales), place(900), WordTokenizer()).rows([5, 6])
    assert not one.more_spans
    assert not head_score("mass_distractors").looks(one)


def judged(answer: str, expected: list[str], metric: str = "string_match", threshold: float = 0.99) -> Any:
    asked = "List every access code that the text gives for the calm candle."
    wanted = Expectation(asked, ", ".join(expected), expected=tuple(expected))
    return NEEDLES.judge(answer, wanted, Scoring(metric=metric, threshold=threshold))


def test_a_right_answer_says_every_value_in_any_order() -> None:
    found = judged("They are 7654321, and 1234567.", ["1234567", "7654321"])
    assert found.passed
    assert [found.scores[name] for name in ("string_match", "string_match_part", "whole_words")] == [1, 1, 1]


def test_a_wrong_answer_is_told_with_what_it_lacks() -> None:
    found = judged("It is 1234567, that is all.", ["1234567", "7654321"])
    assert not found.passed
    assert [found.scores[name] for name in ("string_match", "string_match_part", "whole_words")] == [0.5, 1, 0.5]
    assert found.reason == "string_match 0.500 is not above 0.99: the answer lacks 7654321"
    nothing = judged("I do not know.", ["1234567", "7654321"])
    assert [nothing.scores[name] for name in ("string_match", "string_match_part", "whole_words")] == [0, 0, 0]


def test_a_part_of_another_word_is_a_substring_and_no_word() -> None:
    found = judged("91234567", ["1234567"])
    assert (found.scores["string_match"], found.scores["whole_words"]) == (1, 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"needle": "The code is {value}."}, r"needle holds \{key\} 0 times; once is accepted"),
        ({"question": "Which?"}, r"question holds \{keys\} 0 times"),
        ({"keys": 800}, "801 keys; there are 576 names for them"),
        ({"values": 0}, "greater than or equal to 1"),
        ({"moves": "last"}, "'first' or 'all'"),
        ({"distractors": [" "]}, "a text is expected"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        NeedlesOptions.model_validate(options)


def test_one_needle_among_several_is_where_it_would_be_alone() -> None:
    tale = Haystack.of("tale", TALE, CellBuilder(WordTokenizer(), {}, {}, 9).prompts.tokenize)
    for depth in (0, 33, 100):
        alone = tale.context(200, [7, 8], depth)
        several = tale.filled(200, [([7, 8], depth), ([9], 50), ([10], 50)])
        assert several.insertion == alone.insertion
        assert [token for token in several.ids if token not in (9, 10)] == alone.ids
        assert several.ids.index(9) < several.ids.index(10)
