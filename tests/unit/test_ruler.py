"""RULER's tasks: what stands in their prompts, how long those are, and what right and wrong answers score."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.prompts.requests import CellSkipped, Request
from retrieval_heads.prompts.settings import PROMPTS
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.ruler import words
from retrieval_heads.tasks.ruler.cwe import CommonWords
from retrieval_heads.tasks.ruler.fit import most_that_fit
from retrieval_heads.tasks.ruler.fwe import FrequentWords
from retrieval_heads.tasks.ruler.niah import niah
from retrieval_heads.tasks.ruler.parts import NAMES, OF_FILES, part_of
from retrieval_heads.tasks.ruler.task import RULER, RulerOptions
from retrieval_heads.tasks.ruler.vt import VariableTracking
from retrieval_heads.tasks.ruler.wording import OWN_CWE, OWN_FWE, OWN_NIAH, OWN_VT
from retrieval_heads.tasks.task import Cell, Question
from toy_tokenizer import ByteTokenizer, ToyTokenizer, WordTokenizer

ALL = sorted(set(NAMES) - OF_FILES.keys())
PARTS = {name: part_of(name) for name in ALL}
NIAH, VT, CWE, FWE = niah(OWN_NIAH), VariableTracking(OWN_VT), CommonWords(OWN_CWE), FrequentWords(OWN_FWE)
IN_TEXT = [name for name in ALL if name.startswith("niah") and name not in ("niah_multikey_2", "niah_multikey_3")]
SYLLABLES = ["ba", "de", "fi", "go", "lu", "ma", "ne", "ri", "so", "tu"]


@pytest.fixture(scope="module", autouse=True)
def _own_words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Word lists of the test's own, as the installed package has them."""
    assets = tmp_path_factory.mktemp("site") / words.PACKAGE / "assets"
    assets.mkdir(parents=True)
    (assets.parent / "__init__.py").write_text("raise AssertionError('its code is not run')")
    made = [f"{a}{b}{c}" for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]
    for kind, chosen in (("noun", made[:600]), ("adjective", made[500:800]), ("verb", made[800:])):
        (assets / f"{kind}list.txt").write_text("\n".join(reversed(chosen)) + "\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(assets.parent.parent)
        patched.delitem(sys.modules, words.PACKAGE, raising=False)
        words.load_words.cache_clear()
        yield
    words.load_words.cache_clear()


@pytest.fixture(scope="module")
def tales(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tales")
    (folder / "a.txt").write_text("Once upon a time there was a boat. It sailed far away. Nobody saw it again.\n" * 20)
    return str(folder)


def question(source: str, *tasks: str, kind: str = "niah", **options: Any) -> Question:
    said = RulerOptions.model_validate({"tasks": list(tasks) or ALL, **options}).model_dump(mode="json")
    return Question("ruler", kind, task="ruler", options=said, source=source, prompt=PROMPTS["book"], lengths=(1024,))


def place(name: str, length: int, seed: int = 0) -> Place:
    return Place((("length", length), ("task", name)), seed)


def asked(source: str, at: Place, tokenizer: ToyTokenizer, *, room: int = 1 << 20, **options: Any) -> Request:
    takes_text = bool(options.pop("takes_text", False))
    builder = CellBuilder(tokenizer, {}, {}, room, takes_text=takes_text)
    return builder.request(question(source, **options), Cell("a", "a", at))


def record_of(source: str, at: Place, request: Request) -> Record:
    asks = question(source)
    fields = {"task": "ruler", "axes": dict(at.axes), "seed": at.seed, "suite": "ruler"}
    return Record.model_validate({**fields, **RULER.asked(asks, at).fields(), **request.facts.fields()})


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(ALL), st.integers(3000, 5000), st.integers(0, 50))
def test_lengths_spans_and_the_rebuilt_prompt(tales: str, name: str, length: int, seed: int) -> None:
    if name == "cwe" and length >= 4096:
        length += 4000  # there its words are repeated more often
    tokenizer, at = ByteTokenizer(adds_bos=True), place(name, length, seed)
    request = asked(tales, at, tokenizer)
    part, facts = PARTS[name], request.facts
    whole = len(request.ids) + part.answer_tokens
    if name in IN_TEXT:
        assert whole == length, "a running text fills all of it"
    else:
        assert length - 300 < whole <= length, "as many whole units as fit"
    assert request.sampling["max_tokens"] == part.answer_tokens
    text = tokenizer.decode(request.ids)
    record = record_of(tales, at, request)
    assert record.recipe is not None
    assert text.endswith(f"<|assistant|>{record.recipe.prefill}")
    assert record.question in tokenizer.decode(request.ids[slice(*(facts.question_span or ()))])
    if part.has_spans:
        assert record.insertions is not None
        held = [tokenizer.decode(request.ids[slice(*each.span)]) for each in record.insertions if each.span]
        assert held == [each.counted or each.text for each in record.insertions]
        assert held[: len(record.expected or ())] == record.expected
        assert sum(each.role == "asked" for each in record.insertions) == len(record.expected or ())
    again = CellBuilder(ByteTokenizer(adds_bos=True), {}, {}, 1 << 20).stored(Record.model_validate(record.to_json()))
    assert again.ids == request.ids


@pytest.mark.parametrize("name", ALL)
def test_words_of_another_vocabulary_and_text_in_place_of_ids(tales: str, name: str) -> None:
    tokenizer, at = WordTokenizer(), place(name, 900, 7)
    request = asked(tales, at, tokenizer)
    assert len(request.ids) + PARTS[name].answer_tokens <= 900
    sent = asked(tales, at, tokenizer, takes_text=True)
    assert sent.text is not None
    assert sent.text.text == tokenizer.decode(request.ids)
    assert sent.facts.needle_span is None
    assert not any(each.span for each in sent.facts.insertions or ())


@pytest.mark.parametrize("name", [name for name in ALL if name not in IN_TEXT])
def test_one_more_unit_does_not_fit(tales: str, name: str) -> None:
    tokenizer = ByteTokenizer()
    for length in (3000, 3333):
        request = asked(tales, place(name, length), tokenizer)
        longer = [len(asked(tales, place(name, more), tokenizer).ids) for more in range(length, length + 200, 20)]
        assert longer[0] == len(request.ids)
        assert max(longer) > len(request.ids)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3000))
