"""Needles that share no word with their question: our own set, files in NoLiMa's format, scores, and base scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import simplemma
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_heads.errors import ConfigError
from retrieval_heads.runs.identity import question_identity
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.names import judge_name
from retrieval_heads.scoring.rouge import rouge_scores, words_in_line
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.suites.suite import Suite, load_suite
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.nonliteral.base import base_score, totals
from retrieval_heads.tasks.nonliteral.own import CHARACTERS, OWN
from retrieval_heads.tasks.nonliteral.sets import own_set
from retrieval_heads.tasks.nonliteral.task import NONLITERAL
from retrieval_heads.tasks.task import Cell, Question
from toy_tokenizer import ByteTokenizer, ToyTokenizer, WordTokenizer

TALE = "Once upon a time. There was a ferry.\nIt left at dawn! Nobody saw it.\n" * 8
ENTRY: dict[str, Any] = {
    "id": "07",
    "reasoning_type": "world_knowledge",
    "system_prompt": "Answer from the text.",
    "task_template": "Read this:\n{haystack}\nQuestion: {question}",
    "needle": "{CHAR} keeps a stall beside the {1}.",
    "questions": {"onehop": "Who has been to {2}?", "direct": "Who keeps a stall beside the {1}?"},
    "character_set": ["Mila", "Otto", "Rhea"],
    "tests": {"T1": {"input_args": ["Rialto bridge", "Venice"]}, "T2": {"input_args": ["Charles bridge", "Prague"]}},
    "distractors": {"onehop": "A train to {2} was late."},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "a.txt").write_text(TALE)
    return tmp_path


def suite_of(folder: Path, entries: Any = None, task: dict[str, Any] | None = None, **keys: Any) -> Suite:
    if entries is not None:
        (folder / "set.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    data = {
        "task": {"name": "nonliteral", **({"file": "set.json"} if entries is not None else {}), **(task or {})},
        "haystack": str(folder / "tales"),
        "sweep": {"context_lengths": [400], "document_depths": [50]},
        **keys,
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(data))
    return load_suite(folder / "suite.yaml")


def built(suite: Suite, place: Place, tokenizer: ToyTokenizer) -> tuple[list[int], Record]:
    question = Question.of_json(json.loads(json.dumps(suite.question.to_json())))
    request = CellBuilder(tokenizer, {}, {}, 1 << 20).request(question, Cell("a", "a", place))
    fields = {"task": "nonliteral", "axes": dict(place.axes), "seed": place.seed}
    return request.ids, Record.model_validate(
        {**fields, **NONLITERAL.asked(question, place).fields(), **request.facts.fields()}
    )


def test_there_are_enough_and_each_is_there_once() -> None:
    pairs = own_set().pairs.values()
    assert len(pairs) >= 24
    assert len(OWN) >= 3
    assert len({pair.needle for pair in pairs}) == len({pair.question for pair in pairs}) == len(pairs)
    assert all(pair.needle.count("{CHAR}") == 1 and "{CHAR}" not in pair.question for pair in pairs)


@pytest.mark.parametrize("name", own_set().pairs)
def test_needle_and_question_share_no_word(name: str) -> None:
    pair = own_set().pairs[name]
    needle, question = pair.needle.replace("{CHAR}", "Nora"), pair.question
    scores = rouge_scores(needle, question, "")
    assert max(scores["rouge1_f"], scores["rouge1_precision"], scores["rouge1_recall"]) < 0.1
    words, asked = (words_in_line(text).split() for text in (needle, question))
    assert set(words).isdisjoint(asked)
    lemmas = [{simplemma.lemmatize(word, pair.hop).casefold() for word in each} for each in (words, asked)]
    assert lemmas[0].isdisjoint(lemmas[1])


@pytest.mark.parametrize("name", own_set().pairs)
def test_a_distractor_says_the_questions_word_and_names_nobody(name: str) -> None:
    pair = own_set().pairs[name]
    (distractor,) = pair.distractors
    words = set(words_in_line(distractor).split())
    assert words.isdisjoint(character.casefold() for character in CHARACTERS)
    assert words & {word for word in words_in_line(pair.question).split() if len(word) > 2}


PAIRS = st.sampled_from(sorted(own_set().pairs))


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.sampled_from([WordTokenizer, ByteTokenizer]), st.floats(0, 100), st.integers(0, 5), st.booleans())
def test_spans_hold_their_texts_lengths_are_exact_and_recipes_rebuild(
    tmp_path_factory: pytest.TempPathFactory,
    pair: str,
    kind: type[ToyTokenizer],
    depth: float,
    seed: int,
    distractors: bool,
) -> None:
    folder = tmp_path_factory.mktemp("set")
    (folder / "tales").mkdir()
    (folder / "tales" / "a.txt").write_text(TALE)
    suite, tokenizer = suite_of(folder, task={"distractors": distractors}), kind()
    place = Place((("length", 1200), ("depth", depth), ("pair", pair)), seed)
    ids, record = built(suite, place, tokenizer)
    assert len(ids) == 1200
    assert record.insertions is not None
    assert len(record.insertions) == 1 + distractors
    for each in record.insertions:
        assert each.span is not None
        assert tokenizer.decode(ids[each.span[0] : each.span[1]]).strip() == each.text.strip()
    assert record.reference in record.insertions[0].text
    for each in record.insertions[1:]:
        assert 20 <= each.depth <= 80
        assert abs(each.depth - depth) >= 20
    assert CellBuilder(tokenizer, {}, {}, 1 << 20).stored(record).ids == ids


def test_the_character_is_drawn_by_seed_and_pair_alone(folder: Path) -> None:
    question = suite_of(folder).question
    drawn = {
        (seed, depth): NONLITERAL.asked(question, Place((("length", 1), ("depth", depth), ("pair", "en_paris")), seed))
        for seed in range(20)
        for depth in (0.0, 50.0)
    }
    assert all(drawn[seed, 0.0] == drawn[seed, 50.0] for seed in range(20))
    assert len({said.reference for said in drawn.values()}) > 5
    assert all(sorted([said.reference, *(said.others or ())]) == sorted(CHARACTERS) for said in drawn.values())


@pytest.mark.parametrize(
    ("answer", "one_name", "contains"),
    [
        ("Vera", 1, 1),
        ("It is **Vera**.", 1, 1),
        ("vera", 1, 0),
        ("Nora", 0, 0),
        ("Vera or Nora.", 0, 1),
        ("Veranda", 0, 1),
        ("I do not know.", 0, 0),
        ("", 0, 0),
    ],
)
def test_answers_that_are_right_and_wrong(answer: str, one_name: int, contains: int) -> None:
    found = judge_name(answer, ["Vera"], ["Nora", "Lina"], "Who has been to Paris?", Scoring(metric="one_name"))
    assert (found.scores["one_name"], found.scores["contains"]) == (one_name, contains)
    assert found.passed == bool(one_name)
    assert bool(found.reason) != found.passed


def test_a_file_in_nolimas_format_is_asked_as_it_says(folder: Path) -> None:
    suite = suite_of(folder, [ENTRY], {"wording": "set"})
    names = [str(cell.place.get("pair")) for cell in suite.cells]
    assert names == ["07_T1_onehop", "07_T1_direct", "07_T2_onehop", "07_T2_direct"]
    tokenizer = WordTokenizer()
    ids, record = built(suite, suite.cells[2].place, tokenizer)
    prompt = tokenizer.decode(ids)
    assert record.question == "Who has been to Prague?"
    assert f"{record.reference} keeps a stall beside the Charles bridge." in prompt
    assert "A train to Prague was late." in prompt
    assert prompt.startswith("<|user|>Answer from the text.<|end|>\n<|user|>Read this:\nOnce upon a time.")
    assert prompt.endswith("Question: Who has been to Prague?<|end|>\n<|assistant|>")
    assert CellBuilder(tokenizer, {}, {}, 1 << 20).stored(record).ids == ids
    direct = suite_of(folder, [{**ENTRY, "distractors": None}], {"questions": ["direct"]})
    assert len(direct.cells) == 2


def test_the_needle_stands_behind_the_first_line_end_at_or_after_its_depth(folder: Path) -> None:
    tokenizer = ByteTokenizer()
    suite = suite_of(folder, [ENTRY], {"distractors": False})
    _, record = built(suite, suite.cells[0].place, tokenizer)
    assert record.insertions is not None
    place = record.insertions[0].place
    room = 400 - len(tokenizer.encode(f"\n{record.insertions[0].text}\n\n\n{record.question}")) - 3
    assert place >= room // 2
    haystack = tokenizer.decode(tokenizer.encode(TALE)[:place])
    assert haystack.endswith("\n")
    assert "\n" not in haystack[room // 2 : -1]


def test_gold_answers_go_before_the_drawn_name(folder: Path) -> None:
    tests = {"T1": {"input_args": ["Rialto bridge", "Venice"], "gold_answers": ["Otto", "Otto I"]}}
    suite = suite_of(folder, [{**ENTRY, "needle": "Otto sits by the {1}.", "character_set": [], "tests": tests}])
    asked = NONLITERAL.asked(suite.question, suite.cells[0].place)
    assert (asked.reference, asked.alternatives, asked.others) == ("Otto", ("Otto I",), ())


def test_an_empty_gold_answer_is_the_drawn_name(folder: Path) -> None:
    entry = {**ENTRY, "tests": {"T1": {"input_args": ["Rialto bridge", "Venice"], "gold_answers": ""}}}
    suite = suite_of(folder, [entry])
    expected = NONLITERAL.asked(suite.question, suite.cells[0].place)
    assert expected.reference in ENTRY["character_set"]
    judged = NONLITERAL.judge("Nobody does.", expected, Scoring(metric="contains"))
    assert judged.scores["contains"] == 0


def test_a_changed_file_is_another_question_wherever_it_lies(folder: Path, tmp_path_factory: Any) -> None:
    def identity(where: Path, entries: Any) -> str:
        suite = suite_of(where, entries)
        return question_identity(built(suite, suite.cells[0].place, WordTokenizer())[1]).key

    other = tmp_path_factory.mktemp("other")
    (other / "tales").mkdir()
    (other / "tales" / "a.txt").write_text(TALE)
    assert identity(folder, [ENTRY]) == identity(other, [ENTRY])
    assert identity(folder, [ENTRY]) != identity(folder, [ENTRY, {**ENTRY, "id": "08"}])


def test_the_resolved_suite_runs_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
) -> None:
    suite = suite_of(folder, [ENTRY])
    other = tmp_path_factory.mktemp("other")
    monkeypatch.chdir(other)
    (other / "config.yaml").write_text(yaml.safe_dump(suite.resolved()))
    assert [cell.id for cell in load_suite(other / "config.yaml").cells] == [cell.id for cell in suite.cells]


@pytest.mark.parametrize(
    ("entries", "task", "sentence"),
    [
        ("{", {}, "set.json: not a JSON list of needles"),
        ([], {}, "set.json: a JSON list of needles is expected"),
        ([{**ENTRY, "needle": 3}], {}, "set.json: entry 1 (07): needle: Input should be a valid string"),
        (
            [{**ENTRY, "tests": {"T": {"input_args": ["a"]}}}],
            {},
            "entry 1 (07): tests.T: 'Who has been to {2}?' holds {2}",
        ),
        ([{**ENTRY, "character_set": []}], {}, "entry 1 (07): the needle holds {CHAR} and there is no character_set"),
        ([{**ENTRY, "task_template": "{question}"}], {}, "task_template holds {haystack} 0 times; once is accepted"),
        (
            [{**ENTRY, "task_template": "{haystack}{context}{question}"}],
            {},
            "entry 1 (07): system_prompt and task_template: {context} stands there besides",
        ),
        (
            [{**ENTRY, "system_prompt": "Answer {question}"}],
            {},
            "entry 1 (07): system_prompt and task_template: {question} stands there besides",
        ),
        (
            [{**ENTRY, "distractors": ["A bus to {3} left."]}],
            {},
            "entry 1 (07): tests.T1: 'A bus to {3} left.' holds {3}",
        ),
        ([{**ENTRY, "distractors": {"onehop": ["The {0} is shut."]}}], {}, "'The {0} is shut.' holds {0}"),
        # Every answer holds an empty text: `contains` was 1 whatever was said.
        (
            [{**ENTRY, "tests": {"T": {"input_args": ["a", "b"], "gold_answers": [" "]}}}],
            {},
            "entry 1 (07): tests.T.gold_answers.0: a text is expected, found none",
        ),
        ([{**ENTRY, "character_set": ["Mila", ""]}], {}, "(07): character_set.1: a text is expected, found none"),
        ([{**ENTRY, "needle": " "}], {}, "entry 1 (07): needle: a text is expected, found none"),
        ([{**ENTRY, "questions": {"onehop": ""}}], {}, "(07): questions.onehop: a text is expected, found none"),
        ([ENTRY, ENTRY], {}, "set.json: entry 2: there are two of 07_T1_onehop"),
        ([ENTRY], {"questions": ["twohop"]}, "task.questions: the set has no 'twohop'; it has onehop, direct"),
        (None, {"wording": "set"}, "task.wording: the set has no task_template for en_barcelona"),
        (None, {"file": "none.json"}, "none.json: cannot be read (No such file or directory)"),
    ],
)
def test_what_cannot_be_asked(folder: Path, entries: Any, task: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        suite_of(folder, entries, task)
    assert sentence in str(error.value)


def test_a_score_that_the_task_has_not_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"scoring.metric: the task has no score exact; accepted: one_name"):
        suite_of(folder, scoring={"metric": "exact"})


def scored(length: int, pair: str, value: float, depth: float = 0) -> Record:
    axes = {"length": length, "depth": depth, "pair": pair}
    return Record(task="nonliteral", axes=axes, scores={"contains": value}, status="pass")


def test_base_score_and_effective_length_as_the_paper_defines_them() -> None:
    # Pair a: 0.5 at 250 (two depths), 1 at 500; pair b: 1 at 250, 0 at 500. Its best each: 1 and 1. Direct is left out.
    records = [
        *(scored(250, "a_onehop", value, depth) for depth, value in ((0, 0), (50, 1))),
        *(scored(500, "a_onehop", 1, depth) for depth in (0, 50)),
        *(scored(250, "b_twohop", 1, depth) for depth in (0, 50)),
        *(scored(500, "b_twohop", 0, depth) for depth in (0, 50)),
        *(scored(2000, pair, value) for pair, value in (("a_onehop", 1), ("b_twohop", 1))),
        *(scored(4000, pair, 0.5) for pair in ("a_onehop", "b_twohop")),
        *(scored(length, "a_direct", 0) for length in (250, 500, 2000, 4000)),
    ]
    found = base_score(records)
    assert found is not None
    assert math.isclose(found.base, 1)
    assert found.means == {250: 0.75, 500: 0.5, 2000: 1, 4000: 0.5}
    assert found.effective == 2000, "of the short lengths, which the base is of, none ends it"
    longer = base_score(
        [scored(length, "a_onehop", value) for length, value in ((1000, 0.8), (2000, 0.68), (4000, 0.67))]
    )
    assert longer is not None
    assert longer.effective == 2000
    assert totals([scored(2000, "a_onehop", 1)]) == ["no base score: no length of at most 1024 tokens was measured"]


def test_a_length_at_which_a_pair_has_no_answer_ends_the_effective_length() -> None:
    records = [scored(length, pair, pair == "a") for length in (512, 2048, 4096) for pair in ("a", "b")]
    records[3] = records[3].model_copy(update={"status": "error", "scores": {}})  # b at 2,048, which it cannot
    found = base_score(records)
    assert found is not None
    assert (found.base, found.effective, found.missing) == (0.5, 512, 1)
    assert totals(records)[0].endswith(
        "effective length (0.85 of it): 512 tokens; 1 samples have no answer and are left out"
    )
    gone = [each.model_copy(update={"scores": {}}) if each.place.get("length") == 2048 else each for each in records]
    found = base_score(gone)
    assert found is not None
    assert (found.means, found.effective) == ({512: 0.5, 4096: 0.5}, 512)
