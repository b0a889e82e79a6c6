"""Small multiples on a matrix's page: the change of each setting, place by place."""

from __future__ import annotations

import re

import pytest

from retrieval_heads.matrix.comparison import compare
from retrieval_heads.report.differences import small_maps
from retrieval_heads.report.matrix import shared_characters
from retrieval_heads.report.page import render
from retrieval_heads.runs.record import Record
from sample_run import sample_record, sample_run


def cells(setting: str, values: dict[tuple[int, int], float]) -> list[Record]:
    suite = "tale" if setting == "reference" else f"tale@{setting}"
    return [
        sample_record(length, depth, value=value, suite=suite, setting=setting, cell=f"{length}/{depth}")
        for (length, depth), value in values.items()
    ]


PLACES = [(512, 0), (512, 50), (1024, 0), (1024, 50)]
RECORDS = [
    *cells("reference", dict(zip(PLACES, (1, 0, 1, 1), strict=True))),
    *cells("again", dict.fromkeys(PLACES[:3], 1)),
    *cells("fp8", dict(zip(PLACES, (1, 0, 1, 0), strict=True))),
]


def test_a_map_of_each_setting_over_the_same_places() -> None:
    again, fp8 = small_maps(compare(RECORDS))
    assert [again["setting"], fp8["setting"]] == ["again", "fp8"]
    assert again["columns"] == fp8["columns"] == ["512", "1024"]
    assert [row["depth"] for row in fp8["rows"]] == ["0", "50"]
    shades = [[cell["shade"] for cell in row["cells"]] for row in fp8["rows"]]
    assert shades == [[0, 0], [0, -5]]
    rose, unasked = again["rows"][1]["cells"]
    assert (rose["text"], rose["shade"]) == ("+1.00", 5)
    assert (unasked["text"], unasked["shade"]) == ("", None)


def test_whatever_changed_has_a_shade() -> None:
    one_of_twenty = [
        sample_record(512, 0, seed, value=float(setting == "reference" or seed > 0), setting=setting, suite=suite)
        for setting, suite in (("reference", "tale"), ("fp8", "tale@fp8"))
        for seed in range(20)
    ]
    ((row,),) = ([one["rows"] for one in small_maps(compare(one_of_twenty))],)
    (cell,) = row[0]["cells"]
    assert (cell["text"], cell["shade"], cell["count"]) == ("−0.05", -1, 20)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("keeps a key inside it", "keeps a key in the hall", "keeps a key "),  # not within a word
        ("The answer is: jam", "The answer is:", "The answer is:"),
        ("inside", "inner", ""),
        ("她把钥匙放在望远镜里", "她把钥匙放在抽屉里", "她把钥匙放在"),  # no spaces: a word's start is not known
        ("the same", "the same", "the same"),
    ],
)
def test_answers_part_at_the_start_of_a_word(one: str, other: str, shared: str) -> None:
    assert one[: shared_characters(one, other)] == shared


def test_cells_that_part_are_told_apart_by_needle_and_seed() -> None:
    records = [
        sample_record(512, 0, seed, value=float(setting == "reference"), setting=setting, suite=suite)
        for setting, suite in (("reference", "tale"), ("fp8", "tale@fp8"))
        for seed in (1, 2)
    ]
    page = render(sample_run(records, heads={}))
    assert [name.partition(", parts")[0] for name in re.findall(r'class="sides"><h3>(.*?)</h3>', page)] == [
        "key, seed 1, 512/0",
        "key, seed 2, 512/0",
    ]


def test_a_great_grid_has_no_small_map() -> None:
    places = {(512 * length, depth): 1.0 for length in range(1, 21) for depth in range(20)}
    assert small_maps(compare([*cells("reference", places), *cells("fp8", places)])) == []


def test_the_page_of_a_matrix_sums_up_the_reference_and_shows_every_setting() -> None:
    page = render(sample_run(RECORDS, heads={}))
    assert re.findall(r'<h2 class="small">(.*?)</h2>', page) == ["tale"]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == ["again", "fp8"]
    assert "512 tokens" in page