def test_the_greatest_count_that_fits_is_found_with_few_texts(fewest: int, each: int, room: int) -> None:
    calls = []

    def tokens_of(count: int) -> int:
        calls.append(count)
        return 13 + each * count

    found = most_that_fit(tokens_of, fewest, room)
    assert found == (None if 13 + each * fewest > room else (room - 13) // each)
    assert len(calls) <= 8


def needles(name: str, seed: int = 0) -> list[tuple[str, str]]:
    return [(each.role, each.text) for each in NIAH[name].planned(seed)]  # type: ignore[union-attr]


def test_single_needles_differ_in_text_and_value() -> None:
    assert NIAH["niah_single_1"].noise == OWN_NIAH.noise  # type: ignore[union-attr]
    for name, length in (("niah_single_1", 7), ("niah_single_2", 7), ("niah_single_3", 36)):
        ((role, text),) = needles(name)
        (value,) = NIAH[name].asked(0, 1024).expected
        assert (role, len(value)) == ("asked", length)
        assert text.endswith(f" is {value}.")


def test_multikey_1_has_three_other_keys_and_asks_for_one() -> None:
    planned = needles("niah_multikey_1")
    assert [role for role, _ in planned] == ["asked"] + ["distractor"] * 3
    assert len({text.split(" of ")[1].split(" is ")[0] for _, text in planned}) == 4


def test_multivalue_has_four_values_of_one_key_and_multiquery_four_keys() -> None:
    for name, keys in (("niah_multivalue", 1), ("niah_multiquery", 4)):
        planned, asked_ = needles(name), NIAH[name].asked(0, 1024)
        assert [role for role, _ in planned] == ["asked"] * 4
        assert len({text.split(" of ")[1].split(" is ")[0] for _, text in planned}) == keys
        assert len(set(asked_.expected)) == 4
    assert len({each.depth for each in NIAH["niah_multiquery"].planned(0)}) == 4  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["niah_multikey_2", "niah_multikey_3"])
def test_among_needles_every_line_is_one_and_one_is_asked_for(name: str) -> None:
    filled, asked_ = NIAH[name].filled(3, 4096, 50), NIAH[name].asked(3, 4096)  # type: ignore[union-attr]
    lines = filled.text.splitlines()
    assert len(lines) == len(set(lines)) == 50
    assert sum(asked_.expected[0] in line for line in lines) == 1
    ((start, end),) = filled.counted
    assert filled.text[start:end] == asked_.expected[0]


def test_variables_follow_each_other_and_the_example_is_drawn_anew() -> None:
    asked_, filled = VT.asked(5, 4096), VT.filled(5, 4096, 40)
    lines = [line for line in filled.text.splitlines() if line.startswith("LET ")]
    first, *others = asked_.expected
    value = lines[0].rpartition(" = ")[2]
    assert lines[0] == f"LET {first} = {value}"
    assert lines[1:] == [f"LET {name} = {of}" for name, of in zip(others, asked_.expected, strict=False)]
    assert [filled.text[start:end] for start, end in filled.counted] == list(asked_.expected)
    assert value in asked_.question
    example = VT.example(5, 4096, len)
    assert value not in example, "the example has a value of its own"
    assert example != VT.example(6, 4096, len)


