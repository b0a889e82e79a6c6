"""Files of heads that other tools read: what is written, that it comes back, and that peers' own readers take it."""

from __future__ import annotations

import ast
import importlib.util
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval_heads.ablation.arms import read_heads as masked_heads
from retrieval_heads.cli import main
from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.heads.detection import aggregate
from retrieval_heads.heads.formats import read_heads, read_ranked, read_table, write_heads
from retrieval_heads.heads.formats.format import FORMATS, HeadFile, Samples, Wanted
from retrieval_heads.heads.groups import by_kv_head, by_query_head, group_maximum
from retrieval_heads.heads.order import order_of
from retrieval_heads.heads.table import Estimate, HeadTable
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Record

GROUP = 2
ONE_SCORE = ("retrieval-head", "locos", "qrhead", "headkv")
ALL_SCORES = ("heads", "safetensors", "parquet")
BY_KV_HEAD = ("duo", "kvpress")


def needed(name: str) -> None:
    """Skip where a format's library is not installed."""
    if name == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is in the extra `files`, and not installed")


def estimate(mean: Any) -> Estimate:
    values = np.array(mean, dtype=float)
    return Estimate(values, np.full_like(values, np.nan), np.full_like(values, np.nan))


def table(copy: Any, mass: Any = None, **fields: Any) -> HeadTable:
    """A layer of so many heads for each row."""
    estimates = {"copy": estimate(copy)} | ({} if mass is None else {"mass": estimate(mass)})
    layers = tuple(Layer(f"layers.{number}", number, len(row)) for number, row in enumerate(copy))
    return HeadTable("tale", layers, estimates, **fields)


def written(name: str, heads: HeadFile, folder: Path, scores: Any = ("copy",), **wanted: Any) -> Path:
    """The first file of an export."""
    form = FORMATS.find(name)
    output = form.output(heads, Wanted(scores, name=form.file, **wanted))
    for file, content in output.files.items():
        (folder / file).write_bytes(content)
    return folder / next(iter(output.files))


@st.composite
def head_files(draw: st.DrawFn) -> HeadFile:
    """Layers with and without heads, ties, heads without a score, samples whose means are the scores."""
    kinds = draw(st.lists(st.sampled_from([True, True, False]), min_size=1, max_size=4).filter(any))
    heads, count = GROUP * draw(st.integers(1, 3)), draw(st.integers(2, 4))
    shape = (count, len(kinds), heads)
    figure = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0])
    flat = draw(st.lists(figure, min_size=2 * count * len(kinds) * heads, max_size=2 * count * len(kinds) * heads))
    values = np.array(flat).reshape(2, *shape)
    unscored = np.array(draw(st.lists(st.booleans(), min_size=len(kinds) * heads, max_size=len(kinds) * heads)))
    unscored = unscored.reshape(len(kinds), heads) | ~np.array(kinds)[:, None]
    values[:, :, unscored] = np.nan
    if unscored.all() or not np.nansum(values[0]) > 0:
        values[:, :, kinds.index(True), 0] = 0.5
    layers = tuple(
        Layer(f"layers.{number}", number, heads if is_scored else 0, kind="attention" if is_scored else "MambaMixer2")
        for number, is_scored in enumerate(kinds)
    )
    estimates = {name: estimate(each.mean(0).round(6)) for name, each in zip(("copy", "mass"), values, strict=True)}
    cells = tuple(f"detect/tales/ferry-0/seed_{number}/len_512/depth_0" for number in range(count))
    figures = dict(zip(("copy", "mass"), values, strict=True))
    return HeadFile(HeadTable("tale", layers, estimates, count, count, 0.5, {"model": "toy"}), Samples(figures, cells))


def ranking(heads: HeadTable, score: str) -> list[tuple[tuple[int, int], float]]:
    """Heads with their scores, best first, ties in the order of layer and head."""
    return [
        ((heads.layers[row].number, head), round(float(heads.estimates[score].mean[row, head]), 6))
        for row, head in heads.ranked(score)
    ]


