"""Needles from JSONL and CSV: columns, languages, code, a haystack and distractors of each row, and broken files."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.prompts.haystack import Haystack, check_source, read_text
from retrieval_heads.runs.identity import question_identity
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import Record
from retrieval_heads.suites.soundness import check_answers
from retrieval_heads.suites.suite import Suite, load_suite
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.needle import TheNeedle
from retrieval_heads.tasks.task import Question
from toy_tokenizer import ByteTokenizer, WordTokenizer

TALE = "Once upon a time there was a boat. It sailed far away. Nobody saw it again.\n" * 20
# Needle, question, answer that is right, answer that is wrong.
LANGUAGES: Mapping[str, tuple[str, str, str, str]] = {
    "zh": ("守夜人把备用钥匙放在黄铜望远镜里。", "守夜人把备用钥匙放在哪里？", "在黄铜望远镜里", "在木头抽屉里"),
    "ar": (
        "يحتفظ الحارس بالمفتاح داخل التلسكوب النحاسي.",
        "أين يحتفظ الحارس بالمفتاح؟",
        "داخل التلسكوب النحاسي",
        "داخل الصندوق الخشبي",
    ),
    "ru": (
        "Сторож хранит ключ внутри медного телескопа.",
        "Где сторож хранит ключ?",
        "внутри медного телескопа",
        "в деревянном ящике",
    ),
    "de": (
        "Der Wächter verwahrt den Schlüssel im Fernrohr aus Messing.",
        "Wo verwahrt der Wächter den Schlüssel?",
        "im Fernrohr aus Messing",
        "in der Schublade aus Holz",
    ),
    "hi": ("चौकीदार चाबी पीतल की दूरबीन में रखता है।", "चौकीदार चाबी कहाँ रखता है?", "पीतल की दूरबीन में", "लकड़ी के संदूक में"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "a.txt").write_text(TALE)
    return tmp_path


def suite_of(folder: Path, file: str, rows: Any, columns: Mapping[str, Any] | None = None, **keys: Any) -> Suite:
    """A suite over the rows of a file, which are written as it says."""
    path = folder / file
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as opened:
            csv.writer(opened, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    data = {
        "haystack": str(folder / "tales"),
        "needles": {"file": file, **({"columns": columns} if columns else {})},
        "sweep": {"context_lengths": [600], "document_depths": [40]},
        "generation": {"max_tokens": 8},
    }
    data |= keys
    suite = folder / "suite.yaml"
    suite.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}), "utf-8")
    return load_suite(suite)


def test_columns_become_needles(folder: Path) -> None:
    rows = [
        {"fact": "The code is 7412.", "q": "Which code?", "a": ["7412", "seven four one two"], "id": "safe box"},
        {"fact": "The year is 1927.", "q": "Which year?", "a": 1927, "id": "year"},
    ]
    columns = {"needle": "fact", "question": "q", "answer": "a", "name": "id"}
    suite = suite_of(folder, "facts.jsonl", rows, columns)
    assert [needle.name for needle in suite.needles] == ["safe_box", "year"]
    assert suite.needles[0].references == ("7412", "seven four one two")
    assert suite.needles[1].references == ("1927",)
    assert [cell.name for cell in suite.cells] == ["safe_box-len_600-depth_40", "year-len_600-depth_40"]


@pytest.mark.parametrize("file", ["facts.csv", "facts.tsv"])
def test_a_table_with_its_columns_named_as_keys_needs_no_mapping(folder: Path, file: str) -> None:
    rows = [
        ["needle", "question", "answer", "d1", "d2"],
        ["The code,\nsaid she, is 7412.", "Which code?", "7412", "The code of the door is 9.", ""],
        ["The year is 1927.", "Which year?", "1927", "", ""],
    ]
    suite = suite_of(folder, file, rows, {"distractors": ["d1", "d2"]})
    assert [needle.name for needle in suite.needles] == ["row_1", "row_2"]
    assert suite.needles[0].needle == "The code,\nsaid she, is 7412."
    assert [needle.distractors for needle in suite.needles] == [["The code of the door is 9."], []]


def built(suite: Suite, tokenizer: Any = None, number: int = 0, **place: Any) -> tuple[Any, Record]:
    """A cell's request, as the engine builds it, and its record."""
    cell = replace(suite.cells[number], place=replace(suite.cells[number].place, **place))
    question = Question.of_json(json.loads(json.dumps(suite.question.to_json())))
    request = CellBuilder(tokenizer or WordTokenizer(), {}, {}, 1 << 20).request(question, cell)
    length, depth, name = (cell.place.get(axis) for axis in TheNeedle.axes)
    at = {"context_length": length, "document_depth": depth, "needle_name": name, "seed": cell.place.seed}
    expected = TheNeedle.asked(question, cell.place)
    return request, Record.model_validate({**expected.fields(), **request.facts.fields(), **at})


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_and_scripts(folder: Path, language: str) -> None:
    needle, question, right, wrong = LANGUAGES[language]
    suite = suite_of(folder, "facts.jsonl", [{"needle": needle, "question": question, "answer": right}])
    tokenizer = ByteTokenizer()
    request, _ = built(suite, tokenizer)
    start, end = request.facts.needle_span
    assert tokenizer.decode(request.ids[start:end]) == needle
    start, end = request.facts.question_span
    assert tokenizer.decode(request.ids[start:end]) == question
    assert len(request.ids) == 600
    asked = TheNeedle.asked(suite.question, suite.cells[0].place)
    assert TheNeedle.judge(right, asked, suite.question.scoring).passed
    assert TheNeedle.judge(needle, asked, suite.question.scoring).passed
    assert not TheNeedle.judge(wrong, asked, suite.question.scoring).passed


