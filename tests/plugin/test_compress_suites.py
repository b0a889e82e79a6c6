"""Suites of kind compress: their items, what streams in each arm, and the figures."""

from __future__ import annotations

import json
from typing import Any

import pytest
from project import Project

RETRIEVAL = [[1, 0], [2, 3]]
SWEEP = {"context_lengths": [128, 256], "document_depths": [0, 100]}


def compression(project: Project, **compress: Any) -> None:
    """A suite of four cells an arm, beside the suite that finds its heads."""
    project.suite("heads", kind="detect", sweep={"context_lengths": [128], "document_depths": [0, 100]})
    said = {"heads": "detect/heads", "scores": ["copy", "random"], "keep": [1.0, 0.5, 0.25, 0], "draws": 2}
    project.suite("small", kind="compress", sweep=SWEEP, compress=said | {"sink": 4, "recent": 32} | compress)


def test_one_item_an_arm_and_cell_and_one_arm_that_keeps_everything(project: Project) -> None:
    compression(project)
    result = project.run("--co", "-q", "-m", "compress")
    arms = [line.rpartition("[")[2].partition("-len")[0] for line in result.outlines if "::" in line]
    assert list(dict.fromkeys(arms)) == [
        *("none", "copy_keep_0.5", "copy_keep_0.25", "copy_keep_0"),
        *(f"random_keep_{keep}_draw_{draw}" for keep in ("0.5", "0.25", "0") for draw in (1, 2)),
    ]
    assert len(arms) == 40


def test_kept_heads_answer_and_the_smallest_share_is_told(project: Project, workers: list[str]) -> None:
    compression(project)
    project.behave(retrieval_heads=RETRIEVAL, kv_heads=2)
    result = project.run(*workers)
    assert result.ret == 0
    found: dict[str, Any] = json.loads((project.latest / "compression.json").read_text("utf-8"))
    by_place = {(point["ranking"], point["keep"]): point for point in found["points"]}
    assert [by_place["copy", keep]["accuracy"]["value"] for keep in (0.5, 0.25, 0)] == [1, 1, 0]
    kept = by_place["copy", 0.25]["kept"]["copy_keep_0.25"]
    assert kept == [[1, 0], [2, 1]], "each head's KV head, of eight"
    assert by_place["", 1]["bytes_share"] == 1
    window = [36 / length for length in (128, 256)]
    assert by_place["copy", 0.25]["bytes_share"] == pytest.approx(0.25 + 0.75 * sum(window) / 2)
    least = {(one["ranking"], one["length"]): (one["share"], one["low"], one["high"]) for one in found["least"]}
    assert least.keys() == {(ranking, length) for ranking in ("copy", "random") for length in (None, 128, 256)}
    assert least["copy", None][0] == 0.25
    assert least["copy", None][2] == 1, "four cells are too few to be sure of any"
    assert found["stream"] == {"sink": 4, "recent": 32, "anchor": "row", "prefill": False}
    result.stdout.fnmatch_lines(
        [
            "*- compression: small -*",
            "*copy  0.25      4  1.00 [[]*",
            "accuracy above that of random, on the same cells:",
            "        keep *copy",
            "        0.25 *[]]",
            "smallest share that keeps 95 % of accuracy [[]that may, that surely does[]]:",
            "      tokens            copy *random",
            "         all  0.25 [[]0.25, 1[]] *",
            "         128 *0.25 *",
            "8 KV heads; in rows behind the context the others see 4 first tokens and 32 last ones before each row",
            "this is the quality of a compression: *",
        ]
    )
    masks = {record.arm: record.mask for record in project.records() if record.suite == "small"}
    assert masks["copy_keep_0.25"] is not None
    assert len(masks["copy_keep_0.25"].heads) == 12, "two query heads of each of six KV heads"
    assert masks["copy_keep_0.25"].stream is not None


@pytest.mark.parametrize(
    ("compress", "told"),
    [
        ({"keep": [1.0]}, "keep: nothing is compressed; a share below 1 is expected"),
        ({"keep": [0.5, 0.5]}, "keep: 0.5 is given twice"),
        ({"anchor": "context", "prefill": True}, "the context's own rows have no end of it behind them"),
        ({"heads": None}, "copy is a score of heads; expected `heads:`"),
        ({"scores": ["mass", "nothing"]}, "nothing"),
        ({"scores": ["induction"]}, "induction is measured when a run's cells are done"),
        ({"heads": "none.json"}, "compress.heads: "),
        ({"recent": 0}, "recent"),
    ],
)
def test_what_cannot_be_compressed_is_told_before_anything_is_asked(
    project: Project, compress: dict[str, Any], told: str
) -> None:
    compression(project, **compress)
    result = project.run()
    assert result.ret != 0
    assert told in result.stdout.str()
    assert not (project.path / "reports").exists()