@pytest.mark.parametrize("name", [*ONE_SCORE, *ALL_SCORES])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(heads=head_files())
def test_what_is_exported_comes_back_as_the_same_ranking(name: str, heads: HeadFile, tmp_path: Path) -> None:
    needed(name)
    back = read_heads(written(name, heads, tmp_path, ("copy", "mass")), name)
    score = FORMATS.find(name).score or "copy"
    expected, found = ranking(heads.table, "copy"), ranking(back.table, score)
    if name == "headkv":  # which has a 0 for every head without a score
        known = dict(expected)
        assert [pair for pair in found if pair[0] in known] == expected
        assert all(value == 0 for head, value in found if head not in known)
    else:
        assert found == expected
    if name in ALL_SCORES:
        assert ranking(back.table, "mass") == ranking(heads.table, "mass")
        assert back.table.layers == heads.table.layers
        assert (back.table.counted, back.table.stability, back.table.suite) == (heads.table.counted, 0.5, "tale")
        assert back.table.facts["model"] == "toy"
        np.testing.assert_array_equal(back.samples.figures["mass"], heads.samples.figures["mass"])
    if name in ("locos", *ALL_SCORES):
        assert back.samples.cells == heads.samples.cells


@pytest.mark.parametrize("name", BY_KV_HEAD)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(heads=head_files())
def test_kv_heads_come_back_as_the_greatest_of_their_group(name: str, heads: HeadFile, tmp_path: Path) -> None:
    kv_heads = max(layer.heads for layer in heads.table.layers) // GROUP
    back = read_heads(written(name, heads, tmp_path, kv_heads=kv_heads), name)
    assert back.kv_heads
    mean, highest = heads.table.estimates["copy"].mean, {}
    for (layer, head), value in ranking(heads.table, "copy"):
        highest[layer, head // GROUP] = max(value, highest.get((layer, head // GROUP), 0.0))
    assert dict(ranking(back.table, "copy")) == highest
    spread = by_query_head(back.table, kv_heads * GROUP).estimates["copy"].mean
    for layer, head in zip(*np.nonzero(~np.isnan(mean)), strict=True):
        assert spread[layer, head] == pytest.approx(highest[layer, head // GROUP])


@settings(max_examples=50, deadline=None)
@given(heads=head_files())
def test_an_order_has_no_ties_and_says_where_they_began(heads: HeadFile) -> None:
    order = order_of(heads.table, "copy")
    scores = dict(ranking(heads.table, "copy"))
    mass = dict(ranking(heads.table, "mass"))
    assert list(order.heads) == sorted(scores, key=lambda head: (-scores[head], -mass[head], head))
    ordered = [scores[head] for head in order.heads]
    clear = len(ordered) if order.ties_from is None else order.ties_from - 1
    assert len(set(ordered[:clear])) == clear
    assert order.ties_from is None or ordered[clear] == ordered[clear + 1]


def test_a_group_without_a_score_has_none_and_one_head_is_enough() -> None:
    values = np.array([[np.nan, np.nan, np.nan, 0.25, 0.5, -1.0]])
    np.testing.assert_array_equal(group_maximum(values, 2), [[np.nan, 0.25, 0.5]])


def test_heads_without_keys_of_their_own_are_in_no_group() -> None:
    heads = table([[0.1, 0.9], [0.2, 0.3]])
    heads = replace(heads, layers=(heads.layers[0], replace(heads.layers[1], kind="gated delta")))
    grouped = by_kv_head(heads, 1)
    assert [layer.heads for layer in grouped.layers] == [1, 0]
    np.testing.assert_array_equal(grouped.estimates["copy"].mean, [[0.9], [np.nan]])
    with pytest.raises(ConfigError, match=r"no scored layer has any; the layers are gated delta"):
        by_kv_head(replace(heads, layers=tuple(replace(layer, kind="gated delta") for layer in heads.layers)), 1)


@pytest.mark.parametrize("kv_heads", [0, 3, 8])
def test_kv_heads_divide_the_query_heads(kv_heads: int) -> None:
    with pytest.raises(ConfigError, match=f"--kv-heads {kv_heads}: a number that divides the 4 query heads"):
        by_kv_head(table([[0.1, 0.2, 0.3, 0.4]]), kv_heads)


def test_only_a_file_that_says_so_lacks_scores(tmp_path: Path) -> None:
    path = written("heads", HeadFile(table([[0.5, np.nan]])), tmp_path)
    assert read_ranked(path) == [((0, 0), 0.5)]
    data = json.loads(path.read_text())
    assert data.pop("partial") is True
    path.write_text(json.dumps(data))
    with pytest.raises(ResultsError, match=r"copy\.mean of 0-1: a score of 0 to 1 is expected, found None"):
        read_ranked(path)
    assert "partial" not in json.loads(written("heads", HeadFile(table([[0.5, 0.0]])), tmp_path).read_text())


def test_layers_of_different_numbers_of_heads_fit_no_rectangle() -> None:
    mean = np.array([[0.5, 0.1], [0.2, np.nan]])
    heads = HeadFile(HeadTable("", (Layer("", 0, 2), Layer("", 1, 1)), {"copy": estimate(mean)}))
    with pytest.raises(ConfigError, match="as many heads in every layer, and these layers have 1, 2"):
        FORMATS.find("headkv").output(heads, Wanted(["copy"]))
    with pytest.raises(ConfigError, match="layers of 1 and 2 query heads"):
        FORMATS.find("duo").output(heads, Wanted(["copy"], kv_heads=1))


def test_headkv_finds_every_head_in_its_place_and_none_below_zero(tmp_path: Path) -> None:
    """Its loader reads one line, pays no heed to names, and reshapes the means to layers × query heads."""
    heads = HeadFile(table([[0.2, -0.1], [np.nan, 0.6]]))
    heads = replace(heads, table=replace(heads.table, layers=(Layer("", 0, 2), Layer("", 2, 2))))
    first, *others = written("headkv", heads, tmp_path).read_text().split("\n")
    assert others == [""]
    assert list(json.loads(first).items()) == [
        *(("0-0", [0.2]), ("0-1", [0.0])),
        *(("1-0", [0.0]), ("1-1", [0.0])),
        *(("2-0", [0.0]), ("2-1", [0.6])),
    ]
    notes = FORMATS.find("headkv").output(heads, Wanted(["copy"])).notes
    assert notes[1:] == (
        "layers without scores: 1",
        "3 heads without a score are written as 0",
        "1 figures below 0 are written as 0",
    )
    with pytest.raises(ConfigError, match="no head has a copy above 0, and HeadKV divides by their sum"):
        FORMATS.find("headkv").output(HeadFile(table([[0.0, 0.0]])), Wanted(["copy"]))


def test_files_that_are_sorted_by_their_readers_hold_ties_in_order(tmp_path: Path) -> None:
    """Retrieval_Head and LOCOS sort the means without moving what ties: the file's own order decides."""
    heads = HeadFile(table([[0.0, 0.5, 0.0]], mass=[[0.1, 0.0, 0.3]]))
    for name in ("retrieval-head", "locos"):
        data = json.loads(written(name, heads, tmp_path).read_text())
        scores = data.get("scores", data)
        assert list(scores) == ["0-1", "0-2", "0-0"]
    assert data["meta"]["ties_begin_at_place"] == 2
    assert data["meta"]["ties_in_the_order_of"] == "mass, then layer and head"


def test_qrhead_lists_heads_best_first_and_names_the_best_in_its_config(tmp_path: Path) -> None:
    heads = HeadFile(table([[0.0, 0.5, 0.75]], facts={"model": "org/Toy"}))
    path = written("qrhead", heads, tmp_path, top=2)
    assert json.loads(path.read_text()) == [["0-2", 0.75], ["0-1", 0.5], ["0-0", 0.0]]
    text = path.with_suffix(".yaml").read_text()
    assert text.startswith("# The 2 best heads by copy; no two of the 3 heads tie.\n")
    assert yaml.safe_load(text) == {
        "attn_head_set": "0-2,0-1",
        "model_base_class": "Toy",
        "model_name_or_path": "org/Toy",
    }


def test_duo_gates_are_clipped_by_no_loader_and_tied_ones_are_apart(tmp_path: Path) -> None:
    """The loader clips to [0, 1] and adds noise of up to 1e-6 before it cuts at a quantile."""
    copy = [[1.5, 0.75, 0.0, 0.0], [np.nan, np.nan, -0.5, 0.75]]
    heads = HeadFile(table(copy, mass=[[0, 0, 0.2, 0.1], [0, 0, 0.0, 0.5]]))
    heads.table.estimates["write"] = heads.table.estimates.pop("copy")  # type: ignore[attr-defined, index]
    path = written("duo", heads, tmp_path, ("write",), kv_heads=4)
    gates = np.loadtxt(path, dtype=float, delimiter="\t")
    assert gates[1, :2].tolist() == [1, 1]
    order = [(0, 0), (1, 3), (0, 1), (0, 2), (0, 3), (1, 2)]
    steps = -np.diff([gates[place] for place in order])
    assert (steps > 1e-6).all()
    assert (gates >= 0).all()
    assert (gates <= 1).all()
    assert gates[0, 1] == pytest.approx(0.5, abs=1e-4)
    assert gates[1, 2] == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["sink_size"], config["recent_size"]) == (128, 256)
    assert config["retrieval_heads"]["ties_begin_at_place"] == 2
    back = read_heads(path).table.estimates["write"].mean
    np.testing.assert_array_equal(back, copy)


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_the_loaders_noise_cuts_tied_heads_in_the_stated_order(tmp_path: Path, sparsity: float) -> None:
    """Uniform noise of up to 1e-6 on each gate, then those from a quantile on are kept (DuoAttention's loader)."""
    random = np.random.default_rng(0)
    copy = np.where(random.random((8, 8)) < 0.3, random.random((8, 8)), 0)
    heads = HeadFile(table(copy, mass=random.random((8, 8))))
    gates = np.loadtxt(written("duo", heads, tmp_path, kv_heads=8), delimiter="\t")
    best = set(order_of(heads.table, "copy").heads[: round(64 * (1 - sparsity))])
    for _ in range(20):
        noisy = gates + random.uniform(0, 1e-6, gates.shape)
        kept = noisy >= np.quantile(noisy, sparsity)
        assert {(int(layer), int(head)) for layer, head in np.argwhere(kept)} == best


def test_a_published_pattern_is_read(tmp_path: Path) -> None:
    (tmp_path / "full_attention_heads.tsv").write_text("1.0e+00\t2.5e-01\n0.0e+00\t5.0e-01\n")
    (tmp_path / "config.json").write_text('{"sink_size": 128, "recent_size": 256, "lr": 0.02}')
    found = read_heads(tmp_path / "full_attention_heads.tsv")
    assert found.kv_heads
    np.testing.assert_array_equal(found.table.estimates["duo"].mean, [[1, 0.25], [0, 0.5]])


def test_all_scores_are_read_with_the_libraries_alone(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is in the extra `files`, and not installed")
    heads = HeadFile(table([[0.5, np.nan]], mass=[[0.25, 0.125]]), Samples({"copy": np.array([[[0.25, np.nan]]] * 2)}))
    tensors = numpy.load_file(written("safetensors", heads, tmp_path, ("copy", "mass")))
    assert sorted(tensors) == [
        *("copy.high", "copy.low", "copy.mean", "copy.samples", "layers"),
        *("mass.high", "mass.low", "mass.mean"),
    ]
    np.testing.assert_array_equal(tensors["copy.mean"], [[0.5, np.nan]])
    assert tensors["copy.samples"].shape == (2, 1, 2)


def test_parquet_is_a_row_for_each_head_and_score(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is in the extra `files`, and not installed")
    heads = HeadFile(table([[0.5, np.nan]], mass=[[0.25, 0.125]]), Samples({"copy": np.array([[[0.25, np.nan]]] * 2)}))
    stored = parquet.read_table(written("parquet", heads, tmp_path, ("copy", "mass")))
    assert stored.column_names == ["layer", "head", "score", "mean", "low", "high", "samples"]
    assert [(row["head"], row["score"], row["mean"]) for row in stored.to_pylist()] == [
        *((0, "copy", 0.5), (1, "copy", None)),
        *((0, "mass", 0.25), (1, "mass", 0.125)),
    ]
    assert stored.to_pylist()[0]["samples"] == [0.25, 0.25]


def sampled() -> HeadFile:
    """Two layers of two heads, two samples."""
    return HeadFile(
        table([[0.5, 0.25], [0.75, 0.125]], counted=2), Samples({"copy": np.full((2, 2, 2), 0.25)}, ("a", "b"))
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        # Figures of other layers than the file says it holds.
        ({"layers": np.array([5, 9])}, "the tensor layers holds [5, 9], and its metadata [0, 1]"),
        ({"copy.mean": np.full((2, 3), 0.5)}, "copy.mean: figures of 2 layers × 2 heads are expected, found (2, 3)"),
        ({"copy.mean": np.full(4, 0.5)}, "copy.mean: figures of 2 layers × 2 heads are expected, found (4,)"),
        ({"copy.low": np.full((4, 2), 0.5)}, "copy.low: figures of 2 layers × 2 heads are expected, found (4, 2)"),
        ({"copy.mean": np.full((2, 2), 40.0)}, "copy.mean of 0-0: a score of 0 to 1 is expected, found 40.0"),
        ({"copy.mean": np.full((2, 2), np.inf)}, "copy.mean of 0-0: a score of 0 to 1 is expected, found inf"),
        ({"copy.samples": np.full((2, 1, 2), 0.5)}, "copy of sample 0: figures of 2 layers × 2 heads are expected"),
        ({"copy.samples": np.full((3, 2, 2), 0.5)}, "copy.samples: figures of 2 cells are expected, found shape"),
        ({"copy.samples": np.full((2, 2, 2), np.nan)}, "copy.samples: a head that has a mean lacks a sample's figure"),
    ],
)
def test_tensors_of_other_heads_are_told(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is in the extra `files`, and not installed")
    path = written("safetensors", sampled(), tmp_path)
    with importlib.import_module("safetensors").safe_open(path, framework="np") as file:
        metadata = file.metadata()
    numpy.save_file(numpy.load_file(path) | changed, path, metadata=metadata)
    with pytest.raises(ResultsError) as error:
        read_heads(path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"head": -1}, "copy of head 0--1 is none that its metadata names"),
        ({"layer": 1}, "copy of head 1-0 has two rows"),
        ({"mean": 5.0}, "copy.mean of 0-0: a score of 0 to 1 is expected, found 5.0"),
        ({"samples": None}, "copy.samples: a head that has a mean lacks a sample's figure"),
        ({"samples": [0.5, 9.0]}, "copy of sample 1 of 0-0: a score of 0 to 1 is expected, found 9.0"),
        (None, "copy of head 0-0 has no row"),
    ],
)
def test_rows_of_other_heads_are_told(tmp_path: Path, changed: dict[str, Any] | None, said: str) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is in the extra `files`, and not installed")
    parquet = importlib.import_module("pyarrow.parquet")
    path = written("parquet", sampled(), tmp_path)
    stored = parquet.read_table(path)
    first, *rows = stored.to_pylist()
    rows = rows if changed is None else [{**first, **changed}, *rows]
    parquet.write_table(arrow.Table.from_pylist(rows, schema=stored.schema), path)
    with pytest.raises(ResultsError) as error:
        read_heads(path)
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["safetensors", "parquet"])
def test_counts_that_are_no_numbers_are_told(tmp_path: Path, name: str) -> None:
    needed(name)
    heads = sampled()
    heads = replace(heads, table=replace(heads.table, stability=3.0))
    path = written(name, heads, tmp_path)
    with pytest.raises(ResultsError, match=r"stability_top_10: a number is expected, found 3\.0"):
        read_heads(path)