_TEXT = st.text("abc .\n,éжあ", min_size=1, max_size=40).filter(str.strip)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([WordTokenizer, ByteTokenizer]),
    st.lists(_TEXT, max_size=3),
    st.sampled_from([0, 33.3, 100]),
    st.integers(0, 3),
    st.sampled_from(["sentence", "token", "line"]),
)
def test_spans_hold_their_texts_lengths_are_exact_and_recipes_rebuild(
    tmp_path_factory: pytest.TempPathFactory,
    kind: type[WordTokenizer],
    distractors: list[str],
    depth: float,
    seed: int,
    boundary: str,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    needle = {"needle": "The ferry leaves at dawn.", "question": "When?", "distractors": distractors, "haystack": TALE}
    suite = suite_of(folder, "facts.jsonl", [needle], haystack=None, boundary=boundary)
    tokenizer, place = kind(), (("length", 600), ("depth", depth), ("needle", "row_1"))
    request, record = built(suite, tokenizer, axes=place, seed=seed)
    assert len(request.ids) == 600
    stood = [(each.text, each.span) for each in record.insertions or ()]
    for text, span in [(needle["needle"], record.needle_span), *stood]:
        assert span is not None
        assert tokenizer.decode(request.ids[span[0] : span[1]]).strip() == str(text).strip()
    again = CellBuilder(tokenizer, {}, {}, 1 << 20).stored(record)
    assert again.ids == request.ids
    assert again.rows([1, 2]) == request.rows([1, 2])


def test_distractors_keep_away_from_the_needle(folder: Path) -> None:
    rows = [{"needle": "The code is 7412.", "question": "Code?", "distractors": ["It is 9.", "It is 8."]}]
    task = {"name": "needle", "apart": 30}
    suite = suite_of(folder, "facts.jsonl", rows, task=task, boundary="token")
    _, record = built(suite)
    assert record.insertions is not None
    assert [each.role for each in record.insertions] == ["asked", "distractor", "distractor"]
    assert all(abs(each.depth - 40) >= 30 for each in record.insertions[1:])
    other = built(suite, seed=1)[1].insertions
    assert other is not None
    assert [each.depth for each in other] != [each.depth for each in record.insertions]


def test_a_distractor_that_passes_as_the_answer_is_doubtful(folder: Path) -> None:
    row = {"needle": "The code of the gate is 7412.", "question": "Which code opens it?", "answer": "7412 of the gate"}
    said = ["The code of the door is 9.", "Someone wrote 7412 on the gate."]
    suite = suite_of(folder, "f.jsonl", [{**row, "distractors": said}])
    (check,) = [check for check in check_answers(suite) if check.name == "distractor"]
    assert check.is_doubtful
    assert check.text == f"row_1: a distractor of its own says what passes (key_words): {said[1]!r}"


def test_a_changed_file_is_another_question(folder: Path) -> None:
    row = {"needle": "The code is 7412.", "question": "Which code?"}
    before, after = (
        built(suite_of(folder, "facts.jsonl", rows)) for rows in ([row], [row, {**row, "needle": "The code is 8."}])
    )
    assert before[0].ids == after[0].ids
    assert before[0].hash != after[0].hash
    assert question_identity(before[1]).key != question_identity(after[1]).key


def test_a_row_that_changed_cannot_be_rebuilt(folder: Path) -> None:
    row = {"needle": "The code is 7412.", "question": "Which code?", "haystack": TALE}
    _, record = built(suite_of(folder, "facts.jsonl", [row], haystack=None))
    suite_of(folder, "facts.jsonl", [{**row, "haystack": TALE.replace("boat", "ship")}], haystack=None)
    with pytest.raises(PromptError, match="its hash differs"):
        CellBuilder(WordTokenizer(), {}, {}, 1 << 20).stored(record)


@pytest.mark.parametrize(
    ("file", "rows", "keys", "sentence"),
    [
        ("f.jsonl", [{"needle": "a b"}], {}, "f.jsonl: has no column 'question'; it has needle"),
        ("f.csv", [["needle", "q"], ["a", "b"]], {}, "f.csv: has no column 'question'; it has needle, q"),
        (
            "f.jsonl",
            [{"needle": "a", "question": "b"}],
            {"columns": {"haystack": "text"}},
            "f.jsonl: has no column 'text'; it has needle, question",
        ),
        (
            "f.jsonl",
            [{"needle": "a", "question": "b"}, {"needle": "c"}],
            {},
            "f.jsonl:2: row 2, column 'question': there is none; the row has needle",
        ),
        (
            "f.csv",
            [["needle", "question"], ["a", "b"], ["c", " "]],
            {},
            "f.csv:3: row 2, column 'question': a text is expected, found none",
        ),
        (
            "f.jsonl",
            [{"needle": "a", "question": None}],
            {},
            "f.jsonl:1: row 1, column 'question': a text is expected, found null",
        ),
        (
            "f.jsonl",
            [{"needle": "a", "question": "b", "name": "x y"}, {"needle": "c", "question": "d", "name": "x_y"}],
            {},
            "f.jsonl:2: row 2, column 'name': 'x_y' is the name of row 1 too",
        ),
        ("f.jsonl", b'{"needle": "a"}\n{"needle": \n', {}, "f.jsonl:2: not a JSON object (Expecting value"),
        ("f.jsonl", b"[1]\n", {}, "f.jsonl:1: a JSON object is expected, found a list"),
        ("f.jsonl", b"\n", {}, "f.jsonl: holds no row"),
        ("f.csv", "needle,question\nä,ö\n".encode("cp1252"), {}, "f.csv:2: is not UTF-8 text (byte 16); save it"),
        ("f.csv", b"needle,question\na\n", {}, "f.csv:2: row 1: has 1 cells; the header has 2"),
        ("f.csv", b'needle,question\n"a,b\n', {}, "row 1: is no row of a table (unexpected end of data)"),
        ("f.csv", b"needle,needle\na,b\n", {}, "f.csv:1: two columns are called 'needle'"),
        ("f.parquet", b"PAR1", {}, "f.parquet: a table is expected as .jsonl, .csv, .tsv"),
        (
            "f.jsonl",
            [{"needle": "a", "question": "b", "answer_span": "c"}],
            {},
            "f.jsonl:1: row 1: answer_span 'c' does not stand in the needle",
        ),
        (
            "f.jsonl",
            [{"needle": "a", "question": "b", "distractors": ["c", " a\n"]}],
            {},
            "f.jsonl:1: row 1: distractors.1 is the needle itself, which would stand at other depths too",
        ),
    ],
)
def test_broken_files_are_named(folder: Path, file: str, rows: Any, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        suite_of(folder, file, rows, **keys)
    assert "suite.yaml:" in str(error.value)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"needles": {"file": "none.jsonl"}}, "none.jsonl: cannot be read (No such file or directory)"),
        ({"needles": {"fil": "x"}}, "needles.fil: unknown key; did you mean 'file'?"),
        ({"needles": {"file": "f.jsonl", "columns": {"neddle": "x"}}}, "unknown key; did you mean 'needle'?"),
        ({"needles": [{"neddle": "x", "question": "y"}]}, "unknown key; did you mean 'needle'?"),
        ({"needles": [{"needle": "x", "question": "y", "haystack": "no"}]}, "needles.0.haystack: no folder 'no'"),
        (
            {"needles": [{"needle": "x", "question": "y", "haystack": "pydoc"}]},
            "haystack: every needle has its own; leave it out",
        ),
    ],
)
def test_what_cannot_be_asked(folder: Path, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        suite_of(folder, "f.jsonl", [{"needle": "a", "question": "b"}], **keys)
    assert sentence in str(error.value)


def test_a_mean_over_no_haystack_is_refused(folder: Path) -> None:
    row = {"needle": "a b", "question": "c", "haystack": TALE}
    ablate = {"heads": [[0, 1]], "top": [1], "draws": 1, "mode": "mean"}
    with pytest.raises(ConfigError, match=r"ablate.mode: the mean is that over a suite's haystack"):
        suite_of(folder, "f.jsonl", [row], haystack=None, kind="ablate", ablate=ablate)


def test_the_resolved_suite_runs_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = suite_of(folder, "f.jsonl", [{"needle": "The code is 7412.", "question": "Which?"}])
    other = folder / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    (other / "config.yaml").write_text(yaml.safe_dump(suite.resolved()))
    assert [cell.id for cell in load_suite(other / "config.yaml").cells] == [cell.id for cell in suite.cells]


def test_code_is_a_haystack(tmp_path: Path) -> None:
    for name, text in (("a/one.py", "def one():\n    return 1\n"), ("two.py", "x = 2\n"), ("note.txt", "No code.\n")):
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_text(text)
    source, name = check_source("code/**/*.py", tmp_path)
    assert (name, read_text(source)) == ("code", "def one():\n    return 1\n\nx = 2\n\n")
    assert check_source(str(tmp_path / "code"), tmp_path)[0] == str(tmp_path / "code")
    with pytest.raises(ConfigError, match=r"no \*\*/\*.rs file in"):
        check_source("code/**/*.rs", tmp_path)


@given(st.text("ab .\n", min_size=1, max_size=60), st.floats(0, 100), st.integers(1, 100))
def test_a_line_boundary_is_behind_the_next_line_end(text: str, depth: float, tokens: int) -> None:
    tokenizer = ByteTokenizer()
    builder = CellBuilder(tokenizer, {}, {}, 1 << 20).prompts
    haystack = Haystack.of("tale", text, builder.tokenize)
    context = haystack.context(tokens, tokenizer.encode("#"), depth, boundary="line")
    repeated = (text * (1 + 2 * tokens // len(text)))[:tokens]
    target = round(tokens * depth / 100)
    found = repeated.find("\n", target)
    assert context.insertion == (found + 1 if found >= 0 else tokens)


def test_every_row_may_have_a_haystack_of_its_own(folder: Path) -> None:
    draw = random.Random(0)
    rows = [
        {"needle": "The code is 7412.", "question": "Which code?", "haystack": " ".join(draw.choices(words, k=400))}
        for words in (["sea", "ship"], ["wood", "tree"])
    ]
    suite = suite_of(folder, "f.jsonl", rows, haystack=None)
    tokenizer = WordTokenizer()
    texts = [tokenizer.decode(built(suite, tokenizer, number)[0].ids) for number in (0, 1)]
    assert ("ship" in texts[0], "tree" in texts[0]) == (True, False)
    assert ("ship" in texts[1], "tree" in texts[1]) == (False, True)
    assert suite.cells[0].place == Place((("length", 600), ("depth", 40.0), ("needle", "row_1")))