def test_common_words_stand_six_times_or_thirty() -> None:
    for length, often, seldom in ((1024, 6, 1), (4096, 30, 3)):
        counts = Counter(word for word in CWE.filled(2, length, 60).text.split() if not word.endswith("."))
        common = CWE.asked(2, length).expected
        assert [counts[word] for word in common] == [often] * 10
        assert {count for word, count in counts.items() if word not in common} == {seldom}


def test_frequent_words_are_those_behind_the_dots() -> None:
    counts = Counter(FWE.filled(1, 4096, 2000).text.split()).most_common(5)
    assert counts[0][0] == "..."
    assert tuple(word for word, _ in counts[1:4]) == FWE.asked(1, 4096).expected
    assert len({count for _, count in counts}) == 5


RIGHT: dict[str, Callable[[list[str]], str]] = {
    "as a list": lambda said: ", ".join(said),
    "in capitals, backwards": lambda said: " and ".join(reversed(said)).upper(),
    "with numbers": lambda said: "\n".join(f"{number}. {each}" for number, each in enumerate(said, start=1)),
}


@pytest.mark.parametrize("name", ALL)
def test_right_answers_score_1_and_wrong_ones_less(tales: str, name: str) -> None:
    fields = RULER.asked(question(tales), place(name, 4096, 3))
    expected, scoring = list(fields.expected or ()), Scoring(metric="string_match", threshold=0.99)
    for answer in (make(expected) for make in RIGHT.values()):
        found = RULER.judge(answer, fields, scoring)
        assert (found.passed, found.scores["string_match"], found.scores["whole_words"]) == (True, 1, 1)
    nothing = RULER.judge("I cannot say.", fields, scoring)
    assert (nothing.passed, nothing.scores["string_match"], nothing.scores["string_match_part"]) == (False, 0, 0)
    other = RULER.judge(RULER.asked(question(tales), place(name, 4096, 4)).reference, fields, scoring)
    assert not other.passed
    first = RULER.judge(expected[0], fields, scoring)
    assert first.scores["string_match"] == pytest.approx(1 / len(expected))
    assert first.scores["string_match_part"] == 1


@pytest.mark.parametrize("name", ALL)
def test_a_length_below_the_least_is_told(tales: str, name: str) -> None:
    with pytest.raises(PromptError, match=r"^a length of \d+ tokens is too short.*\d+"):
        asked(tales, place(name, 180), ByteTokenizer())


def test_too_few_words_are_told(tales: str) -> None:
    with pytest.raises(PromptError, match="cwe at 80000 tokens takes more than the 1000 words of wonderwords"):
        asked(tales, place("cwe", 80_000), ByteTokenizer())


def test_the_budget_is_rulers_whatever_a_config_says_of_others(tales: str) -> None:
    at, builder = place("niah_single_2", 3000), CellBuilder(ByteTokenizer(), {}, {}, 1 << 20)
    for options, budget in (({}, 128), ({"answer_tokens": 500}, 500)):
        asks = question(tales, **options)
        asks = Question(**{**vars(asks), "generation": {"max_tokens": 48, "temperature": 0.5}})
        request = builder.request(asks, Cell("a", "a", at))
        assert (request.sampling["max_tokens"], len(request.ids)) == (budget, 3000 - budget)
        assert request.sampling["temperature"] == 0.5


def test_a_model_without_room_skips_the_cell(tales: str) -> None:
    for name in ("niah_single_2", "vt"):
        with pytest.raises(CellSkipped, match="do not fit max_model_len 2000"):
            asked(tales, place(name, 3000), ByteTokenizer(), room=2000)


def test_other_word_lists_are_refused(tales: str) -> None:
    with pytest.raises(PromptError, match=r"the word lists of wonderwords are not those of task\.words"):
        asked(tales, place("cwe", 3000), ByteTokenizer(), words="0" * 64)
    request = asked(tales, place("cwe", 3000), ByteTokenizer())
    assert request.facts.recipe.options["words"] == words.load_words().hash


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"kind": "detect"}, "kind: detect takes prompts with spans, and cwe, fwe has none"),
        ({"prompt": PROMPTS["document"]}, "prompt: the tasks of ruler have wordings of their own; leave it out"),
    ],
)
def test_what_cannot_be_asked_is_told_at_collection(tales: str, changed: dict[str, Any], sentence: str) -> None:
    asks = question(tales)
    asks = Question(**{**vars(asks), **changed})
    with pytest.raises(ConfigError, match=sentence):
        list(RULER.places(asks))


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        (["vt", "vt"], "vt is given twice"),
        (["niah_single_4"], "unknown task 'niah_single_4'; did you mean 'niah_single"),
        ([], "at least 1 item"),
    ],
)
def test_bad_settings_are_named(tasks: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RulerOptions.model_validate({"tasks": tasks})


def test_without_the_package_its_name_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(words, "PACKAGE", "wonderless")
    words.load_words.cache_clear()
    with pytest.raises(
        ConfigError, match="the package wonderless is not installed; try: pip install --no-deps wonderless"
    ):
        words.load_words()
