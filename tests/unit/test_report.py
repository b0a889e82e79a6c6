"""What a report says, from stored runs of every kind; how it looks and behaves is tested in a browser."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval_heads.errors import ResultsError
from retrieval_heads.heads.detection import aggregate
from retrieval_heads.heads.formats import read_table, write_heads
from retrieval_heads.heads.table import Estimate
from retrieval_heads.report import head_samples, load_run, write_report
from retrieval_heads.report.content import content
from retrieval_heads.report.head_views import agreements
from retrieval_heads.report.matching import ECHO, MATCH, PLAIN, marked
from retrieval_heads.report.page import embedded, render
from retrieval_heads.report.pictures import draw_run, marked_layers
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Record, dump_record
from retrieval_heads.runs.steps import Steps
from sample_run import sample_heads, sample_record, sample_records, sample_run


def write_records(folder: Path, records: list[Record], name: str = "results.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{dump_record(record)}\n" for record in records))
    return path


def data_in(page: str) -> Any:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_matched_words_are_told_from_echoed_ones() -> None:
    pieces = marked("The key: Inside the TELESCOPES!", "inside the brass telescope", "Where is the key?")
    assert pieces == [
        (ECHO, "The"),
        (PLAIN, " key: "),
        (MATCH, "Inside"),
        (PLAIN, " "),
        (ECHO, "the"),
        (PLAIN, " "),
        (MATCH, "TELESCOPES"),
        (PLAIN, "!"),
    ]


@pytest.mark.parametrize("metric", ["rouge1_recall", "key_words"])
def test_words_that_tell_nothing_are_not_marked_as_those_that_count(metric: str) -> None:
    pieces = marked("and sit on a sunny day", "eat and sit in Dolores Park on a sunny day", "What is best?", metric)
    assert [text.strip() for mark, text in pieces if mark == MATCH] == ["sit", "sunny", "day"]
    assert {text for mark, text in pieces if mark == ECHO} == {"and", "on", "a"}


@pytest.mark.parametrize("answer", ["", "…", "在多洛雷斯公园", "a\x00b \ud800 𝔘nicode ﬁne", "word " * 50])
def test_marking_loses_no_character(answer: str) -> None:
    assert "".join(text for _, text in marked(answer, "公园 fine word", "?")) == answer


def test_embedded_data_holds_nothing_that_html_reads() -> None:
    text = "</script><!-- & \u2028 \u2029 \ud800 é"
    page = embedded({"text": text})
    assert not set("<>&\u2028\u2029\ud800é") & set(page)
    assert json.loads(page) == {"text": text}


def test_the_page_names_nothing_outside_of_itself() -> None:
    page = render(sample_run())
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src &#39;none&#39;" in page


def test_the_summary_counts_and_averages_what_was_measured() -> None:
    records = [
        sample_record(512, 0),
        sample_record(512, 50, value=0.25),
        sample_record(1024, 0, status="skipped", reason="too long"),
        sample_record(1024, 50, status="error", reason="refused"),
    ]
    page = render(sample_run(records, heads={}))
    told = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition('<div id="pictures">')[0]))
    assert "retrieved 1 of 4 1 below the threshold, 1 skipped, 1 in error" in told
    assert "mean score 0.625" in told


def test_the_summary_of_an_ablation_is_that_of_nothing_masked() -> None:
    records = [
        sample_record(512, arm=arm, cell=f"ablate/{arm}", kind="ablate", value=value)
        for arm, value in (("none", 1.0), ("top_10", 0.0))
    ]
    page = render(sample_run(records, heads={}))
    assert "tale: nothing masked" in page
    assert "1 of 1" in page


ABLATION: dict[str, Any] = {
    "schema": "retrieval-heads-ablation/1",
    "suite": "<mask>",
    "mode": "zero",
    "groups": [
        {"name": "none", "cells": 4, "accuracy": {"value": 1, "low": 0.5, "high": 1}, "drop": None, "draws": {}}
        | {"masks": {"none": []}},
        {"name": "random_2", "cells": 4, "accuracy": {"value": 0.75, "low": 0.3, "high": 0.95}}
        | {"drop": {"value": 0.25, "low": -0.1, "high": 0.6}, "draws": {"random_2_draw_1": 1, "random_2_draw_2": 0.5}}
        | {"masks": {"random_2_draw_1": [[0, 1]], "random_2_draw_2": [[0, 2]]}},
    ],
    "excess": {"2": {"value": 0.5, "low": 0.25, "high": 0.75}},
    "controls": {
        "random_2_draw_1": {"perplexity": 30.0, "closed_book": 0.5},
        "random_2_draw_2": {"perplexity": 40.0, "closed_book": 1.0},
    },
}


def test_an_ablation_is_a_table_of_its_arms(tmp_path: Path) -> None:
    write_records(tmp_path, sample_records([512], [0, 50]))
    (tmp_path / "ablation.json").write_text(json.dumps(ABLATION))
    page = render(load_run(tmp_path))
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert rows[0] == ["arm", "cells", "accuracy", "drop", "draws", "perplexity", "closed book"]
    assert rows[1] == ["none", "4", "1.00 [0.50, 1.00]", "", "", "", ""]
    assert rows[2][:5] == ["random 2", "4", "0.75 [0.30, 0.95]", "0.25 [−0.10, 0.60]", "0.50 to 1.00"]
    assert rows[2][5:] == ["35.0", "0.75"]
    assert "The top 2 cost 0.50 [0.25, 0.75] more accuracy than 2 others of the same layers." in page
    assert "&lt;mask&gt;: heads masked" in page


def test_an_ablation_of_another_schema_is_refused(tmp_path: Path) -> None:
    write_records(tmp_path, sample_records([512], [0]))
    (tmp_path / "ablation.json").write_text(json.dumps({**ABLATION, "schema": "retrieval-heads-ablation/9"}))
    with pytest.raises(ResultsError, match="this version reads 'retrieval-heads-ablation/1'"):
        load_run(tmp_path)


def test_the_content_pairs_cells_with_the_baselines() -> None:
    (suite,) = content(sample_run([sample_record(512), sample_record(1024)], baseline=[sample_record(512, value=0.5)]))[
        "suites"
    ]
    assert suite["isCompared"]
    assert suite["records"][0]["baseline"] == [0.75, 0.5, 0.0]
    assert "baseline" not in suite["records"][1]


def test_heads_are_shown_by_query_head_and_by_every_kv_head_that_may_be() -> None:
    table = sample_heads(4, 8)
    (heads,) = content(sample_run([], heads={"tale": table}))["heads"]
    assert [(view["group"], view["layers"][0]["heads"]) for view in heads["views"]] == [(1, 8), (2, 4), (4, 2), (8, 1)]
    copy = table.estimates["copy"].mean.round(4)
    assert heads["views"][1]["scores"]["copy"]["mean"] == copy.reshape(4, 4, 2).max(2).tolist()
    assert "low" not in heads["views"][1]["scores"]["copy"], "the ends of heads are none of a greatest head's"
    known = replace(table, layers=tuple(replace(layer, kv_heads=2) for layer in table.layers))
    (heads,) = content(sample_run([], heads={"tale": known}))["heads"]
    assert [view["label"] for view in heads["views"]] == ["query heads", "KV heads, greatest of 4 query heads"]


def test_how_far_scores_agree_is_told_as_heads_agree_does() -> None:
    table = sample_heads(4, 8)
    copy, mass = (np.zeros((4, 8)) for _ in range(2))
    copy[0, :4], mass[0, 1:5] = [0.9, 0.5, 0.4, 0.2], [0.3, 0.6, 0.7, 0.1]
    estimates = {name: Estimate(mean, mean, mean) for name, mean in (("copy", copy), ("mass", mass))}
    # Among the best of both are 3 of 4; above 0 by both are 0.5, 0.4, 0.2 against 0.3, 0.6, 0.7, which is reversed.
    assert agreements(replace(table, estimates=estimates)) == [("copy", "mass", 0.75, -1.0, 3)]


def test_the_samples_of_a_head_are_those_of_the_records() -> None:
    table = sample_heads(4, 8)
    figures = np.random.default_rng(0).random((3, 4, 8)).round(3)
    copied, mass = np.zeros((2, 4, 8), dtype=np.int16), np.full((2, 4, 8), 0.25, dtype=np.float32)
    copied[1, 2, 4] = 7
    steps = Steps.of(copied, mass)
    records = [
        sample_record(512 * (n + 1), kind="detect", heads={"copy": each.tolist()}, token_ids=[5, 6], steps=own)
        for n, (each, own) in enumerate(zip(figures, (None, steps, replace(steps, answer=("in", "side"))), strict=True))
    ]
    (heads,) = content(sample_run([sample_record(), *records], heads={"tale": table}))["heads"]
    samples = heads["samples"]
    assert samples["records"] == [0, 1, 2]
    assert samples["heads"][0] == (2, 4)
    assert samples["scores"]["copy"][0] == figures[:, 2, 4].tolist()
    assert [(each["sample"], each["copied"][0], each["mass"][0]) for each in samples["steps"]] == [
        (1, [0, 7], [0.25, 0.25]),
        (2, [0, 7], [0.25, 0.25]),
    ]
    assert ["answer" in each for each in samples["steps"]] == [False, True]
    (stored,) = content(sample_run([], heads={"tale": table}))["heads"]
    assert stored["samples"]["records"] == []


def test_of_many_samples_the_page_holds_the_best_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_samples, "MOST_FIGURES", 40)
    table = sample_heads(4, 8)
    records = [sample_record(kind="detect", heads={"copy": np.zeros((4, 8)).tolist()})] * 2
    assert len(head_samples.head_samples(table, records)["heads"]) == 20


def test_curves_are_means_with_intervals_over_each_axis_of_numbers() -> None:
    records = [sample_record(512, depth, seed, 1.0) for depth in (0, 50) for seed in range(3)]
    records += [sample_record(1024, 50, seed, 0.25) for seed in range(2)]
    (suite,) = content(sample_run(records, heads={}))["suites"]
    by_length, by_depth = suite["curves"]
    ((x, mean, low, high, count), short) = by_length["lines"][""]
    assert (x, mean, high, count) == (512, 1.0, 1.0, 6)
    assert low == pytest.approx(0.025 ** (1 / 6), abs=0.01), "Clopper and Pearson's of 6 of 6"
    assert short == (1024, 0.25, None, None, 2)
    assert [point[:2] for point in by_depth["lines"][""]] == [(0, 1.0), (50, 0.7)]


def test_the_dose_curve_is_that_of_the_best_and_of_others() -> None:
    counted = [dict(group, count=count) for group, count in zip(ABLATION["groups"], (0, 2), strict=True)]
    (dose,) = content(sample_run([sample_record()], heads={}, ablations=[{**ABLATION, "groups": counted}]))["doses"]
    assert dose["lines"] == {"others of the same layers": [(0, 1, 0.5, 1, 4), (2, 0.75, 0.3, 0.95, 4)]}


def test_facts_are_written_for_people() -> None:
    facts = {"model": "toy", "prompt_tokens": 96440, "feed_gap_share": 0.00123, "seconds": 1234.567}
    page = render(sample_run(facts=facts))
    for told in ("<dd>96,440</dd>", "<dd>0.1 %</dd>", "<dd>1,234.6</dd>"):
        assert told in page


def test_the_predecessors_prompt_gives_the_text_around_its_needle() -> None:
    record = Record(
        context_length=100,
        document_depth=0,
        needle="\nThe key is red.\n",
        prompt="Once. \nThe key is red.\nTwice.",
        text="red",
        rougeL=0.4,
        scores={"rougeL_f": 0.4},
        metric="rougeL_f",
    )
    (suite,) = content(sample_run([record], heads={}))["suites"]
    assert suite["records"][0]["around"] == ("Once. \n", "\nTwice.")


def test_thoughts_and_several_texts_of_a_context_are_told_apart_from_the_answer() -> None:
    stood = [
        {"role": role, "text": f" {role} ", "depth": 50, "achieved_depth": 49.96, "place": 3, "span": [3, 5]}
        for role in ("asked", "distractor")
    ]
    told = sample_record(thoughts="<think>Where?</think>", thought_tokens=2, insertions=stood)
    (suite,) = content(sample_run([told, sample_record(1024, insertions=stood[:1])], heads={}))["suites"]
    first, second = suite["records"]
    assert (first["thoughts"], first["thoughtTokens"], first["answerTokens"]) == ("<think>Where?</think>", 2, 1)
    assert first["inserted"] == [("asked", "asked", 50.0), ("distractor", "distractor", 50.0)]
    assert not {"thoughts", "thoughtTokens", "inserted"} & second.keys()


def test_a_run_folder_is_read_whole(tmp_path: Path) -> None:
    write_records(tmp_path, sample_records([512, 1024], [0, 50]))
    (tmp_path / "run.json").write_text('{"model": "toy"}')
    (tmp_path / "gates.json").write_text('{"gates": [{"gate": "mean(x) >= 1", "passed": false, "sentence": "no"}]}')
    (tmp_path / "detected-agg.json").write_text('{"model.layers.0.attn": {"0": 1}}')
    run = load_run(tmp_path)
    assert (len(run.records), run.facts, len(run.gates["gates"]), run.heads) == (4, {"model": "toy"}, 1, {})
    assert "1 of 1 gates broken" in render(run)


def test_a_killed_run_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    path = write_records(tmp_path, [sample_record(512), sample_record(1024)])
    path.write_bytes(path.read_bytes()[:-30])
    assert [record.context_length for record in load_run(path).records] == [512]


def test_of_a_cell_that_a_resumed_run_asked_again_the_last_record_counts(tmp_path: Path) -> None:
    path = write_records(tmp_path, [sample_record(512, status="error", reason="died"), sample_record(512)])
    assert [record.status for record in load_run(path).records] == ["pass"]


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda folder: (folder / "results.jsonl").write_text(""), "results.jsonl: holds no record"),
        (lambda folder: (folder / "results.jsonl").write_text('{"a": \n{}\n'), "results.jsonl:1: not a JSON object"),
        (
            lambda folder: (folder / "results.jsonl").write_text('{"schema": "other/9"}\n{}\n'),
            "results.jsonl:1: schema 'other/9' is not read by this version",
        ),
        (
            lambda folder: write_records(folder, [sample_record(512), sample_record(512, request="other")]),
            "was sent in two different ways: the results are of several runs",
        ),
        (lambda folder: None, "neither results.jsonl nor heads.json is in this folder"),
        (lambda folder: (folder / "heads.json").write_text("[]"), "heads.json: holds no heads"),
        (lambda folder: (folder / "heads.json").write_text('{"a": {"b": 1}}'), "heads.json: not a file of heads"),
    ],
    ids=["empty", "torn inside", "another schema", "mixed runs", "nothing", "no heads", "another file"],
)
def test_a_run_that_cannot_be_shown_says_why(tmp_path: Path, write: Any, sentence: str) -> None:
    write(tmp_path)
    with pytest.raises(ResultsError, match=re.escape(sentence)):
        load_run(tmp_path)


def test_a_score_that_is_no_number_is_refused() -> None:
    broken = sample_record(512).model_copy(update={"scores": {"rouge1_recall_novel": math.nan}})
    with pytest.raises(ResultsError, match="score rouge1_recall_novel is nan, not a number; run the cell again"):
        render(sample_run([broken]))
    with pytest.raises(ResultsError, match="there is nothing to report"):
        render(sample_run([], heads={}))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"the report cannot be written \(.*\); choose another folder"):
        write_report(sample_run(), tmp_path / "file" / "report.html")


@pytest.mark.parametrize(
    ("content", "score"),
    [
        ({"model.layers.3.attn": {"0": [1.0, 0.5], "2": [0.0]}}, "copy"),
        ({"model.layers.3.attn": {"0": 0.75, "2": 0.0}}, "copy"),
        ({"3-0": [1.0, 0.5], "3-2": [0.0]}, "copy_reference"),
    ],
    ids=["detected.json", "detected-agg.json", "the paper's"],
)
def test_every_head_file_becomes_a_table(tmp_path: Path, content: Any, score: str) -> None:
    path = tmp_path / "heads.json"
    path.write_text(json.dumps(content))
    table = read_table(path)
    assert [layer.number for layer in table.layers] == [3]
    assert str(table.estimates[score].mean.tolist()) == "[[0.75, nan, 0.0]]"
    assert table.ranked(score) == [(0, 0), (0, 2)]


def test_a_mean_of_a_tenth_is_a_retrieval_heads_whatever_its_sum(tmp_path: Path) -> None:
    shares = [0.13043478, 0.08695652, 0.08260870]  # of 23 tokens, rounded as they are stored: 0.09999999 and so on
    records = [
        sample_record(
            512 * (n + 1), kind="detect", heads={"copy": [[share]], "copy_reference": [[share]]}, cell=f"detect/{n}"
        )
        for n, share in enumerate(shares)
    ]
    detection = aggregate(records, [Layer("model.layers.0", 0, 1)])
    assert detection.estimates["copy"].mean[0, 0] < 0.1
    write_heads(detection, tmp_path, {"suite": "tale"})
    for table in (detection.table("tale", {}), read_table(tmp_path / "heads.json")):
        assert table.estimates["copy"].mean[0, 0] == 0.1
    assert detection.retrieval_heads() == 1


def test_the_kinds_of_layers_stand_beside_the_axis() -> None:
    layers = [
        Layer("0", 0, 0, kind="MambaMixer2"),
        Layer("1", 1, 4, 128),
        Layer("2", 2, 4),
        Layer("3", 3, 8, kind="gated delta"),
    ]
    assert marked_layers(layers) == {0: "unscored MambaMixer2", 1: "sliding window", 3: "gated delta"}
    assert marked_layers([Layer(str(n), n, 4, kind="latent attention") for n in range(3)]) == {}


def test_one_picture_that_cannot_be_drawn_leaves_the_others(tmp_path: Path) -> None:
    records = [sample_record(512, scores={}, status="error", reason="died")]
    drawn = draw_run(sample_run(records, heads={"tale": sample_heads(2, 2)}), tmp_path)
    names = {path.name for path in drawn.paths}
    assert {"heatmap.png", "detect_heatmap.svg", "head_scores.png", "report.html"} <= names
    assert drawn.complaints == []
    assert data_in((tmp_path / "report.html").read_text())["suites"][0]["records"][0]["status"] == "error"


def test_one_single_cell_is_drawn(tmp_path: Path) -> None:
    drawn = draw_run(sample_run([sample_record(512)], heads={}), tmp_path)
    assert not drawn.complaints
    assert {path.name for path in drawn.paths} >= {"heatmap.png", "profiles.png", "report.html"}
