"""From a suite file to cells: expansion of sweeps, names, and the sentence for what cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.errors import ConfigError
from retrieval_heads.suites.settings import Range
from retrieval_heads.suites.suite import Suite, expand_depths, expand_lengths, load_suite
from retrieval_heads.tasks.task import TASKS, Question

FERRY = {"name": "ferry", "needle": "The ferry to Oslo leaves at dawn.", "question": "When does it leave?"}
BRIDGE = {"name": "bridge", "needle": "The bridge to Malmo opens at noon.", "question": "When does it open?"}
GRID = {"context_lengths": [512, 1024], "document_depths": [0, 50, 100]}

Load = Callable[..., Suite]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """A suite of one ferry needle over `GRID`; top-level keys are replaced, `None` leaves one out."""

    def load(config: dict[str, Any] | None = None, sets: dict[str, Any] | None = None, **keys: Any) -> Suite:
        data = {"kind": "niah", "haystack": "pydoc", "needles": [FERRY], "sweep": GRID} | keys
        file = tmp_path / "essays.yaml"
        file.write_text(
            yaml.safe_dump({key: value for key, value in data.items() if value is not None}, sort_keys=False)
        )
        return load_suite(file, config, sets)

    return load


def complaint(load: Load, tmp_path: Path, **keys: Any) -> str:
    """The sentence for a suite, its folder left out."""
    with pytest.raises(ConfigError) as raised:
        load(**keys)
    return str(raised.value).replace(f"{tmp_path}/", "")


RANGES = st.builds(
    lambda low, width, intervals: Range(min=low, max=low + width, intervals=intervals),
    st.integers(0, 50_000),
    st.integers(0, 50_000),
    st.integers(1, 200),
)
PERCENT = st.builds(
    lambda ends, intervals, spacing: Range(min=min(ends), max=max(ends), intervals=intervals, spacing=spacing),
    st.tuples(st.integers(0, 100), st.integers(0, 100)),
    st.integers(1, 120),
    st.sampled_from(["linear", "sigmoid"]),
)


@given(RANGES)
def test_a_range_has_both_ends_and_equal_gaps_to_the_nearest_token(span: Range) -> None:
    assert span.intervals is not None
    lengths, gap = expand_lengths(span), (span.max - span.min) / span.intervals
    assert (lengths[0], lengths[-1]) == (span.min, span.max)
    assert lengths == sorted(set(lengths))
    if gap >= 1:
        assert len(lengths) == span.intervals + 1
        assert all(abs(length - (span.min + step * gap)) <= 0.5 + 1e-6 for step, length in enumerate(lengths))
    else:
        assert lengths == list(range(span.min, span.max + 1))


@given(PERCENT)
def test_depths_are_sorted_each_once_between_0_and_100(span: Range) -> None:
    depths = expand_depths(span)
    assert depths == sorted(set(depths))
    assert all(0 <= depth <= 100 for depth in depths)
    assert {span.min, span.max} & {0, 100} <= set(depths)


@given(st.lists(st.integers(1, 10**6)))
def test_a_list_is_taken_as_it_is(lengths: list[int]) -> None:
    assert expand_lengths(lengths) is lengths


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ({"min": 1000, "max": 32000, "intervals": 31}, list(range(1000, 32001, 1000))),
        ({"min": 512, "max": 4096, "intervals": 1}, [512, 4096]),
        ({"min": 512, "max": 512, "intervals": 3}, [512]),
        ({"min": 7, "max": 10}, [7, 8, 9, 10]),
    ],
)
def test_lengths(span: dict[str, int], expected: list[int]) -> None:
    assert expand_lengths(Range.model_validate(span)) == expected


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ({"min": 0, "max": 100, "intervals": 10}, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        ({"min": 0, "max": 100, "intervals": 1}, [0, 100]),
        (
            {"min": 0, "max": 100, "intervals": 10, "spacing": "sigmoid"},
            [0, 1.8, 4.74, 11.92, 26.89, 50, 73.11, 88.08, 95.26, 98.2, 100],
        ),
    ],
)
def test_depths(span: dict[str, Any], expected: list[float]) -> None:
    assert expand_depths(Range.model_validate(span)) == expected


def test_cells_are_in_order_and_named_with_the_depth_last(load: Load) -> None:
    assert [cell.name for cell in load().cells] == [
        "len_512-depth_0",
        "len_512-depth_50",
        "len_512-depth_100",
        "len_1024-depth_0",
        "len_1024-depth_50",
        "len_1024-depth_100",
    ]


def test_a_seeds_cells_stand_together_for_they_share_their_start(load: Load) -> None:
    sweep = {"context_lengths": [512], "document_depths": [50], "seeds": [3, 0]}
    assert [cell.name for cell in load(needles=[FERRY, BRIDGE], sweep=sweep).cells] == [
        "ferry-seed_3-len_512-depth_50",
        "bridge-seed_3-len_512-depth_50",
        "ferry-seed_0-len_512-depth_50",
        "bridge-seed_0-len_512-depth_50",
    ]


def test_needle_and_seed_are_named_when_there_are_several(load: Load) -> None:
    sweep = {"context_lengths": [512], "document_depths": [2.5]}
    assert [cell.name for cell in load(needles=[FERRY, BRIDGE], sweep=sweep).cells] == [
        "ferry-len_512-depth_2.5",
        "bridge-len_512-depth_2.5",
    ]
    assert [cell.name for cell in load(sweep={**sweep, "seeds": [3, 0]}).cells] == [
        "seed_3-len_512-depth_2.5",
        "seed_0-len_512-depth_2.5",
    ]


def test_names_and_ids_are_unique(load: Load) -> None:
    cells = load(needles=[FERRY, BRIDGE], sweep={**GRID, "seeds": [0, 1, 2]}).cells
    assert len({cell.name for cell in cells}) == len({cell.id for cell in cells}) == len(cells) == 2 * 3 * 6


def test_an_id_names_the_question_and_neither_the_file_nor_the_model(load: Load) -> None:
    ours = load(model={"model": "a"}, sweep={"context_lengths": [512], "document_depths": [50]}).cells[0]
    theirs = load(model={"model": "b"}).cells[1]
    assert ours.id == theirs.id
    assert ours.id.startswith("niah/pydoc/ferry-")
    assert ours.id.endswith("/seed_0/len_512/depth_50")
    assert load(needles=[{**FERRY, "question": "At what time?"}]).cells[1].id != ours.id
    assert load(needles=[{**FERRY, "answer": "dawn"}]).cells[1].id != ours.id


@pytest.mark.parametrize(
    ("name", "shown"), [("a b/c::d[e]", "a_b_c_d_e"), ("Ключ", "Ключ"), ("???", "needle_1"), (None, "needle_1")]
)
def test_a_needles_name_fits_into_a_node_id(load: Load, name: str | None, shown: str) -> None:
    assert load(needles=[{**FERRY, "name": name}]).needles[0].name == shown


def test_a_folder_is_found_beside_the_suite(load: Load, tmp_path: Path) -> None:
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "a.txt").write_text("Once upon a time.")
    suite = load(haystack="tales")
    assert (suite.source, suite.question.haystack) == (str(tmp_path / "tales"), "tales")


def test_the_config_goes_over_the_suite_and_set_over_both(load: Load) -> None:
    suite = load(
        {"generation": {"max_tokens": 7, "seed": 1}, "verdict": "none"},
        {"generation": {"max_tokens": 9}},
        generation={"max_tokens": 5, "top_k": 3},
    )
    assert suite.settings.generation.model_dump() == {"max_tokens": 9, "temperature": 0.0, "top_k": 3, "seed": 1}
    assert suite.settings.verdict == "none"


def test_what_crosses_to_the_engine_is_plain(load: Load) -> None:
    question = load().question.to_json()
    assert Question.of_json(json.loads(json.dumps(question))) == load().question


EMPTY = "the grid is empty; expected a list or min, max, intervals"
SOURCES = "expected `haystack: FOLDER`, `haystack: package:NAME/PATH` or `haystack: pydoc`"


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"sweep": {**GRID, "context_lengths": []}}, f"essays.yaml:8: sweep.context_lengths: {EMPTY}"),
        ({"sweep": {"context_lengths": [512]}}, f"essays.yaml:7: sweep.document_depths: {EMPTY}"),
        ({"sweep": None}, f"essays.yaml: sweep.context_lengths: {EMPTY}"),
        ({"sweep": {**GRID, "seeds": []}}, f"essays.yaml:15: sweep.seeds: {EMPTY}"),
        (
            {"sweep": {**GRID, "context_lengths": [512, 9, 512]}},
            "essays.yaml:8: sweep.context_lengths: 512 is given twice",
        ),
        (
            {"sweep": {"context_lengths": [512], "document_depths": [0.12345671, 0.12345672]}},
            "essays.yaml:10: sweep.document_depths: 0.123457 is given twice",
        ),
        (
            {"needles": None},
            "essays.yaml: no needle; expected a list `needles:`, each with needle and question, or "
            "`needles: {file: FILE}`",
        ),
        ({"needles": [FERRY, FERRY]}, "essays.yaml:3: needles.1.name: 'ferry' is given twice"),
        ({"haystack": None}, f"essays.yaml: no haystack; {SOURCES}"),
        (
            {"haystack": "nowhere"},
            "essays.yaml:2: haystack: no folder 'nowhere'; expected a folder of .txt files, "
            "or a pattern such as src/**/*.py",
        ),
        (
            {"haystack": "package:nowhere/texts"},
            "essays.yaml:2: haystack: package 'nowhere' is not installed; try: pip install --no-deps nowhere",
        ),
        (
            {"gates": ["mean over size(key_words) >= 0.5"], "verdict": "none"},
            "essays.yaml:15: gates: gate 'mean over size(key_words) >= 0.5': expected length, depth or needle\n"
            "  mean over size(key_words) >= 0.5\n            ^",
        ),
        (
            {"gates": ["mean over size(key_words) >= 0.5"]},
            "essays.yaml:15: gates: gate 'mean over size(key_words) >= 0.5': expected length, depth or needle\n"
            "  mean over size(key_words) >= 0.5\n            ^",
        ),
        (
            {"task": "nedle"},
            "essays.yaml:15: task: unknown task 'nedle'; did you mean 'needle'? there are: " + ", ".join(TASKS.names),
        ),
        (
            {"task": {"name": "needle", "sise": 3}},
            "essays.yaml:17: task.sise: unknown key; accepted: apart",
        ),
        (
            {"haystack": {"source": "pydoc", "needle": "x"}},
            "essays.yaml:5: needles are given twice: under needles and under haystack",
        ),
    ],
)
def test_what_cannot_be_asked(load: Load, tmp_path: Path, keys: dict[str, Any], sentence: str) -> None:
    assert complaint(load, tmp_path, **keys) == sentence


def test_a_mistake_from_an_option_is_not_blamed_on_the_suites_lines(load: Load, tmp_path: Path) -> None:
    empty = {"sweep": {"document_depths": []}}
    assert complaint(load, tmp_path, sets=empty) == f"essays.yaml with --rh-set: sweep.document_depths: {EMPTY}"
    assert complaint(load, tmp_path, config=empty) == f"essays.yaml with --rh-config: sweep.document_depths: {EMPTY}"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "essays.yaml:2: haystack: no .txt file in '{folder}'"),
        ({"a.md": b"text"}, "essays.yaml:2: haystack: no .txt file in '{folder}'"),
        ({"a.txt": b" \n"}, "essays.yaml:2: haystack: the .txt files of '{folder}' are empty"),
        ({"a.txt": b"fine", "b.txt": b"caf\xe9"}, "essays.yaml:2: haystack: {folder}/b.txt is not UTF-8 text (byte 3)"),
    ],
)
def test_a_folder_without_text(load: Load, tmp_path: Path, files: dict[str, bytes], sentence: str) -> None:
    folder = tmp_path / "tales"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with pytest.raises(ConfigError) as raised:
        load(haystack=str(folder))
    assert str(raised.value) == f"{tmp_path}/{sentence.format(folder=folder)}"


class TestPredecessor:
    """Config files of PyPI's `retrieval-heads`, with its own defaults where they say nothing."""

    @pytest.fixture
    def read(self, tmp_path: Path) -> Callable[[str], Suite]:
        (tmp_path / "PaulGrahamEssays").mkdir()
        (tmp_path / "PaulGrahamEssays" / "a.txt").write_text("Write. Rewrite.")

        def read(text: str) -> Suite:
            file = tmp_path / "qwen3_5_9b.yaml"
            file.write_text("model: {model: Qwen/Qwen3.5-9B}\n" + text)
            return load_suite(file)

        return read

    def test_its_example_is_a_suite(self, read: Callable[[str], Suite]) -> None:
        suite = read(
            'haystack: {haystack_dir: ./PaulGrahamEssays, needle: "\\nEat a sandwich.\\n", retrieval_question: "What is ...?"}\n'  # noqa: E501
            "sweep: {context_lengths: {min: 1000, max: 32000, intervals: 31}, document_depths: {min: 0, max: 100, intervals: 10}}\n"  # noqa: E501
            "output_dir: ./results/qwen3_5_9b\n"
        )
        assert len(suite.cells) == 32 * 11
        assert (suite.cells[0].name, suite.cells[-1].name) == ("len_1000-depth_0", "len_32000-depth_100")
        assert suite.needles[0].needle == "\nEat a sandwich.\n"
        assert suite.needles[0].reference == "Eat a sandwich."
        assert suite.question.haystack == "PaulGrahamEssays"

    def test_its_defaults(self, read: Callable[[str], Suite]) -> None:
        suite = read("haystack: {haystack_dir: ./PaulGrahamEssays}\n")
        assert [
            cell.place.get("length") for cell in suite.cells[:: len({cell.place.get("depth") for cell in suite.cells})]
        ] == list(range(1000, 50000, 1000))
        assert sorted({cell.place.get("depth") for cell in suite.cells}) == list(range(0, 100, 10))
        assert suite.needles[0].question == "What is the best thing to do in San Francisco?"
        assert "eat a sandwich and sit in Dolores Park" in suite.needles[0].needle


