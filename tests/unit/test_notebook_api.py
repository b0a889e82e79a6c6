"""What `import retrieval_heads` offers of stored runs; the engine's part is tested with the stand-in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import retrieval_heads as rh
from retrieval_heads.engine.questions import aimed_at, free_question
from retrieval_heads.errors import QuestionError
from retrieval_heads.notebook.heads import Heads
from retrieval_heads.runs.record import Record, dump_record
from sample_run import sample_heads, sample_records


def stored(folder: Path, records: Sequence[Record]) -> Path:
    folder.mkdir()
    (folder / "results.jsonl").write_text("".join(f"{dump_record(record)}\n" for record in records))
    (folder / "run.json").write_text(json.dumps({"model": "models/toy", "began": "2026-01-02T03:04:05+0000"}))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> rh.Run:
    return rh.load_run(stored(tmp_path / "tale", sample_records([512, 1024, 2048], [0, 50, 100])))


def test_the_import_alone_is_light() -> None:
    code = "import sys, retrieval_heads; print(*sorted(m for m in sys.modules if m.startswith('retrieval_heads')))"
    heavy = "print(*[m for m in ('numpy', 'pydantic', 'matplotlib', 'torch', 'pandas', 'tqdm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{heavy}"], capture_output=True, text=True, check=True)
    assert done.stdout == "retrieval_heads\n\n"


def test_every_public_name_is_there_and_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    told = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    for name in rh.__all__:
        assert name in dir(rh)
        if name != "__version__":
            found = getattr(rh, name)
            assert found.__doc__
            place = f"{found.__module__}.{found.__qualname__}."
            assert any(place.startswith(f"{one}.") for one in told), place
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        rh.load_runs  # type: ignore[attr-defined]  # noqa: B018


def test_a_run_tells_of_itself_in_one_line(run: rh.Run, tmp_path: Path) -> None:
    assert repr(run).startswith("<Run tale, toy, 9 cells: ")
    assert "mean rouge1_recall_novel 0." in repr(run)
    assert "\n" not in repr(run)
    assert repr(rh.load_run(str(tmp_path / "tale"))) == repr(run), "a text is a path"


def test_cells_are_records_and_a_table(run: rh.Run) -> None:
    assert len(run.cells) == 9
    assert run.cells[0].context_length == 512
    assert len(run.cells[:2]) == 2
    assert len(run.cells.of("tale")) == 9
    table = run.cells.to_pandas()
    assert {"length", "depth", "needle", "seed", "status", "metric", "passed", "text", "substring"} <= set(
        table.columns
    )
    assert table["length"].tolist() == [512] * 3 + [1024] * 3 + [2048] * 3
    means = table.groupby("length")["rouge1_recall_novel"].mean()
    values = [record.scores["rouge1_recall_novel"] for record in run.cells if record.context_length == 1024]
    assert means[1024] == pytest.approx(sum(values) / 3)
    with pytest.raises(rh.RetrievalHeadsError, match="no suite 'tail'; there are: tale"):
        run.cells.of("tail")


def test_without_pandas_a_sentence_says_so(run: rh.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(rh.RetrievalHeadsError, match=r"to_pandas needs pandas .*: pip install pandas"):
        run.cells.to_pandas()
    assert len(run.cells.rows) == 9


def test_heads_are_arrays_and_a_table() -> None:
    table = sample_heads()
    heads = Heads({"tale": table}, "toy")
    assert list(heads) == ["copy", "mass"]
    assert heads["copy"].shape == (4, 8)
    assert heads.top(1) == [(2, 4)]
    assert heads.layers == (0, 1, 2, 3)
    frame = heads.to_pandas()
    assert list(frame.columns) == ["suite", "layer", "head", "score", "mean", "low", "high", "n"]
    assert len(frame) == 2 * 4 * 8
    best = frame[frame.score == "copy"].nlargest(1, "mean").iloc[0]
    assert (best.layer, best["head"], best.n) == (2, 4, 9)
    assert best.low < best["mean"] <= best.high
    assert heads.overlap(heads) == 1
    with pytest.raises(KeyError, match="no head score 'cpy'; there are: copy, mass"):
        heads["cpy"]


def test_heads_of_several_suites_are_told_apart() -> None:
    heads = Heads({"a": sample_heads(), "b": sample_heads()})
    assert np.array_equal(heads.of("a")["copy"], heads.of("b")["copy"])
    assert len(heads.to_pandas()) == 2 * 2 * 4 * 8
    with pytest.raises(rh.RetrievalHeadsError, match="several detect suites, a, b: take one"):
        heads["copy"]
    with pytest.raises(rh.RetrievalHeadsError, match="no detect suite 'c'; there are: a, b"):
        heads.of("c")


def test_a_run_without_heads_says_so(run: rh.Run) -> None:
    assert len(run.heads) == 0
    with pytest.raises(rh.RetrievalHeadsError, match="the run scored no heads; a suite of kind detect does"):
        run.plot.heads()


def test_two_runs_are_compared(run: rh.Run, tmp_path: Path) -> None:
    assert rh.compare(run, run).passed
    worse = [
        record.model_copy(update={"scores": dict.fromkeys(record.scores, 0.0), "passed": False, "status": "low"})
        for record in run.cells
    ]
    found = rh.compare(run.path, stored(tmp_path / "worse", worse), max_drop="5%")
    assert not found.passed
    assert found.lines[0] == "2 of 2 gates broken"
    assert found.lines[1].startswith("FAIL ")
    assert str(found) == "\n".join(found.lines)
    assert repr(found) == "<Comparison of tale and worse: broken>"


def test_pictures_are_figures(run: rh.Run, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    pictures = [run.plot.heatmap(), run.plot.profiles("tale"), Heads({"tale": sample_heads()}).heatmap("copy")]
    pictures += [Heads({"tale": sample_heads()}).distribution(), rh.compare(run, run).heatmap()]
    assert all(isinstance(picture, Figure) for picture in pictures)
    pictures[0].savefig(tmp_path / "heatmap.png")
    assert (tmp_path / "heatmap.png").stat().st_size > 1000


PROMPT = "The key is in the jar. Where is the key?"


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        ("in the jar", ((11, 21),)),
        ((11, 21), ((11, 21),)),
        (["in the jar", (0, 3)], ((11, 21), (0, 3))),
    ],
)
def test_spans_are_texts_or_characters(spans: object, found: tuple[tuple[int, int], ...]) -> None:
    assert aimed_at(PROMPT, spans, None, "Where is the key?", ()).spans == found  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ("he key", "spans: 'he key' stands in the prompt 2 times; once is needed, or give (start, end)"),
        ("the box", "spans: 'the box' stands in the prompt 0 times"),
        ((0, 400), "spans: a text of the prompt or its characters (start, end) are expected, found (0, 400)"),
        ([], "spans: name what the answer must find in the prompt"),
        ("", "spans: '' is empty"),
    ],
)
def test_a_span_that_does_not_stand_there_is_told(spans: object, said: str) -> None:
    with pytest.raises(QuestionError) as told:
        aimed_at(PROMPT, spans, None, None, ())  # type: ignore[arg-type]
    assert said in str(told.value)


def test_a_question_is_checked_before_it_is_asked() -> None:
    with pytest.raises(QuestionError, match="ask: max_tokens: a number of tokens is expected, found 0"):
        free_question("a", {"max_tokens": 0}, None, chat=True)
    with pytest.raises(QuestionError, match="head_scores: answer: a text is expected, found ''"):
        aimed_at(PROMPT, "jar", "", None, ())