def test_gates_beside_scores_of_another_export_are_told(tmp_path: Path) -> None:
    path = written("duo", HeadFile(table([[0.5, 0.25], [0.75, 0.0]])), tmp_path, kv_heads=2)
    assert read_heads(path).table.estimates["copy"].mean.tolist() == [[0.5, 0.25], [0.75, 0.0]]
    path.write_text("1.0\t0.0\n0.0\t1.0\n")
    with pytest.raises(ResultsError, match=r"its gates are not those that the scores in its config\.json"):
        read_heads(path)


@pytest.fixture(scope="module")
def press_source() -> ast.Module:
    """kvpress' own file, of which no more is run than a test asks for: its imports want transformers before 5.3."""
    spec = importlib.util.find_spec("kvpress")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("kvpress is not installed: pip install --no-deps kvpress==0.5.5")
    return ast.parse((Path(spec.submodule_search_locations[0]) / "presses" / "duo_attention_press.py").read_text())


@pytest.fixture
def press(press_source: ast.Module) -> dict[str, Any]:
    """`DuoAttentionPress` as kvpress has it, on a base class that does nothing; downloads come from a dict."""
    torch = pytest.importorskip("torch", reason="torch comes with vLLM")
    downloads: dict[str, str] = {}

    def get(url: str) -> Any:
        text = downloads[url.rpartition("/")[2]]
        return SimpleNamespace(text=text, json=lambda: json.loads(text))

    @dataclass
    class BasePress:
        pass

    names: dict[str, Any] = {
        "__name__": __name__,  # where dataclasses look names up
        **{"dataclass": dataclass, "field": field, "np": np, "torch": torch, "BasePress": BasePress},
        **{"cached": lambda *_, **__: lambda function: function, "cache": None, "StringIO": __import__("io").StringIO},
        **{"requests": SimpleNamespace(get=get), "Gemma3ForConditionalGeneration": type("Gemma", (), {})},
        "PATTERNS_DICT": {"toy": "toy"},
        "downloads": downloads,
    }
    classes = [node for node in press_source.body if isinstance(node, ast.ClassDef)]
    exec(compile(ast.Module(classes, []), "duo_attention_press.py", "exec"), names)
    return names