def test_a_detection_names_the_scores_that_it_measures(load: Load) -> None:
    assert load(kind="detect").question.scores == ()
    assert load(kind="detect", scores="mass").question.scores == ("mass",)
    assert load(kind="detect", config={"scores": ["query", "copy"]}).question.scores == ("query", "copy")
    assert load(scores=["mass"]).question.scores == (), "a niah suite under a config of a detection's"
    assert load(kind="detect", scores=["mass"]).resolved()["scores"] == ["mass"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scores": ["mas"]}, "scores: unknown head score 'mas'; did you mean 'mass'? there are: copy, copy_reference"),
        ({"scores": ["mass", "mass"]}, "scores: mass is given twice"),
        ({"scores": []}, "scores: "),
        (
            {"scores": ["induction", "echo"]},
            "scores: induction, echo: measured on random texts; expected a score of the samples as well",
        ),
        ({"random_text": {"seeds": [3, 3]}}, "random_text.seeds: 3 is given twice"),
        ({"random_text": {"tokens": 1}}, "random_text.tokens: "),
        (
            {"scores": ["mass", "query"], "gates": ["head_spearman() >= 0.5"]},
            "gates: gate 'head_spearman() >= 0.5': the suite does not measure copy (scores); it measures mass, query",
        ),
        (
            {"scores": ["copy"], "gates": ["head_overlap(10, mass) >= 0.5"]},
            "gates: gate 'head_overlap(10, mass) >= 0.5': the suite does not measure mass (scores); it measures copy",
        ),
    ],
)
def test_scores_that_there_are_not_or_that_are_not_measured_are_refused(
    load: Load, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    assert message in complaint(load, tmp_path, kind="detect", **keys)


def test_heads_of_a_file_are_not_compared_by_another_score_than_its_own(load: Load, tmp_path: Path) -> None:
    (tmp_path / "before.json").write_text(json.dumps({"0-0": [0.5], "0-1": [0.25]}))
    expect = {"min_overlap_with": str(tmp_path / "before.json")}
    load(kind="detect", expect=expect)
    said = complaint(load, tmp_path, kind="detect", expect=expect, scores=["query", "mass"])
    assert said.endswith(
        "expect.min_overlap_with: before.json ranks its heads by copy_reference, and this suite by mass: it measures "
        "query, mass (scores)"
    )
