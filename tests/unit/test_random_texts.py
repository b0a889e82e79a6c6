"""Heads on random texts that are repeated: the texts, what is read of them, and how they are counted. No engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pytest_retrieval_heads.detection import DetectionOutcome, table
from retrieval_heads.errors import ConfigError, PromptError, ResultsError
from retrieval_heads.heads.detection import aggregate
from retrieval_heads.heads.formats import read_heads, read_table, write_heads
from retrieval_heads.heads.formats.heads import measured_texts
from retrieval_heads.heads.looks import Rows, WeighBehind
from retrieval_heads.heads.score import head_score
from retrieval_heads.heads.texts import MeasuredText, RandomText
from retrieval_heads.intervals import mean_interval
from retrieval_heads.matrix.settings import REFERENCE, Matrix
from retrieval_heads.prompts.random_text import plain_tokens, repeated_text
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Record, Replay
from retrieval_heads.suites.suite import load_suite
from retrieval_heads.tasks.builder import CellBuilder
from toy_tokenizer import SPECIAL, ByteTokenizer, WordTokenizer


def test_a_text_is_as_many_different_tokens_again_and_again() -> None:
    ids = repeated_text(range(100), 30, 4, seed=0)
    assert ids == ids[:30] * 4
    assert len(set(ids)) == 30
    assert ids == repeated_text(range(100), 30, 4, seed=0)
    assert ids != repeated_text(range(100), 30, 4, seed=1)


def test_no_special_token_is_among_them() -> None:
    vocabulary = plain_tokens(WordTokenizer(adds_bos=True))
    assert len(vocabulary) == 1000
    assert not set(vocabulary) & set(SPECIAL.values())


@pytest.mark.parametrize(
    ("tokens", "repeats", "message"),
    [
        (1001, 2, "random_text.tokens: 1001 different tokens are wanted, and the vocabulary has 1000 that are not"),
        (250, 4, "random_text: 4 times 250 tokens do not fit max_model_len 1000, which has room for one more; set"),
    ],
)
def test_a_text_that_cannot_be_is_told_with_what_to_set(tokens: int, repeats: int, message: str) -> None:
    builder = CellBuilder(ByteTokenizer(), {}, {}, 1000)
    with pytest.raises(PromptError, match=message):
        builder.repeated(RandomText(tokens, repeats, 0, ("echo",)))


TEXT = Rows(40, (), (0, 0), (), (0, 0), period=10)


def test_the_rows_of_all_copies_but_the_first_look_at_each_earlier_one() -> None:
    assert (TEXT.first, TEXT.end) == (10, 40)
    echo, induction = (list(head_score(name).weighings(TEXT)) for name in ("echo", "induction"))
    assert echo == [WeighBehind((10, 40), 10), WeighBehind((20, 40), 20), WeighBehind((30, 40), 30)]
    assert induction == [WeighBehind((10, 40), 9), WeighBehind((20, 40), 19), WeighBehind((30, 40), 29)]


@pytest.mark.parametrize("name", ["echo", "induction"])
def test_samples_have_no_such_rows(name: str) -> None:
    assert list(head_score(name).weighings(Rows(60, (7, 8), (10, 12), (7, 8), (50, 55)))) == []


LAYERS = [Layer("layers.0", 0, 2), Layer("layers.1", 1, 0, kind="Mamba")]
REPLAY = Replay(cached_tokens=0, computed_tokens=1024, seconds=0.5)


def texts(count: int) -> list[MeasuredText]:
    return [
        MeasuredText(
            RandomText(256, 4, seed, ("induction", "echo")),
            {"induction": [[0.5 + seed / 100, 0.25], []], "echo": [[0.125, 0.0], []]},
            REPLAY,
        )
        for seed in range(count)
    ]


def samples() -> list[Record]:
    heads = {"mass": [[0.75, 0.5], []]}
    return [Record(cell=f"detect/{seed}", seed=seed, passed=True, status="pass", heads=heads) for seed in range(6)]


def test_texts_are_samples_of_their_own_kind() -> None:
    found = aggregate(samples(), LAYERS, texts(5))
    assert list(found.estimates) == ["mass", "induction", "echo"]
    assert found.ranking == "mass"
    expected = mean_interval([0.5 + seed / 100 for seed in range(5)])
    assert expected is not None
    induction = found.estimates["induction"]
    assert induction.mean[0, 0] == pytest.approx(0.52)
    assert (induction.low[0, 0], induction.high[0, 0]) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert np.isnan(aggregate(samples(), LAYERS, texts(4)).estimates["echo"].low[0, 0]), "too few texts"
    with pytest.raises(ResultsError, match="none of the 1 samples retrieved"):
        aggregate([samples()[0].model_copy(update={"passed": False})], LAYERS, texts(5))


def test_a_file_of_heads_holds_them_apart_from_samples(tmp_path: Path) -> None:
    (file,) = write_heads(aggregate(samples(), LAYERS, texts(5)), tmp_path, {"suite": "heads"})
    assert measured_texts(file) == texts(5)
    assert read_table(file).estimates.keys() == {"mass", "induction", "echo"}
    assert "texts" not in read_table(file).facts
    assert read_heads(file).samples.figures.keys() == {"mass"}
    assert all(sample["scores"].keys() == {"mass"} for sample in json.loads(file.read_text())["samples"])
    assert measured_texts(tmp_path / "none.json") == []
    file.write_text(json.dumps({"texts": [{"text": 1}]}))
    with pytest.raises(ResultsError, match="its random texts cannot be read"):
        measured_texts(file)


def test_what_they_took_is_told() -> None:
    outcome = DetectionOutcome("heads", aggregate(samples(), LAYERS, texts(5)), [], None, [])
    assert ("induction, echo: 5 random texts of 256 tokens, 4 times each; 5,120 tokens computed, 2.5 s") in list(
        table(outcome)
    )


def test_a_matrix_has_several_engines_and_no_texts(tmp_path: Path) -> None:
    needle = {"needle": "The ferry to Oslo leaves at dawn.", "question": "When does it leave?"}
    suite = {
        "kind": "detect",
        "haystack": "pydoc",
        "needles": [needle],
        "sweep": {"context_lengths": [512], "document_depths": [0]},
        "scores": ["copy", "echo"],
    }
    (tmp_path / "heads.yaml").write_text(json.dumps(suite))
    with pytest.raises(ConfigError, match=r"scores: echo are measured once .* a matrix has several; leave them out"):
        Matrix({}).variant(load_suite(tmp_path / "heads.yaml"), REFERENCE)
