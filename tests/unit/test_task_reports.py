"""Programs and phonebooks as text, as three panels and as lines of several models; the predecessor's files as well."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from retrieval_heads.cli import main
from retrieval_heads.errors import ResultsError
from retrieval_heads.plots.phonebook import phonebook_figure
from retrieval_heads.plots.tasks import lines_figure, program_figure
from retrieval_heads.report.text import text_report
from retrieval_heads.runs.record import Record, parse_record

TYPES = ("RECALL", "STATE_TRACKING", "STATE_BASED_RECALL")


def program_lines(variables: Sequence[int], steps: Sequence[int], is_right: Callable[[str, int, int], bool]) -> str:
    """A results file of the predecessor's `code_eval`, two programs a place: the second is never right."""
    written = []
    for kind, count, swaps in itertools.product(TYPES, variables, steps):
        if kind == "RECALL" and swaps != steps[0]:
            continue
        for number in range(2):
            written.append(
                {
                    "prompt": "p",
                    "context": f"bits = [{number}]",
                    "num_vars": count,
                    "num_steps": None if kind == "RECALL" else swaps,
                    "target_var": "a",
                    "target_value": 1,
                    "output": "1",
                    "correct": number == 0 and is_right(kind, count, swaps),
                    "experiment_type": f"code_eval:{kind}",
                }
            )
    return "\n".join(map(json.dumps, written))


def phonebook_lines(lengths: Sequence[int], right: int) -> str:
    """One of the predecessor's `phonebook`: right up to so many entries."""
    written = [
        {
            "phonebook_length": length,
            "entry_pos": entry,
            "depth_percent": 100 * entry // (length - 1),
            "name": "Ada Bloom",
            "phone_number": "612-345-6789",
            "text": "612-345-6789",
            "token_ids": [1],
            "correct": length <= right,
            "experiment_type": "phonebook",
        }
        for length in lengths
        for entry in (0, length - 1)
    ]
    return "\n".join(map(json.dumps, written))


def records(text: str) -> list[Record]:
    return [parse_record(line, "results.jsonl") for line in text.split("\n")]


PROGRAMS = program_lines([4, 8], [2, 8], lambda kind, variables, steps: variables == 4 or kind == "RECALL")
BOOK = phonebook_lines([5, 9, 33], right=9)


def test_programs_as_text_are_a_grid_for_each_kind() -> None:
    tables = text_report(records(PROGRAMS)).split("\n\n")
    assert [table.split("\n")[0] for table in tables] == [
        f"program · program {kind.lower()}: exact, mean in percent" for kind in TYPES
    ]
    assert tables[0].split("\n")[1:] == [
        "steps \\ variables     4     8   avg",
        "0                  50.0  50.0  50.0",
        "avg                50.0  50.0  50.0",
        "overall 50.0 (n=4)",
    ]
    assert tables[1].split("\n")[1:] == [
        "steps \\ variables     4    8   avg",
        "2                  50.0  0.0  25.0",
        "8                  50.0  0.0  25.0",
        "avg                50.0  0.0  25.0",
        "overall 25.0 (n=8)",
    ]


def test_a_phonebook_as_text_is_depth_by_entries() -> None:
    assert text_report(records(BOOK)).split("\n")[1:] == [
        "needle depth (%) \\ entries      5      9   33   avg",
        "0                           100.0  100.0  0.0  66.7",
        "100                         100.0  100.0  0.0  66.7",
        "avg                         100.0  100.0  0.0  66.7",
        "overall 66.7 (n=6)",
    ]


def test_needles_as_text_and_records_without_an_answer() -> None:
    asked = {"context_length": 100, "document_depth": 0.0, "needle": "n", "metric": "key_words"}
    right = Record.model_validate({**asked, "scores": {"key_words": 1.0}})
    skipped = Record.model_validate({**asked, "context_length": 200, "status": "skipped"})
    text = text_report([right, skipped])
    assert text.startswith("niah: key words, mean in percent\n")
    assert text.endswith("overall 100.0 (n=1); 1 without an answer left out")
    with pytest.raises(ResultsError, match="there is no answer among the records"):
        text_report([skipped])


def test_programs_are_three_panels_each_with_its_own_axes() -> None:
    figure = program_figure(records(PROGRAMS))
    panels = figure.axes[:3]
    assert [axes.get_title(loc) for axes in panels for loc in ("left", "center") if axes.get_title(loc)] == [
        "Recall",
        "State tracking",
        "State-based recall",
    ]
    assert [len(axes.collections[0].get_array().ravel()) for axes in panels] == [2, 4, 4]
    assert panels[1].collections[0].get_array().ravel().tolist() == [0.5, 0, 0.5, 0]


