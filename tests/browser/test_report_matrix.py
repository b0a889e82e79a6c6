"""The page of a matrix: settings side by side, on a desktop and on a phone."""

from __future__ import annotations

from typing import Any

import pytest
from browser_page import Page

from sample_run import sample_record, sample_run

SETTINGS = ("reference", "again", "fp8-kv", "cold")
GATE = "fp8-kv: mean(pass_rate) >= reference - 0.02"


def matrix_run() -> Any:
    records = [
        sample_record(length, depth, value=float(setting != "fp8-kv" or depth < 50), setting=setting, suite=suite)
        for setting in SETTINGS
        for suite in ["tale" if setting == "reference" else f"tale@{setting}"]
        for length in (512, 1024, 2048, 4096)
        for depth in (0, 25, 50, 75, 100)
    ]
    gate = {"gate": GATE, "suite": "niah/tale@fp8-kv", "outcome": "inconclusive", "passed": False, "sentence": "..."}
    return sample_run(records, heads={}, gates={"gates": [gate]})


@pytest.mark.parametrize("width", [1400, 390])
def test_it_fits_and_nothing_lies_on_anything_else(page: Page, report: Any, width: int) -> None:
    page.look(width=width)
    page.open(report(matrix_run()))
    assert not page.errors()
    assert page.run("return document.documentElement.scrollWidth") <= width
    mark = page.one(".gates .mark")
    assert "inconclusive" in mark.text
    assert page.run("return arguments[0].scrollWidth <= arguments[0].clientWidth", mark)


def test_maps_of_differences_stand_side_by_side_on_one_scale(page: Page, report: Any) -> None:
    page.look(width=1400)
    page.open(report(matrix_run()))
    maps = page.all(".maps figure")
    assert [one.find_element("css selector", "figcaption").text for one in maps] == ["again", "fp8-kv", "cold"]
    assert len({one.location["y"] for one in maps}) == 1
    lost = maps[1].find_elements("css selector", "td.shade-5")
    assert len(lost) == 12
    assert {one.text for one in lost} == {"−1.00"}
    assert not maps[0].find_elements("css selector", "tbody td:not(.shade0)")
    colours = [page.run("return getComputedStyle(arguments[0]).backgroundColor", one) for one in (lost[0], maps[1])]
    assert len(set(colours)) == 2
