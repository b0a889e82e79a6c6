"""The phonebook: what is asked of it, where the asked line stands, and what counts as an answer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.prompts.requests import Writer
from retrieval_heads.runs.facts import Expectation, PromptFacts
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.suites.suite import Suite, load_suite
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.phonebook import PHONEBOOK
from retrieval_heads.tasks.task import Cell, Question
from toy_tokenizer import ByteTokenizer, ToyTokenizer, WordTokenizer

EXACT = Scoring(metric="exact")


def written(folder: Path, **keys: Any) -> Path:
    data = {"kind": "niah", "task": {"name": "phonebook", "entries": [1, 4, 9]}, **keys}
    path = folder / "book.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def loaded(folder: Path, **keys: Any) -> Suite:
    return load_suite(written(folder, **keys))


def record_of(question: Question, cell: Cell, facts: PromptFacts) -> Record:
    asked = PHONEBOOK.asked(question, cell.place)
    axes = dict(cell.place.axes)
    return Record.model_validate(
        {**asked.fields(), **facts.fields(), "task": "phonebook", "axes": axes, "seed": cell.place.seed}
    )


def test_every_entry_is_asked_where_the_sweep_has_no_depths(tmp_path: Path) -> None:
    suite = loaded(tmp_path, task={"name": "phonebook", "entries": [1, 3]})
    assert [cell.name for cell in suite.cells] == [
        "entries_1-depth_0",
        "entries_3-depth_0",
        "entries_3-depth_50",
        "entries_3-depth_100",
    ]


def test_depths_that_meet_at_one_entry_ask_once_and_halves_go_to_the_later(tmp_path: Path) -> None:
    suite = loaded(
        tmp_path,
        task={"name": "phonebook", "entries": [2, 3]},
        sweep={"document_depths": [0, 25, 50, 75, 100]},
    )
    # Of 2 entries, 50 % is the second; of 3, 25 % the second and 75 % the third.
    assert [cell.place.grid for cell in suite.cells] == [(2, 0), (2, 50), (3, 0), (3, 25), (3, 75)]


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("612-345-6789", True),
        ("(612) 345 6789.", True),
        ("Ada Bloom: 612-345-6789", True),
        ("612-345-678", False),
        ("612-345-6789 or 612-345-6780", False),
        ("1. 612-345-6789", False),
        ("", False),
        ("I do not know.", False),
    ],
)
def test_the_answers_digits_are_those_of_the_number(answer: str, is_right: bool) -> None:
    found = PHONEBOOK.judge(answer, Expectation("", "612-345-6789"), EXACT)
    assert found.passed is is_right
    assert found.scores == {"exact": float(is_right)}
    assert (found.reason == "") is is_right


def test_a_book_is_its_seeds_and_begins_as_a_longer_one(tmp_path: Path) -> None:
    def lines(**task: Any) -> list[str]:
        suite = loaded(tmp_path, task={"name": "phonebook", **task}, sweep={"seeds": [7], "document_depths": [0]})
        text = Writer(WordTokenizer(), {}, 10_000, takes_text=True)
        request = PHONEBOOK.request(suite.question, suite.cells[0].place, text)
        assert request.text is not None
        return request.text.messages[0]["content"].splitlines()[:-2]

    short, long = lines(entries=[5]), lines(entries=[50])
    assert short == long[:5]
    assert len(set(long)) == 50
    drawn = lines(entries=[5], randomize=True)
    assert set(drawn) < set(lines(entries=[1000]))
    assert drawn == lines(entries=[5], randomize=True)
    assert drawn != short


@given(data=st.data())
def test_the_span_holds_the_asked_line_and_the_recipe_rebuilds_the_prompt(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    task = {
        "name": "phonebook",
        "entries": [data.draw(st.integers(1, 40))],
        "size": data.draw(st.integers(40, 60)),
        "randomize": data.draw(st.booleans()),
        "question": data.draw(st.sampled_from(["Which number has {name}?", "{name}?"])),
    }
    sweep = {"document_depths": [data.draw(st.integers(0, 100))], "seeds": [data.draw(st.integers(0, 99))]}
    suite = loaded(tmp_path_factory.mktemp("suite"), task=task, sweep=sweep)
    tokenizer: ToyTokenizer = data.draw(st.sampled_from([WordTokenizer, ByteTokenizer]))()
    (cell,) = suite.cells
    builder = CellBuilder(tokenizer, {}, {}, 1 << 20)
    request = builder.request(suite.question, cell)
    asked = PHONEBOOK.asked(suite.question, cell.place)
    start, end = request.facts.needle_span
    name = asked.question.removeprefix("Which number has ").removesuffix("?")
    assert tokenizer.decode(request.ids[start:end]).strip() == f"{name}: {asked.reference}"
    start, end = request.facts.question_span
    assert tokenizer.decode(request.ids[start:end]).strip() == asked.question
    again = builder.stored(record_of(suite.question, cell, request.facts))
    assert again.ids == request.ids
    assert again.facts.needle_span == request.facts.needle_span
    assert again.facts.recipe.prompt_hash == request.facts.recipe.prompt_hash


def test_another_book_or_wording_is_no_rebuilding(tmp_path: Path) -> None:
    suite = loaded(tmp_path, task={"name": "phonebook", "entries": [4]}, sweep={"document_depths": [50]})
    builder = CellBuilder(WordTokenizer(), {}, {}, 1 << 20)
    record = record_of(suite.question, suite.cells[0], builder.request(suite.question, suite.cells[0]).facts)
    with pytest.raises(PromptError, match="the phonebook is not the one"):
        builder.stored(record.model_copy(update={"seed": 1}))
    with pytest.raises(PromptError, match="tokenizer, wording or chat template"):
        CellBuilder(ByteTokenizer(), {}, {}, 1 << 20).stored(record)


def test_the_packages_names_give_the_predecessors_book(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its definition: the process's generator, a sex, a first and a last name by share; numbers after all names."""
    package = tmp_path / "names"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shares = {"dist.male.first": "AL 40 40 1\nBO 60 95 2\n", "dist.female.first": "CY 50 50 1\nDI 45 95 2\n"}
    shares["dist.all.last"] = "".join(f"L{n} 1 {n} {n}\n" for n in range(1, 96))
    for file, text in shares.items():
        (package / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    from retrieval_heads.tasks import phonebook

    phonebook._census.cache_clear()
    try:
        book = phonebook._whole_book(20, 42, "package")
    finally:
        phonebook._census.cache_clear()
    draw = random.Random(42)

    def pick(file: str) -> str:
        at = draw.random() * 90
        rows = [line.split() for line in shares[file].splitlines()]
        return next(row[0].capitalize() for row in rows if float(row[2]) > at)

    people: list[str] = []
    while len(people) < 20:
        sex = draw.choice(("male", "female"))
        first = pick(f"dist.{sex}.first")
        full = f"{first} {pick('dist.all.last')}"
        if full not in people:
            people.append(full)
    assert [name for name, _ in book] == people
    assert book[0][1] == f"{draw.randint(600, 999)}-{draw.randint(0, 999):03d}-{draw.randint(0, 9999):04d}"


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"task": {"name": "phonebook"}}, r"book.yaml:\d+: task.entries: this key is missing"),
        ({"task": {"name": "phonebook", "entries": []}}, "task.entries: expected counts of entries, 1 or more"),
        ({"task": {"name": "phonebook", "entries": [0]}}, "task.entries: expected counts of entries, 1 or more"),
        ({"task": {"name": "phonebook", "entries": [2, 2]}}, "task.entries: a count of entries is given twice"),
        ({"task": {"name": "phonebook", "entries": [9], "size": 8}}, "9 entries are asked of a book of 8"),
        ({"task": {"name": "phonebook", "entries": [9], "size": 5000}}, "there are names for 3,000 entries"),
        ({"task": {"name": "phonebook", "entries": [9], "question": "Who?"}}, r"expected a text with \{name\} in it"),
        ({"scoring": {"metric": "key_words"}}, "scoring.metric: the score of a phonebook is exact, not key_words"),
        ({"haystack": "pydoc"}, "haystack: the task phonebook has none; leave it out"),
        ({"sweep": {"context_lengths": [8]}}, "sweep.context_lengths: the task has no axis length"),
        ({"task": {"name": "phonebook", "entries": {"min": 1, "max": 900}}}, "more than the 100,000 cells"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as found:
        loaded(tmp_path, **keys)
    assert len(str(found.value).splitlines()) == 1


def test_names_of_a_package_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"task.names: the PyPI package `names` is needed \(pip install names\)"):
        loaded(tmp_path, task={"name": "phonebook", "entries": [3], "names": "package"})
