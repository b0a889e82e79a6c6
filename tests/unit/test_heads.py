from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_retrieval_heads.detection import finish
from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.clusters import cluster_of, clusters_of
from retrieval_heads.heads.detection import aggregate
from retrieval_heads.heads.formats import read_heads, read_ranked, read_table, write_heads
from retrieval_heads.heads.lacking import lacking
from retrieval_heads.heads.table import rank
from retrieval_heads.intervals import mean_interval
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import HeadScores, Recipe, Record
from retrieval_heads.suites.settings import Settings

LAYERS = [Layer("model.model.layers.0.self_attn.attn", 0, 3), Layer("model.model.layers.2.self_attn.attn", 2, 3)]


def sample(copy: list[list[float]], *, passed: bool = True, **scores: list[list[float]]) -> Record:
    heads: HeadScores = {"copy": copy, "copy_reference": copy, "mass": copy} | scores
    needle = f"n{copy}"
    return Record(context_length=512, document_depth=50, needle=needle, cell=needle, passed=passed, heads=heads)


def samples(count: int = 12, seed: int = 0) -> list[Record]:
    random = np.random.default_rng(seed)
    return [sample(random.random((2, 3)).round(3).tolist()) for _ in range(count)]


def test_only_samples_that_retrieved_are_averaged() -> None:
    low = sample([[1.0] * 3] * 2, passed=False)
    found = aggregate([sample([[0.2, 0, 0], [0, 0, 0.6]]), sample([[0.4, 0, 0], [0, 0, 0.2]]), low], LAYERS)
    assert found.estimates["copy"].mean.tolist() == [[pytest.approx(0.3), 0, 0], [0, 0, pytest.approx(0.4)]]
    assert len(found.counted) == 2
    assert len(found.samples) == 3


def test_samples_stand_in_the_order_of_their_grid_however_they_came() -> None:
    cells = [f"seed_0/len_{length}/depth_{depth}" for length in (512, 1024) for depth in (0, 12.5, 100)]
    one = sample([[0.5] * 3] * 2)
    found = aggregate([one.model_copy(update={"cell": cell}) for cell in reversed(cells)], LAYERS)
    assert [each.cell for each in found.samples] == [each.cell for each in found.counted] == cells


def test_no_counted_sample_is_an_error_that_says_so() -> None:
    with pytest.raises(ResultsError, match="none of the 2 samples retrieved its needle"):
        aggregate([sample([[0.5] * 3] * 2, passed=False)] * 2, LAYERS)


def test_samples_in_error_are_not_blamed_for_what_they_did_not_retrieve() -> None:
    with pytest.raises(ResultsError, match=r"^of 2 samples all are in error, so that no head is scored$"):
        aggregate([Record(passed=False, status="error")] * 2, LAYERS)


def test_a_model_without_heads_to_score_is_not_its_samples_fault() -> None:
    layers = [Layer("model.layers.0.mixer", 0, 0, kind="MambaMixer2")]
    with pytest.raises(
        ResultsError, match=r"^no head of this model can be scored; `retrieval-heads models --check` says"
    ):
        aggregate([Record(passed=False)] * 2, layers)


def test_a_score_that_one_counted_sample_lacks_is_left_out() -> None:
    with_query = sample([[0.1] * 3] * 2, query=[[0.2] * 3] * 2)
    assert "query" in aggregate([with_query, with_query], LAYERS).estimates
    assert "query" not in aggregate([with_query, sample([[0.1] * 3] * 2)], LAYERS).estimates


WITHOUT = Layer("model.layers.0.linear_attn", 0, 3, kind="gated delta", lacks={"written": "a recurrence"})
"""A layer that gives `copy` and not `write`."""


def test_a_score_that_some_layers_lack_has_no_figure_there(tmp_path: Path) -> None:
    written = ([[], [-0.5, 2.0, 0.0]], [[], [-1.5, 3.0, 0.0]])
    found = aggregate([sample([[0.1] * 3] * 2, write=each) for each in written], [WITHOUT, LAYERS[1]])
    assert found.ranked("write") == [((2, 1), 2.5), ((2, 2), 0.0), ((2, 0), -1.0)]
    assert list(lacking(found.estimates, found.layers)) == ["no write in layer 0: a recurrence"]
    heads, *_ = write_heads(found, tmp_path, {})
    table = read_heads(heads)
    assert np.isnan(table.table.estimates["write"].mean[0]).all()
    assert table.table.estimates["write"].mean[1].tolist() == [-1.0, 2.5, 0.0]
    assert table.samples.figures["write"][0, 1].tolist() == [-0.5, 2.0, 0.0]
    assert table.table.layers[0].lacks == WITHOUT.lacks
    assert json.loads(heads.read_text())["scores"]["write"]["mean"][0] == [None] * 3


