"""Reading RULER's wordings out of another package's files: what is told where they cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval_heads.errors import ConfigError
from retrieval_heads.tasks.ruler import harness
from retrieval_heads.tasks.ruler.parts import NAMES, OF_FILES, part_of, wording_of
from retrieval_heads.tasks.ruler.wording import OWN_NIAH, fill

READERS = (harness.read_niah, harness.read_vt, harness.read_cwe, harness.read_fwe, harness.read_qa)
FILES = {
    "niah_utils": 'TEMPLATE = """Some {type_needle_v} are.\\n{context}\\nWhat are all {type_needle_v} of {query}?"""',
    "prepare_niah": """
raise AssertionError("its code is not run")
NEEDLE = "A {type_needle_v} of {key} is {value}."
def get_haystack(kind):
    haystack = load(kind)
    haystack = "Noise."
def generate_samples():
    out = {"gen_prefix": (f"The {type_needle_v[:-1]} of {query} is" if one else f"The {type_needle_v} of {query} are")}
""",
    "vt_utils": """
CONFIG = {"variable_tracking": {"template": "Track.\\n{context}\\nWho is {query}?", "answer_prefix": " {num_v} are"}}
def generate_chains():
    chain = [f"SET {names[0]} = {value}"]
    for j in range(3):
        chain.append(f"SET {names[j + 1]} = SET {names[j]} ")
def generate_input_output():
    noise = "Noise.\\n"
""",
    "cwe_utils": 'CONFIG = {"template": "List.\\n{context}\\nWhich?", "answer_prefix": " These:"}',
    "qa_utils": """
CONFIG = {"template": "Read.\\n{context}\\nAnswer: {query}", "answer_prefix": "Said:"}
DOCUMENT_PROMPT = "{i}. {document}"
""",
    "fwe_utils": 'CONFIG = {"template": "Text {context}\\nWhich?", "answer_prefix": " These:"}',
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with files of that shape and texts of our own."""
    folder = tmp_path / harness.PACKAGE / "tasks" / "ruler"
    folder.mkdir(parents=True)
    (tmp_path / harness.PACKAGE / "__init__.py").write_text("raise AssertionError('its code is not run')")
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, harness.PACKAGE, raising=False)
    for read in READERS:
        read.cache_clear()
    yield folder
    for read in READERS:
        read.cache_clear()


def test_texts_are_read_and_no_code_is_run(package: Path) -> None:
    niah = harness.read_niah()
    assert niah.one.message == "A {type} is.\n{context}\n{question}"
    assert niah.one.question == "What is {type} of {query}?"
    assert niah.several.question == "What are all {types} of {query}?"
    assert (niah.one.prefill, niah.several.prefill) == ("The {type} of {query} is", "The {types} of {query} are")
    assert (niah.needle, niah.noise) == ("A {types} of {key} is {value}.", "Noise.")
    vt = harness.read_vt()
    assert (vt.first, vt.hop, vt.noise) == ("SET {name} = {value}", "SET {name} = SET {of} ", "Noise.")
    assert harness.read_cwe().phrases.prefill == " These:"
    qa = harness.read_qa()
    assert (qa.phrases.message, qa.phrases.question) == ("Read.\n{context}\nAnswer: {question}", "{query}")
    assert qa.document == "{i}. {document}"
    assert part_of("niah_single_2", "ruler").asked(0, 1024).message == "A number is.\n{context}\n{question}"


@pytest.mark.parametrize(
    ("file", "old", "new", "missing"),
    [
        ("niah_utils", "TEMPLATE =", "FORM =", "no TEMPLATE"),
        ("niah_utils", "{context}", "", "no {context} with a question behind it"),
        ("prepare_niah", "gen_prefix", "prefix", "no gen_prefix"),
        ("prepare_niah", "def get_haystack", "def haystack_of", "no function get_haystack"),
        ("prepare_niah", "{query} is", "{queries} is", ""),
        ("vt_utils", "variable_tracking", "tracking", ""),
        ("vt_utils", "SET {names[0]} = {value}", "SET x = {value}", "no second assignment"),
        ("cwe_utils", "}", ")", ""),
        ("fwe_utils", "CONFIG =", "CONFIG = load() or", ""),
    ],
)
def test_another_shape_of_file_is_told(package: Path, file: str, old: str, new: str, missing: str) -> None:
    path = package / f"{file}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    name = {"niah_utils": "niah_single_1", "prepare_niah": "niah_single_1"}.get(file, file.partition("_")[0])
    with pytest.raises(ConfigError) as told:
        wording_of(name, "ruler")
    sentence = str(told.value)
    assert sentence.startswith("task.wording: RULER's texts are not found in ")
    assert f"{file}.py" in sentence
    assert missing in sentence
    assert sentence.endswith(f"they are read from lm-eval {harness.CHECKED}")


def test_a_missing_file_is_told(package: Path) -> None:
    (package / "vt_utils.py").unlink()
    with pytest.raises(ConfigError, match=r"not found in vt_utils\.py"):
        wording_of("vt", "ruler")


def test_without_the_package_the_extra_is_told(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PACKAGE", "lm_eval_that_is_not_there")
    for name in NAMES:
        with pytest.raises(ConfigError, match=r"not installed; try: pip install 'pytest-retrieval-heads\[lm-eval\]'"):
            wording_of(name, "ruler")
        assert name in OF_FILES or part_of(name).asked(0, 1024).question, "our own need no package"


def test_a_recipes_texts_are_those_of_its_task(package: Path) -> None:
    held = harness.read_vt().model_dump(mode="json")
    assert wording_of("vt", held) == harness.read_vt()
    with pytest.raises(ConfigError, match=r"^task\.wording\.one: Field required; niah_single_2 takes ruler, or what"):
        wording_of("niah_single_2", held)


def test_marks_without_a_meaning_stay() -> None:
    assert fill("{a} {b} {a.b} {{a}}", a=1) == "1 {b} {a.b} {1}"
    assert fill(OWN_NIAH.needle, type="number", key="k", value="{key}").endswith("{key}.")
