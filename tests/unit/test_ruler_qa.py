"""RULER's qa_1 and qa_2 over small files of SQuAD's and HotpotQA's shape, written here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lm_eval_files
from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.prompts.requests import Request
from retrieval_heads.prompts.settings import PROMPTS
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.ruler.parts import part_of
from retrieval_heads.tasks.ruler.qa import OverDocuments, read_hotpotqa, read_squad
from retrieval_heads.tasks.ruler.task import RULER, RulerOptions
from retrieval_heads.tasks.task import Cell, Question
from toy_tokenizer import ByteTokenizer, WordTokenizer

pytest.importorskip("wonderwords", reason="the extra ruler is not installed")

FIELDS = {"qa_1": "squad", "qa_2": "hotpotqa"}
SCORING = Scoring(metric="string_match", threshold=0.99)


def squad() -> dict[str, Any]:
    """Four articles of three paragraphs, two questions each, one of them without an answer."""
    return {
        "data": [
            {
                "title": f"Town {town}",
                "paragraphs": [
                    {
                        "context": f"Town {town} has a bridge {part}. It was built by mason {town}{part} of stone.",
                        "qas": [
                            {
                                "question": f"Who built bridge {part} of town {town}?",
                                "answers": [{"text": f"mason {town}{part}"}, {"text": f"{town}{part}"}] * 2,
                                "is_impossible": False,
                            },
                            {"question": "Who burnt it?", "answers": [], "is_impossible": True},
                        ],
                    }
                    for part in range(3)
                ],
            }
            for town in range(4)
        ]
    }


def hotpotqa() -> list[dict[str, Any]]:
    """Six questions over two paragraphs of their own and one that all share."""
    return [
        {
            "question": f"Was river {number} or lake {number} named first?",
            "answer": f"lake {number}",
            "context": [
                [f"River {number}", [f"River {number} was named late.", " It is long."]],
                [f"Lake {number}", [f"Lake {number} was named early."]],
                ["Sea", ["All of them end in the sea."]],
            ],
        }
        for number in range(6)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    for name, made in (("qa_1", squad()), ("qa_2", hotpotqa())):
        (folder / f"{name}.json").write_text(json.dumps(made))
    return {name: str(folder / f"{name}.json") for name in FIELDS}


def question(files: dict[str, str], name: str, **options: Any) -> Question:
    said = {"tasks": [name], FIELDS[name]: files[name], **options}
    kept = RulerOptions.model_validate(said).model_dump(mode="json")
    return Question(
        "ruler", "niah", task="ruler", options=kept, source="pydoc", prompt=PROMPTS["book"], scoring=SCORING
    )


def asked(files: dict[str, str], name: str, length: int, seed: int, **options: Any) -> Request:
    at = Place((("length", length), ("task", name)), seed)
    builder = CellBuilder(ByteTokenizer(adds_bos=True), {}, {}, 1 << 20)
    return builder.request(question(files, name, **options), Cell("a", "a", at))


def documents_of(text: str) -> list[str]:
    return re.findall(r"^Document \d+:?\n(.*?)(?=\n\n)", text, re.MULTILINE | re.DOTALL)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(FIELDS)), st.integers(700, 2500), st.integers(0, 5))
def test_its_own_documents_are_there_and_as_many_as_fit(
    files: dict[str, str], name: str, length: int, seed: int
) -> None:
    request = asked(files, name, length, seed)
    tokenizer, facts = ByteTokenizer(adds_bos=True), request.facts
    text = tokenizer.decode(request.ids)
    entry = (read_squad if name == "qa_1" else read_hotpotqa)(files[name])
    found = documents_of(text)
    assert {entry.texts[gold] for gold in entry.entries[seed].gold} <= set(found)
    assert length - 140 < len(request.ids) + 32 <= length, "one document more does not fit"
    at = Place((("length", length), ("task", name)), seed)
    expected = RULER.asked(question(files, name), at)
    assert expected.question in tokenizer.decode(request.ids[slice(*facts.question_span)])
    assert facts.recipe.options is not None
    assert (facts.recipe.haystack, facts.recipe.options["squad"]) == (files[name], None)
    fields = {"task": "ruler", "axes": dict(at.axes), "seed": seed, "suite": "ruler"}
    record = Record.model_validate({**fields, **expected.fields(), **facts.fields()})
    again = CellBuilder(ByteTokenizer(adds_bos=True), {}, {}, 1 << 20).stored(Record.model_validate(record.to_json()))
    assert again.ids == request.ids


def test_what_is_near_comes_first_and_a_small_file_is_repeated(files: dict[str, str]) -> None:
    part = part_of("qa_1", None, files["qa_1"])
    for seed in range(12):
        three = documents_of(part.filled(seed, 0, 3).text + "\n\n")
        assert {text.split(" has")[0] for text in three} == {f"Town {seed // 3}"}, "the article's own"
        assert len(set(documents_of(part.filled(seed, 0, 12).text + "\n\n"))) == 12
        assert len(documents_of(part.filled(seed, 0, 30).text + "\n\n")) == 30
    assert part.filled(1, 0, 3) != part.filled(2, 0, 3)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_right_answers_score_1_and_wrong_ones_0(files: dict[str, str], name: str) -> None:
    expected = RULER.asked(question(files, name), Place((("length", 900), ("task", name)), 4))
    right = ["It was mason 11, of course", "11"] if name == "qa_1" else ["LAKE 4 was."]
    for answer in right:
        found = RULER.judge(answer, expected, SCORING)
        assert (found.passed, found.scores["string_match"], found.scores["string_match_part"]) == (True, 1, 1)
    wrong = RULER.judge("mason 12, or river 4", expected, SCORING)
    assert (wrong.passed, wrong.scores["string_match"]) == (False, 0)
    assert "the answer says none of" in wrong.reason


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [
        (
            "qa_1",
            lambda file: file["data"][0]["paragraphs"][1]["qas"][0].pop("answers"),
            r"data\.0\.paragraphs\.1\.qas\.0\.answers: Field required; a file of SQuAD's shape",
        ),
        ("qa_1", lambda file: file.pop("data"), r"data: Field required"),
        ("qa_1", lambda file: file["data"].clear(), "holds no question that has an answer"),
        (
            "qa_1",
            lambda file: file["data"][0]["paragraphs"][0]["qas"][0].update(answers=[]),
            r"question 0 .* has not an answer",
        ),
        (
            "qa_1",
            lambda file: file["data"][0]["paragraphs"][0]["qas"][0].update(question=" "),
            "question 0 is empty",
        ),
        ("qa_2", lambda file: file[3].pop("context"), r"3\.context: Field required; a file of HotpotQA's shape"),
        ("qa_2", lambda file: file[0]["context"].clear(), r"question 0 .* has not a document"),
        ("qa_2", lambda file: file.clear(), "holds no question that has an answer"),
    ],
)
def test_a_file_without_a_field_is_named(tmp_path: Path, name: str, spoil: Any, sentence: str) -> None:
    made: Any = squad() if name == "qa_1" else hotpotqa()
    spoil(made)
    (tmp_path / "spoilt.json").write_text(json.dumps(made))
    with pytest.raises(ConfigError, match=sentence):
        list(RULER.places(question({name: str(tmp_path / "spoilt.json")}, name)))


@pytest.mark.parametrize("name", FIELDS)
def test_a_file_that_changes_is_read_again(tmp_path: Path, name: str) -> None:
    path, made = tmp_path / "file.json", (squad() if name == "qa_1" else hotpotqa())
    path.write_text(json.dumps(made))
    place = Place((("length", 900), ("task", name)), 0)
    before = RULER.asked(question({name: str(path)}, name), place)
    path.write_text(json.dumps(made).replace("town", "village").replace("lake", "pond"))
    after = RULER.asked(question({name: str(path)}, name), place)
    assert after.question != before.question


@pytest.mark.parametrize(
    ("wording", "sentence"),
    [
        ({"message": "{question}"}, r"task\.wording\.phrases\.message: holds \{context\} 0 times; once is accepted"),
        ({"document": "Document {i}"}, r"task\.wording\.document: holds no \{document\}"),
    ],
)
def test_a_wording_without_its_marks_is_named(files: dict[str, str], wording: dict[str, str], sentence: str) -> None:
    said = {"message": "{context}\n{question}", "question": "{query}", "prefill": "So:", **wording}
    document = said.pop("document", "{document}")
    with pytest.raises(ConfigError, match=sentence):
        list(RULER.places(question(files, "qa_1", wording={"phrases": said, "document": document})))


def test_bad_input_is_named(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^task\.squad: qa_1 asks of a file of yours; none is given"):
        list(RULER.places(question(files, "qa_1", squad=None)))
    with pytest.raises(ConfigError, match="cannot be read"):
        list(RULER.places(question({"qa_1": str(tmp_path / "none.json")}, "qa_1")))
    other = Question(**{**vars(question(files, "qa_1")), "scoring": Scoring(metric="substring")})
    with pytest.raises(ConfigError, match=r"^scoring\.metric: qa_1 has no substring; it has string_match, "):
        list(RULER.places(other))
    with pytest.raises(
        ConfigError, match=r"seed 6 asks for a question that .* has not: its 6 are those of the seeds 0 to 5"
    ):
        asked(files, "qa_2", 900, 6)
    with pytest.raises(PromptError, match="is too short for qa_2: 3 documents, question and answer take"):
        asked(files, "qa_2", 250, 0)


def test_tasks_of_files_are_asked_where_their_file_is_given(files: dict[str, str]) -> None:
    assert len(RulerOptions().tasks) == 11
    assert RulerOptions(squad=files["qa_1"]).tasks[-1] == "qa_1"
    assert len(RulerOptions(squad=files["qa_1"], hotpotqa=files["qa_2"]).tasks) == 13


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_prompt_is_lm_evals_for_the_same_documents(files: dict[str, str], name: str) -> None:
    """lm-eval's generator, its draws given; RULER's own (NVIDIA) writes the same."""
    made = lm_eval_files.module("qa_utils")
    made["download_json"] = lambda path: json.loads(Path(path).read_text())
    qas, texts = made["read_squad" if name == "qa_1" else "read_hotpotqa"](files[name])
    part = part_of(name, "ruler", files[name])
    assert isinstance(part, OverDocuments)
    assert [entry.query for entry in part.documents.entries] == [each["query"] for each in qas]
    assert [list(entry.gold) for entry in part.documents.entries] == [each["context"] for each in qas]
    assert [list(entry.near) for entry in part.documents.entries] == [each.get("more_context", []) for each in qas]
    assert list(part.documents.texts) == texts
    tokenizer = WordTokenizer()
    at = Place((("length", 250), ("task", name)), 2)
    asks = question(files, name, wording="ruler")
    request = CellBuilder(tokenizer, {}, {}, 1 << 20).request(asks, Cell("a", "a", at))
    text, _, prefill = tokenizer.decode(request.ids).removeprefix("<|user|>").partition("<|end|>\n<|assistant|>")
    numbers = [texts.index(each) for each in documents_of(text)]
    gold, more = qas[2]["context"], qas[2].get("more_context", [])
    taken = [number for number in numbers if number not in gold]
    fits = len(numbers) - len(gold) <= len(more)
    drawn = taken if fits else [number for number in taken if number not in more]
    made["random"] = type("Drawn", (), {"sample": staticmethod(lambda of, count: drawn), "Random": _InOrder})
    _InOrder.order = [*gold, *(drawn if fits else [*more, *drawn])], numbers
    ours, answers = made["generate_input_output"](2, len(numbers), qas, texts)
    assert ours == text
    assert prefill == made["CONFIG"]["answer_prefix"]
    assert tuple(dict.fromkeys(answers)) == RULER.asked(question(files, name), at).references


class _InOrder:
    """In place of `random.Random(42)`: shuffles documents into the order of a prompt of ours."""

    order: Any = ()

    def __init__(self, _: int) -> None:
        pass

    def shuffle(self, texts: list[str]) -> None:
        before, after = self.order
        assert len(before) == len(texts)
        by_number = dict(zip(before, list(texts), strict=True))
        texts[:] = [by_number[number] for number in after]