def test_lines_are_means_over_what_each_panel_leaves_out() -> None:
    other = program_lines([4, 8], [2, 8], lambda *_: True)
    figure = lines_figure({"small": records(PROGRAMS), "large": records(other)})
    drawn = [
        {
            line.get_color(): list(zip(line.get_xdata(), line.get_ydata(), strict=True))
            for line in axes.lines
            if line.get_label() == "mean"
        }
        for axes in figure.axes
    ]
    small, large = drawn[0]
    assert [panel[small] for panel in drawn] == [[(4, 0.5), (8, 0.5)], [(2, 0.25), (8, 0.25)], [(8, 0.0)]]
    assert [panel[large] for panel in drawn] == [[(4, 0.5), (8, 0.5)], [(2, 0.5), (8, 0.5)], [(8, 0.5)]]


def test_lines_over_a_phonebook_take_the_colours_that_are_given() -> None:
    runs = {"one": records(BOOK), "two": records(phonebook_lines([5, 9, 33], right=5))}
    (axes,) = lines_figure(runs, colours=["#112233", "red"]).axes
    drawn = {line.get_color(): list(line.get_ydata()) for line in axes.lines if line.get_label() == "mean"}
    assert drawn == {"#112233": [1, 1, 0], "red": [1, 0, 0]}


def test_a_phonebooks_columns_have_as_many_cells_as_depths_and_none_is_empty() -> None:
    lines = [json.loads(line) for line in phonebook_lines([5, 9], right=5).splitlines()]
    middle = {**lines[0], "entry_pos": 2, "depth_percent": 50, "correct": False}
    found = records("\n".join(map(json.dumps, [*lines, middle])))
    axes = phonebook_figure(found).axes[0]
    assert [mesh.get_array().ravel().tolist() for mesh in axes.collections] == [[1, 0, 1], [0, 0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "9"]
    assert axes.get_ylim() == (1, 0)
    # Snapped: 50 % is as near to 0 as to 100, and goes to the lesser.
    grid = phonebook_figure(found, depths=[100, 0]).axes[0]
    assert grid.collections[0].get_array().reshape(2, 2).tolist() == [[0.5, 0], [1, 0]]


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (BOOK, "all of program or all of phonebook: one is of program, two is of phonebook"),
        (program_lines([4], [2, 8], lambda *_: True), "different sweeps of variables: one has 4, 8; two has 4"),
    ],
)
def test_runs_that_do_not_go_together_are_refused(other: str, sentence: str) -> None:
    with pytest.raises(ResultsError, match=sentence):
        lines_figure({"one": records(PROGRAMS), "two": records(other)})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in (("code", PROGRAMS), ("book", BOOK), ("book2", BOOK)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text(text)
    return tmp_path


def test_what_can_be_typed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", "code/results.jsonl"])
    assert "program · program recall: exact" in capsys.readouterr().out
    main(["report", "book", "--output-path", "out/book.txt"])
    assert (folder / "out" / "book.txt").read_text().endswith("overall 66.7 (n=6)\n")
    main(["visualize", "code-eval", "--results", "code/results.jsonl", "--output", "out/code.png", "--title", "toy"])
    main(["visualize", "lines", "--results", "book", "book2/results.jsonl", "--labels", "a", "b", "--output", "l.png"])
    assert {"code.png", "code.svg"} <= {path.name for path in (folder / "out").iterdir()}
    assert (folder / "l.png").exists()
    main(["visualize", "phonebook", "--results", "book", "book2", "--output", "p.png", "--mode", "grid"])
    main(["visualize", "phonebook", "--results", "book", "--output", "p.png"])
    assert (folder / "p.svg").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("report none.jsonl", "none.jsonl: no such file or folder"),
        ("visualize code-eval --results book", "no record of a program is there"),
        ("visualize code-eval --results code --vmin 1", "--vmin 1 and --vmax 1: two numbers are expected"),
        ("visualize phonebook --results code", "no record of a phonebook is there"),
        ("visualize phonebook --results book --depths 5", "--depths: they are the rows of --mode grid"),
        ("visualize phonebook --results book --mode grid --depths 101", "--depths: depths in percent are expected"),
        ("visualize lines --results book book2 --labels a", "--labels: 1 are given for 2 results"),
        ("visualize lines --results book book2 --labels a a", "--labels: a name is given twice"),
        ("visualize lines --results book --colors reddish", "--colors 'reddish': a colour is expected"),
    ],
)
def test_a_mistake_is_one_sentence(folder: Path, line: str, sentence: str) -> None:
    with pytest.raises(SystemExit) as found:
        main(line.split())
    assert sentence in str(found.value)
    assert len(str(found.value).splitlines()) == 1