def test_kvpress_reads_the_pattern_as_it_was_written(press: dict[str, Any], tmp_path: Path) -> None:
    heads = HeadFile(table([[0.5, 0.25, 0.0, 0.0], [0.0, 1.0, 0.125, 0.0]]))
    path = written("duo", heads, tmp_path, kv_heads=2)
    for file in tmp_path.iterdir():
        press["downloads"][file.name] = file.read_text()
    model = SimpleNamespace(config=SimpleNamespace(name_or_path="toy"))
    sink, recent, gates = press["DuoAttentionPress"].load_attention_pattern(model)
    assert (sink, recent) == (128, 256)
    np.testing.assert_allclose(gates, [[0.5, 0.0], [1.0, 0.125]], atol=1e-5)
    np.testing.assert_array_equal(gates, np.loadtxt(path, delimiter="\t"))


def test_the_written_press_masks_as_many_heads_as_kvpress_would_and_in_order(
    press: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    import torch

    copy = [[0.5, 0.25, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    heads = HeadFile(table(copy, mass=[[0, 0, 0, 0.1], [0, 0, 0.0, 0.3]], facts={"model": 'a """ model\\'}))
    path = written("kvpress", heads, tmp_path, kv_heads=2)
    monkeypatch.setitem(sys.modules, "kvpress", SimpleNamespace(DuoAttentionPress=press["DuoAttentionPress"]))
    module: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), module)
    config = SimpleNamespace(num_hidden_layers=2, num_key_value_heads=2)
    model = SimpleNamespace(config=config, device="cpu")
    masks = {}
    for ratio in (0.0, 0.25, 0.5, 1.0):
        made = module["RetrievalHeadsPress"](head_compression_ratio=ratio)
        made.post_init_from_model(model)
        masks[ratio] = made.streaming_mask.tolist()
        keys = torch.zeros(1, 2, 500, 4)
        layer = SimpleNamespace(layer_idx=0, config=SimpleNamespace(_attn_implementation="sdpa"))
        made.compress(layer, None, keys, keys, None, {})
        masked = layer.masked_key_indices
        assert len(masked[0]) == sum(masks[ratio][0]) * (500 - 128 - 256)
    assert masks[0.0] == [[False, False], [False, False]]
    assert masks[0.25] == [[False, True], [False, False]]  # 0-1 and 1-1 tie at 0; mass puts 1-1 before it
    assert masks[0.5] == [[False, True], [False, True]]
    assert masks[1.0] == [[True, True], [True, True]]
    config.num_hidden_layers = 3
    with pytest.raises(ValueError, match=r"2 layers × 2 KV heads; the model has \(3, 2\)"):
        made.post_init_from_model(model)


LAYERS = [Layer("model.layers.0.self_attn.attn", 0, 2), Layer("model.layers.1.self_attn.attn", 1, 2)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's head files: by copy 1-0 is best, by mass 0-1."""
    records = [
        Record(
            context_length=512,
            document_depth=50,
            needle="n",
            cell=f"detect/tales/ferry-0/seed_{number}/len_512/depth_50",
            passed=True,
            heads={
                "copy": [[0.5, 0.0], [1.0, 0.0]],
                "copy_reference": [[0.5, 0.0], [1.25, 0.0]],
                "mass": [[0.25, 0.75], [0.125, 0.5]],
            },
        )
        for number in range(6)
    ]
    folder = tmp_path / "run"
    folder.mkdir()
    write_heads(aggregate(records, LAYERS), folder, {"suite": "tale", "model": "toy"})
    monkeypatch.chdir(tmp_path)
    return folder


def heads_command(*arguments: str) -> None:
    main(["heads", *arguments])


def refused(*arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        heads_command(*arguments)
    sentence = str(caught.value)
    assert sentence.startswith("retrieval-heads: ")
    assert "\n" not in sentence
    return sentence


def test_an_export_says_what_it_wrote_and_where_ties_begin(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads_command("export", "run", "--to", "duo", "--kv-heads", "1", "--sink", "16", "--recent", "64")
    config = json.loads(Path("duo/config.json").read_text())
    assert (config["sink_size"], config["recent_size"]) == (16, 64)
    assert capsys.readouterr().out.splitlines() == [
        "copy: no two of the 2 heads tie",
        "wrote duo/full_attention_heads.tsv",
        "wrote duo/config.json",
    ]
    np.testing.assert_array_equal(np.loadtxt("duo/full_attention_heads.tsv"), [0.5, 1.0])
    heads_command("export", "run/detected.json", "--to", "headkv", "--output", "out/hk.json")
    assert capsys.readouterr().out.splitlines() == [
        "copy: ties begin at place 3 of 4; they are in the order of layer and head",
        "wrote out/hk.json",
    ]
    heads_command("export", "run", "--to", "retrieval-head")
    assert json.loads(Path("head_score.json").read_text())["1-0"] == [1.25] * 6


def test_heads_and_kv_heads_are_told_by_every_score(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads_command("table", "run", "--top", "2")
    assert capsys.readouterr().out.splitlines() == [
        "    head    copy  copy_reference    mass",
        "     1-0   1.000           1.250   0.125",
        "     0-0   0.500           0.500   0.250",
        "ties begin at place 3 of 4; they are in the order of mass, then layer and head",
    ]
    heads_command("table", "run", "--kv-heads", "1", "--score", "mass")
    assert capsys.readouterr().out.splitlines() == [
        " KV head    mass    copy  copy_reference",
        "     0-0   0.750   0.500           0.500",
        "     1-0   0.500   1.000           1.250",
        "no two of the 2 heads tie",
    ]
    assert "--kv-heads 3: a number that divides the 2 query heads" in refused("table", "run", "--kv-heads", "3")
    assert "--score qr: run/heads.json has no such score; it has copy, " in refused("table", "run", "--score", "qr")
    heads_command("export", "run", "--to", "duo", "--kv-heads", "1")
    assert "holds KV heads already" in refused("table", "duo", "--kv-heads", "1")
    assert "--kv-heads: locos holds query heads" in refused("export", "run", "--to", "locos", "--kv-heads", "1")


def test_pictures_show_kv_heads_where_they_are_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "retrieval_heads.commands.visualize.draw_heads", lambda table, *_: drawn.update(vars(table)) or []
    )
    main(["visualize", "detect", "--results", "run/heads.json", "--kv-heads", "1"])
    assert drawn["estimates"]["mass"].mean.tolist() == [[0.75], [0.5]]
    assert [layer.heads for layer in drawn["layers"]] == [1, 1]


def test_no_file_is_replaced_unasked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("qrhead.yaml").write_text("mine")
    said = refused("export", "run", "--to", "qrhead")
    assert "qrhead.yaml: stands there already; give --output another name, or --overwrite" in said
    assert Path("qrhead.yaml").read_text() == "mine"
    assert not Path("qrhead.json").exists()
    heads_command("export", "run", "--to", "qrhead", "--overwrite")
    assert capsys.readouterr().out.splitlines()[-2:] == ["wrote qrhead.json", "overwrote qrhead.yaml"]
    assert "heads.json: stands there already" in refused("import", "run", "--output", "run/heads.json")


def test_the_models_own_config_says_how_many_kv_heads(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--kv-heads: how many KV heads a layer has is not known" in refused("export", "run", "--to", "kvpress")
    Path("toy").mkdir()
    Path("toy/config.json").write_text('{"text_config": {"num_attention_heads": 2, "num_key_value_heads": 1}}')
    heads_command("export", "run", "--to", "kvpress")
    assert "1 KV heads a layer, as toy/config.json says" in capsys.readouterr().out
    assert read_heads(Path("retrieval_heads_press.py")).table.estimates["copy"].mean.tolist() == [[0.5], [1.0]]


def test_an_imported_file_is_what_an_ablation_ranks_by(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads_command("export", "run", "--to", "qrhead", "--score", "mass", "--output", "best.json")
    heads_command("import", "best.json", "--output", "in.json", "--model", "toy")
    assert capsys.readouterr().out.splitlines()[-1] == "4 heads, ranked by qr; read as qrhead"
    assert [head for head, _ in read_ranked(Path("in.json"))] == [(0, 1), (1, 1), (0, 0), (1, 0)]
    assert masked_heads(Path("in.json"), "toy") == (((0, 1), (1, 1), (0, 0), (1, 0)), "")
    assert masked_heads(Path("best.json"), "toy") == masked_heads(Path("in.json"), "toy")
    assert masked_heads(Path("in.json"), "other")[1] == "in.json holds the heads of toy, and other is ablated"
    stored = json.loads(Path("in.json").read_text())
    assert stored["model"] == "toy"
    assert stored["imported"]["format"] == "qrhead"
    assert len(stored["imported"]["sha256"]) == 64


def test_importing_a_run_by_another_score_makes_that_the_ranking(run: Path) -> None:
    heads_command("import", "run", "--score", "mass", "--output", "mass.json")
    assert [head for head, _ in read_ranked(Path("mass.json"))] == [(0, 1), (1, 1), (0, 0), (1, 0)]
    assert read_table(Path("mass.json")).counted == 6
    assert read_table(run / "heads.json").stability == 1
    assert read_table(run / "heads.json").facts["retrieval_heads"] == 2
    assert read_table(Path("mass.json")).stability is None  # both are of copy
    assert "retrieval_heads" not in read_table(Path("mass.json")).facts
    assert len(read_heads(Path("mass.json")).samples.cells) == 6


def test_a_folder_with_several_files_of_heads_asks_for_one(run: Path) -> None:
    (run / "heads-other.json").write_bytes((run / "heads.json").read_bytes())
    assert "run: name one of its files of heads: heads-other.json, heads.json" in refused(
        "export", "run", "--to", "qrhead"
    )
    for file in run.glob("heads*.json"):
        file.unlink()
    heads_command("export", "run", "--to", "qrhead")
    assert json.loads(Path("qrhead.json").read_text())[0] == ["1-0", 1.0]


def test_kv_heads_are_given_to_all_their_query_heads(run: Path) -> None:
    heads_command("export", "run", "--to", "duo", "--kv-heads", "1")
    assert "holds KV heads; give --query-heads, the query heads of a layer" in refused("import", "duo")
    assert "--query-heads 0: a multiple of the 1 KV heads" in refused("import", "duo", "--query-heads", "0")
    heads_command("import", "duo", "--query-heads", "2", "--output", "in.json")
    assert read_ranked(Path("in.json")) == [((1, 0), 1.0), ((1, 1), 1.0), ((0, 0), 0.5), ((0, 1), 0.5)]
    with pytest.raises(ResultsError, match="holds KV heads, and query heads are expected"):
        read_ranked(Path("duo/full_attention_heads.tsv"))
    said = refused("export", "duo", "--to", "headkv")
    assert "holds KV heads, and headkv query heads; import it with --query-heads first" in said


def test_a_score_of_a_known_name_is_held_to_its_range_and_gets_intervals(run: Path) -> None:
    said = refused("import", "run/head_score.json", "--score", "mass")
    assert "--score mass: run/head_score.json does not hold it: head 1-0: a score of 0 to 1 is expected" in said
    heads_command("export", "run", "--to", "locos", "--score", "copy")
    heads_command("import", "locos.json", "--score", "copy")
    found = read_table(Path("heads.json"))
    assert found.counted == 6
    np.testing.assert_array_equal(found.estimates["copy"].low, read_table(run / "heads.json").estimates["copy"].low)
    assert found.facts["intervals"] == "intervals are over 1 needle and 6 texts"


def test_samples_that_may_share_a_needle_get_no_interval(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads_command("import", "run/detected.json")
    assert "no intervals: the file does not say which needle and text its samples are of" in capsys.readouterr().out
    assert np.isnan(read_table(Path("heads.json")).estimates["copy"].low).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "run", "--to", "duos"), "unknown head format 'duos'; did you mean 'duo'?"),
        (("export", "run", "--to", "duo", "--kv-heads", "3"), "a number that divides the 2 query heads"),
        (("export", "run", "--to", "locos", "--score", "nope"), "has no such score; it has copy, copy_reference, mass"),
        (
            ("export", "run", "--to", "qrhead", "--output", "best.yaml"),
            "--output best.yaml: qrhead writes best.yaml beside it; give it another ending",
        ),
        (("export", "run", "--to", "locos", "--output", "."), "--output '.': the name of a file is expected"),
        (("export", "run", "--to", "detected"), "--to detected: the format is read only"),
        (("export", "run", "--to", "qrhead", "--top", "0"), "--top 0: at least 1 head is expected"),
        (("export", "gone", "--to", "duo"), "gone: cannot be read (No such file or directory)"),
        (("export", ".", "--to", "duo"), ".: no file of heads there"),
        (("import", "run", "--score", "nope"), "has no such score; it has copy, copy_reference, mass"),
        (("import", "run/heads.json", "--from", "qrhead"), "not a file of heads; accepted are"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "0.5\t0.5\n0.5\n", "as many gates in every row are expected, the first has 2"),
        ("a.tsv", "", "a row of gates for each layer is expected"),
        ("a.tsv", "a\tb\n", "not a file of heads"),
        ("a.py", "print(1)", "not JSON"),
        ("a.py", "# Written by retrieval-heads for kvpress.\nimport os", "SCORE and SCORES are expected"),
        ("a.py", "# Written by retrieval-heads for kvpress.\nSCORE = os.name", "is no Python file as it was written"),
        ("a.json", '[["0-1", 0.5], ["0-1", 0.2]]', "head 0-1 is given twice"),
        ("a.json", '[["0-1", "x"]]', "head 0-1: a score of -1 to 1 is expected, found 'x'"),
        ("a.json", '[["01", 1]]', "not a file of heads"),
        ("a.json", '{"meta": {}, "scores": {"0-1": []}}', "not a file of heads"),
        ("a.json", '{"meta": {}, "scores": 5}', "not a file of heads"),
        ("a.safetensors", "x", "is no safetensors file"),
        ("a.parquet", "x", "is no parquet file"),
    ],
)
def test_a_broken_file_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, said: str
) -> None:
    if name.endswith("parquet"):
        needed("parquet")
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    sentence = refused("import", name, "--query-heads", "4")
    assert said in sentence
    assert name in sentence
    assert not Path("heads.json").exists()