def test_a_score_that_a_layer_gives_must_be_there() -> None:
    with pytest.raises(ResultsError, match="they are of other models"):
        aggregate([sample([[0.1] * 3] * 2, write=[[], [0.0] * 3])], LAYERS)


def test_figures_of_any_sign_have_students_interval() -> None:
    random = np.random.default_rng(0)
    written = [random.normal(-1, 3, (2, 3)).tolist() for _ in range(9)]
    found = aggregate([sample([[at / 10] * 3] * 2, write=each) for at, each in enumerate(written)], LAYERS)
    one = found.estimates["write"]
    assert (one.low < one.mean).all()
    assert (one.mean < one.high).all()
    assert (one.low < 0).all()


def test_layers_have_their_own_numbers_of_heads_or_none(tmp_path: Path) -> None:
    layers = [
        Layer("model.layers.0.mixer", 0, 0, kind="MambaMixer2"),
        Layer("model.layers.1.linear_attn", 1, 3),
        *LAYERS[1:],
    ]
    layers[2] = Layer("model.layers.2.self_attn.attn", 2, 1)
    records = [sample([[], [0.2, 0.9, 0.1], [0.5]]), sample([[], [0.4, 0.9, 0.1], [0.7]])]
    found = aggregate(records, layers)
    assert [head for head, _ in found.ranked()] == [(1, 1), (2, 0), (1, 0), (1, 2)]
    assert found.retrieval_heads() == 4
    assert found.stability(top=10) == 1
    heads, detected, *_ = write_heads(found, tmp_path, {})
    told = json.loads(heads.read_text())
    assert told["scores"]["copy"]["mean"] == [[], [0.3, 0.9, 0.1], [0.6]]
    assert told["layers"][0] == {
        "path": "model.layers.0.mixer",
        "number": 0,
        "heads": 0,
        "sliding_window": None,
        "kind": "MambaMixer2",
    }
    assert "model.layers.0.mixer" not in json.loads(detected.read_text())
    table = read_table(heads)
    assert table.layers == tuple(layers)
    assert table.ranked("copy") == [(1, 1), (2, 0), (1, 0), (1, 2)]
    assert np.isnan(table.estimates["copy"].mean).sum(1).tolist() == [3, 0, 2]


def test_every_head_has_the_interval_of_its_mean() -> None:
    records = samples(30)
    found = aggregate(records, LAYERS).estimates["copy"]
    for row, head in ((0, 0), (1, 2)):
        expected = mean_interval([record.heads["copy"][row][head] for record in records if record.heads])
        assert expected is not None
        assert (found.low[row, head], found.high[row, head]) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_samples_of_one_needle_and_one_text_have_no_interval_and_it_is_said(tmp_path: Path) -> None:
    records = [record.model_copy(update={"needle": "n"}) for record in samples(30)]
    found = aggregate(records, LAYERS)
    assert np.isnan(found.estimates["copy"].low).all()
    told = json.loads(write_heads(found, tmp_path, {})[0].read_text())
    assert told["intervals"].startswith(
        "no intervals: the samples are of 1 needle and 1 text, which are not independent"
    )
    seeded = [record.model_copy(update={"seed": number % 6}) for number, record in enumerate(records)]
    found = aggregate(seeded, LAYERS)
    assert not np.isnan(found.estimates["copy"].low).any()
    assert found.clusters.note == "intervals are over 1 needle and 6 texts"


def test_what_samples_share_is_read_back(tmp_path: Path) -> None:
    records = [sample([[number / 10] * 3] * 2).model_copy(update={"seed": number}) for number in range(6)]
    heads, *_ = write_heads(aggregate(records, LAYERS), tmp_path, {})
    assert read_heads(heads).samples.clusters == clusters_of(records).of
    told = json.loads(heads.read_text())
    told["samples"][0]["cluster"] = ["one"]
    heads.write_text(json.dumps(told))
    with pytest.raises(ResultsError, match="two names, needle and text, are expected"):
        read_heads(heads)


