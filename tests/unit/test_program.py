"""Programs: what they come to is what Python says, and nothing else is an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.settings import Scoring
from retrieval_heads.suites.suite import Suite, load_suite
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.interpreter import value_of
from retrieval_heads.tasks.program import PROGRAM, _names
from toy_tokenizer import ByteTokenizer, ToyTokenizer, WordTokenizer

EXACT = Scoring(metric="exact")
KINDS = ("recall", "state_tracking", "state_based_recall")
ASK = "Value of {target}?"

PYTHON = """\
import json, sys
for program, target in json.load(sys.stdin):
    names = {}
    try:
        exec(program, names)
        said = eval(target, names)
    except ZeroDivisionError as error:
        said = f"a program raises ZeroDivisionError: {error}"
    print(json.dumps(said))
"""


def as_we_say(program: str, target: str) -> Any:
    try:
        return value_of(program, target)
    except PromptError as error:
        return str(error)


def as_python_says(asked: list[tuple[str, str]]) -> list[Any]:
    """What each expression comes to behind its program, in a Python of its own."""
    said = subprocess.run(
        [sys.executable, "-c", PYTHON], input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in said.stdout.splitlines()]


def loaded(folder: Path, **keys: Any) -> Suite:
    data = {"kind": "niah", "task": {"name": "program", "variables": [2, 4], "steps": [0, 3]}, **keys}
    path = folder / "code.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return load_suite(path)


def test_recall_has_no_steps_and_the_others_have_each(tmp_path: Path) -> None:
    suite = loaded(tmp_path)
    assert [cell.name for cell in suite.cells] == [
        "program_recall-variables_2-steps_0",
        "program_recall-variables_4-steps_0",
        *(
            f"program_{kind}-variables_{variables}-steps_{steps}"
            for kind in KINDS[1:]
            for variables in (2, 4)
            for steps in (0, 3)
        ),
    ]


def test_every_value_is_what_python_says(tmp_path: Path) -> None:
    task = {"name": "program", "variables": [2, 5, 40], "steps": [0, 1, 30], "question": ASK}
    suite = loaded(tmp_path, task=task, sweep={"seeds": list(range(12))})
    asked = [PROGRAM.asked(suite.question, cell.place) for cell in suite.cells]
    programs = [each.question.rpartition("\nValue of ") for each in asked]
    said = as_python_says([(program, target.removesuffix("?")) for program, _, target in programs])
    assert [each.reference for each in asked] == [str(value) for value in said]
    assert len({each.reference for each in asked}) > 10


WHOLE = st.integers(-9, 9).map(str)
NAME = st.sampled_from("abc")
SUM = st.recursive(
    WHOLE | NAME,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner)
        | st.builds("(-{})".format, inner)
        | st.builds("xs[{} % 3]".format, inner)
    ),
    max_leaves=6,
)
LINE = (
    st.builds("{} = {}".format, NAME, SUM)
    | st.builds("{}, {} = {}, {}".format, NAME, NAME, SUM, SUM)
    | st.builds("xs[{} % 3] = {}".format, SUM, SUM)
    | st.just("a, b, c = c, a, b")
    | st.just("a = b = c")
    | st.just("a, (b, c) = range(1), [4, 5]\na = 7")
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.lists(LINE, max_size=8), SUM), min_size=20, max_size=20))
def test_the_interpreter_agrees_with_python(programs: list[tuple[list[str], str]]) -> None:
    asked = [("\n".join(["a, b, c = range(3)", "xs = [5, 6, 7]", *lines]), target) for lines, target in programs]
    assert [as_we_say(program, target) for program, target in asked] == as_python_says(asked)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("import os", "line 1 of a program holds what is not known here: Import"),
        ("a = 1\nb = open('x')", "line 2 of a program holds what is not known here: Call"),
        ("a = 2 ** 9", "what is not known here: BinOp"),
        ("a = True", "what is not known here: Constant"),
        ("a = (", "line 1 of a program is no Python"),
        ("a = b", "a program raises KeyError"),
        ("a, b = 1, 2, 3", "a program raises ValueError"),
        ("a = [1][4]", "a program raises IndexError"),
        ("a = 1 // 0", "a program raises ZeroDivisionError"),
        ("a = [1] + 2", "a program raises TypeError"),
        ("a.b = 1", "what is not known here: Attribute"),
    ],
)
def test_what_the_interpreter_does_not_know_is_refused(program: str, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        value_of(program, "1")


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("7", True),
        (" 7\n", True),
        ("07", True),
        ("8", False),
        ("7.", False),
        ("seven", False),
        ("77", False),
        ("", False),
    ],
)
def test_the_whole_answer_is_the_value(answer: str, is_right: bool) -> None:
    found = PROGRAM.judge(answer, Expectation("", "7"), EXACT)
    assert (found.passed, found.scores) == (is_right, {"exact": float(is_right)})
    assert (found.reason == "") is is_right


def test_names_of_variables_leave_out_what_python_keeps() -> None:
    names = _names(5000)
    assert names[:3] == ["a", "b", "c"]
    assert names[26:28] == ["aa", "ab"]
    assert not {"as", "if", "in", "is", "or", "and", "def", "del", "for", "not", "try", "int", "str"} & set(names)
    assert len(set(names)) == 5000


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_prompt_holds_the_program_and_the_recipe_rebuilds_it(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    task = {
        "name": "program",
        "kinds": [data.draw(st.sampled_from(KINDS))],
        "variables": [data.draw(st.integers(2, 40))],
        "steps": [data.draw(st.integers(0, 20))],
        "question": data.draw(st.sampled_from([ASK, "{target}"])),
    }
    seeds = {"seeds": [data.draw(st.integers(0, 99))]}
    suite = loaded(tmp_path_factory.mktemp("suite"), task=task, sweep=seeds)
    tokenizer: ToyTokenizer = data.draw(st.sampled_from([WordTokenizer, ByteTokenizer]))()
    (cell,) = suite.cells
    builder = CellBuilder(tokenizer, {}, {}, 1 << 20)
    request, asked = builder.request(suite.question, cell), PROGRAM.asked(suite.question, cell.place)
    assert asked.question in tokenizer.decode(request.ids)
    start, end = request.facts.question_span
    assert asked.question.endswith(f"\n{tokenizer.decode(request.ids[start:end]).strip()}")
    assert request.facts.needle_span is None
    fields = {
        **asked.fields(),
        **request.facts.fields(),
        "task": "program",
        "axes": dict(cell.place.axes),
        "seed": cell.place.seed,
    }
    record = Record.model_validate(fields)
    assert builder.stored(record).ids == request.ids


def test_another_program_or_tokenizer_is_no_rebuilding(tmp_path: Path) -> None:
    suite = loaded(tmp_path, task={"name": "program", "kinds": ["state_tracking"], "variables": [9], "steps": [9]})
    (cell,) = suite.cells
    facts = CellBuilder(WordTokenizer(), {}, {}, 1 << 20).request(suite.question, cell).facts
    asked = PROGRAM.asked(suite.question, cell.place)
    record = Record.model_validate(
        {**asked.fields(), **facts.fields(), "task": "program", "axes": dict(cell.place.axes)}
    )
    with pytest.raises(PromptError, match="tokenizer, wording or chat template"):
        CellBuilder(ByteTokenizer(), {}, {}, 1 << 20).stored(record)
    with pytest.raises(PromptError, match="the program is not the one"):
        CellBuilder(WordTokenizer(), {}, {}, 1 << 20).stored(record.model_copy(update={"seed": 1}))


def test_a_program_that_another_seed_asks_is_left_out_with_a_warning(tmp_path: Path) -> None:
    task = {"name": "program", "kinds": ["recall"], "variables": [2, 64]}
    with pytest.warns(UserWarning, match=r"\d+ cells ask what another seed asks, and are left out"):
        suite = loaded(tmp_path, task=task, sweep={"seeds": list(range(40))})
    counts = [sum(cell.place.get("variables") == each for cell in suite.cells) for each in (2, 64)]
    assert counts == [8, 40]  # of two bits and an index there are eight
    asked = [PROGRAM.asked(suite.question, cell.place).question for cell in suite.cells]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"kind": "detect"}, "kind: detect takes a task whose prompts have spans"),
        ({"task": {"name": "program", "kinds": []}}, "task.kinds: "),
        ({"task": {"name": "program", "kinds": ["RECALL"]}}, "task.kinds.0: "),
        ({"task": {"name": "program", "variables": []}}, "task.variables: expected counts from 1 to 10,000"),
        ({"task": {"name": "program", "variables": [1]}}, "task.variables: a swap needs 2 variables"),
        ({"task": {"name": "program", "variables": [4, 4]}}, "task.variables: a value is given twice"),
        ({"task": {"name": "program", "steps": [-1]}}, "task.steps.0: "),
        ({"task": {"name": "program", "steps": [10**6]}}, "task.steps: expected counts from 0 to 100,000"),
        ({"task": {"name": "program", "question": "?"}}, r"task.question: expected a text with \{target\} in it"),
        ({"scoring": {"metric": "substring"}}, "scoring.metric: the score of a program is exact, not substring"),
        ({"sweep": {"document_depths": [0]}}, "sweep.document_depths: the task has no axis depth"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as found:
        loaded(tmp_path, **keys)
    assert len(str(found.value).splitlines()) == 1