@pytest.mark.parametrize(
    ("change", "is_shared"),
    [
        ({"context_length": 4096, "document_depth": 90.0}, (True, True)),
        ({"question": "In other words?"}, (True, True)),
        ({"seed": 1}, (True, False)),
        ({"needle": "another"}, (False, True)),
        ({"recipe": Recipe(hash="b" * 64, wording=[], template_hash="", prompt_hash="")}, (True, False)),
    ],
)
def test_a_sample_shares_its_needle_and_its_text(change: dict[str, Any], is_shared: tuple[bool, bool]) -> None:
    recipe = Recipe(hash="a" * 64, wording=[], template_hash="", prompt_hash="")
    record = Record(context_length=512, document_depth=50, needle="n", recipe=recipe)
    changed = cluster_of(record.model_copy(update=change))
    assert tuple(one == other for one, other in zip(cluster_of(record), changed, strict=True)) == is_shared


def test_below_five_samples_no_interval_is_stored(tmp_path: Path) -> None:
    heads, *_ = write_heads(aggregate([sample([[1.0] * 3] * 2)] * 4, LAYERS), tmp_path, {})
    stored = json.loads(heads.read_text())["scores"]["copy"]
    assert stored == {"mean": [[1.0] * 3] * 2, "low": [[None] * 3] * 2, "high": [[None] * 3] * 2}
    assert np.isnan(read_table(heads).estimates["copy"].low).all()


def test_equal_samples_have_an_interval_of_some_width() -> None:
    records = [sample([[1.0, 0.0, 0.5]] * 2).model_copy(update={"needle": f"n{number}"}) for number in range(5)]
    found = aggregate(records, LAYERS).estimates["copy"]
    assert (found.high - found.low > 0.2).all()


def test_a_count_per_step_has_the_scale_of_the_longest_answer() -> None:
    """Twelve answer tokens over a needle of four: a head that copied at each step would have 3."""
    fields = {"token_ids": [1] * 12, "needle_span": (10, 14)}
    records = [
        sample([[0.5] * 3] * 2, copy_reference=[[value] * 3] * 2).model_copy(update={**fields, "seed": seed})
        for seed, value in enumerate((0.5, 1.5, 2.0, 0.0, 1.0))
    ]
    found = aggregate(records, LAYERS).estimates["copy_reference"]
    expected = mean_interval([0.5, 1.5, 2.0, 0.0, 1.0], top=3)
    assert expected is not None
    assert (found.low[0, 0], found.high[0, 0]) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("least", "word"), [(1.0, "inconclusive"), (0.4, "held")])
def test_an_expected_overlap_that_chance_may_explain_is_inconclusive(tmp_path: Path, least: float, word: str) -> None:
    """Two of three heads are found again; one text in three ranks the other layer's heads above them."""
    usual, other = [[0.45, 0.6, 0.7], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.8, 0.9, 1.0]]
    drawn = [sample(other if seed % 3 == 0 else usual) for seed in range(9)]
    records = [record.model_copy(update={"needle": "n", "seed": seed}) for seed, record in enumerate(drawn)]
    (tmp_path / "before.json").write_text(json.dumps({"0-0": [0.5], "0-1": [0.6], "0-2": [0.7]}))
    before = str(tmp_path / "before.json")
    settings = Settings.model_validate(
        {"kind": "detect", "expect": {"min_overlap_with": before, "min_overlap": least, "within_top": 3}}
    )
    facts = {"layers": [vars(layer) for layer in LAYERS]}
    found = finish("tale", settings, records, facts, tmp_path, "", inconclusive="fail")
    (outcome,) = found.expected
    assert outcome.outcome == word
    assert outcome.figures["low"] < outcome.measured < outcome.figures["high"] if outcome.measured else False
    assert ("the interval holds 100 %, so more needles" in outcome.sentence) is (word == "inconclusive")


def test_ranking_puts_ties_in_the_order_of_layer_then_head() -> None:
    heads = [((2, 1), 0.5), ((0, 2), 0.5), ((2, 0), 0.9), ((0, 1), 0.5)]
    assert [head for head, _ in rank(heads)] == [(2, 0), (0, 1), (0, 2), (2, 1)]


def test_rows_are_named_by_their_layers_number_in_the_model() -> None:
    found = aggregate([sample([[0, 0, 0], [0, 0.7, 0]])] * 2, LAYERS)
    assert found.ranked()[0] == ((2, 1), 0.7)


def test_stability_is_high_where_samples_agree_and_low_where_they_are_noise() -> None:
    layers = [Layer(f"layers.{number}.attn", number, 10) for number in range(10)]
    fixed = np.linspace(0, 1, 100).reshape(10, 10)
    random = np.random.default_rng(0)
    agreeing = [sample((fixed + random.normal(0, 1e-4, (10, 10))).tolist()) for _ in range(20)]
    noise = [sample(random.random((10, 10)).tolist()) for _ in range(20)]
    steady, shaky = (aggregate(records, layers).stability(10) for records in (agreeing, noise))
    assert steady == 1
    assert shaky is not None
    assert shaky < 0.3
    assert aggregate(agreeing[:1], layers).stability() is None


def test_two_samples_that_share_no_head_are_not_stable() -> None:
    layers = [Layer(f"layers.{number}.attn", number, 10) for number in range(10)]
    scores = np.zeros((2, 10, 10))
    scores[0, 3, 4] = scores[1, 7, 1] = 0.9
    assert aggregate([sample(each.tolist()) for each in scores], layers).stability() == 0
    assert aggregate([sample(scores[0].tolist())] * 2, layers).stability() == 1
    assert aggregate([sample(np.zeros((10, 10)).tolist())] * 2, layers).stability() is None


def test_head_files_are_written_in_every_form_and_read_back_the_same(tmp_path: Path) -> None:
    found = aggregate([*samples(), sample([[0.9] * 3] * 2, passed=False)], LAYERS)
    paths = {path.name: path for path in write_heads(found, tmp_path, {"model": "m"}, "-demo")}
    assert sorted(paths) == ["detected-agg-demo.json", "detected-demo.json", "head_score-demo.json", "heads-demo.json"]
    expected = found.ranked()
    for path in paths.values():
        ranked = read_ranked(path)
        assert [head for head, _ in ranked] == [head for head, _ in expected], path
        np.testing.assert_allclose([value for _, value in ranked], [value for _, value in expected], atol=1e-6)
    assert len(json.loads(paths["detected-demo.json"].read_text())[LAYERS[0].path]["0"]) == 12


def test_published_files_of_the_papers_form_give_their_means_in_rank_order(tmp_path: Path) -> None:
    """The form of the files beside the paper's code: `{"layer-head": [score of each sample]}`."""
    file = tmp_path / "Llama-2-7b-80k.json"
    file.write_text(json.dumps({"11-15": [0.9, 0.94], "16-19": [1.0, 0.886], "8-26": [0.8], "0-0": [0, 0], "0-1": [0]}))
    ranked = read_ranked(file)
    assert [head for head, _ in ranked] == [(16, 19), (11, 15), (8, 26), (0, 0), (0, 1)]
    assert [value for _, value in ranked[:3]] == pytest.approx([0.943, 0.92, 0.8])


def test_the_predecessors_aggregate_is_read(tmp_path: Path) -> None:
    file = tmp_path / "detected-agg.json"
    file.write_text(json.dumps({"model.model.layers.18.self_attn.attn": {"6": 0.7, "7": 0.65}}))
    assert read_ranked(file) == [((18, 6), 0.7), ((18, 7), 0.65)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("{}", "holds no heads"),
        ("[1]", "holds no heads"),
        ('{"a": 1}', "not a file of heads"),
        ('{"schema": "other/1"}', "not a file of heads"),
        ('{"1-2": []}', "not a file of heads"),
    ],
)
def test_a_file_that_is_none_of_these_is_one_clear_sentence(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "heads.json"
    file.write_text(content)
    with pytest.raises(ResultsError, match=said) as caught:
        read_ranked(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"gone\.json: cannot be read"):
        read_ranked(tmp_path / "gone.json")


def test_heads_of_another_shape_than_the_layers_are_not_averaged(tmp_path: Path) -> None:
    records: list[Any] = [sample([[0.1] * 3] * 2), sample([[0.1] * 4] * 2)]
    with pytest.raises(ResultsError, match="other models"):
        aggregate(records, LAYERS)
