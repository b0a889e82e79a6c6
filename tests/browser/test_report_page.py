"""The report as a reader meets it: opened from disk in a real browser."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from browser_page import Page

from sample_run import NEEDLE, QUESTION, sample_heads, sample_record, sample_records, sample_run

pytestmark = pytest.mark.browser

HOSTILE = (
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 2'>",
    "<!--<script>",
    "\"quotes\" and 'quotes' & &amp; &lt;b&gt;",
    "\u202eright to left\u202c and \u2028 a line\u2029",
    "{{ 7 * 7 }} ${window.broken = 3}",
    "\ud800 half a pair",
)


def test_it_opens_from_disk_without_an_error_and_asks_for_nothing_else(page: Page, report: Any) -> None:
    path = report()
    page.open(path)
    assert [heading.text for heading in page.all("h2")][-4:] == [
        "tale: score by length and depth",
        "Failures",
        "tale: heads",
        "Run",
    ]
    page.point(page.cell(0, 1, 1), click=True)
    assert page.errors() == []
    assert page.requests() == [path.as_uri()]


def test_hovering_a_cell_shows_its_place_score_and_answer(page: Page, report: Any) -> None:
    page.open(report(sample_run([sample_record(512, 0), sample_record(2048, 50, value=0.25)])))
    page.point(page.cell(0, 1, 1))
    tip = page.one("#tip").text
    assert tip.splitlines()[0] == "2,048 tokens, depth 50 %"
    assert "words not in the question 0.25" in tip
    assert "The spare key is in his pocket." in tip
    page.point(page.cell(0, 0, 1))
    assert "not in the results" in page.one("#tip").text
    page.point((5, 5))
    assert not page.one("#tip").is_displayed()


def test_a_click_opens_the_record_with_matched_words_and_the_needle_in_its_text(page: Page, report: Any) -> None:
    page.open(report())
    page.point(page.cell(0, 1, 0), click=True)
    said = page.one("#record").text
    for part in (
        "512 tokens, depth 50 %",
        QUESTION,
        "inside the brass telescope",
        "A boat sailed by.",
        "Nobody saw it",
    ):
        assert part in said
    assert [mark.text for mark in page.all("#record .said mark:not(.echo):not(.needle)")] == [
        "inside",
        "brass",
        "telescope",
    ]
    assert [mark.text for mark in page.all("#record .said mark.echo")] == ["the"]
    assert page.one("#record mark.needle").text == NEEDLE
    assert page.run("return document.querySelector('.place i').style.left") == "50%"


def test_thoughts_are_folded_and_the_texts_of_a_context_are_listed(page: Page, report: Any) -> None:
    stood = [
        {"role": role, "text": f"the {role} text", "depth": depth, "achieved_depth": depth, "place": 3, "span": [3, 5]}
        for role, depth in (("asked", 10.0), ("distractor", 72.5))
    ]
    page.open(
        report(sample_run([sample_record(thoughts="<think>In a hat?</think>", thought_tokens=2, insertions=stood)]))
    )
    page.point(page.cell(0, 0, 0), click=True)
    assert page.one("#record summary").text == "Thoughts before the answer: 2 tokens, not scored"
    assert "In a hat?" not in page.one("#record").text
    page.one("#record summary").click()
    assert "<think>In a hat?</think>" in page.one("#record").text
    assert "distractor 72.5 % the distractor text" in page.one("#record").text


def test_the_keyboard_alone_reaches_and_opens_a_cell(page: Page, report: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page.open(report(sample_run(sample_records([512, 1024, 2048], [0, 50, 100]), heads={})))
    page.press(Keys.TAB, Keys.TAB)  # past the choice of a score
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert page.one("#tip").text.splitlines()[0] == "1,024 tokens, depth 100 %"
    assert page.run("return document.querySelector('[role=status]').textContent").startswith(
        "1,024 tokens, depth 100 %"
    )
    page.press(Keys.ENTER)
    assert page.one("#record-title").text == "1,024 tokens, depth 100 %"
    page.press(Keys.ESCAPE)
    assert not page.one("#record").is_displayed()
    assert page.run("return document.activeElement.className") == "heatmap"


def test_several_records_of_a_cell_are_leafed_through(page: Page, report: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page.open(report(sample_run([sample_record(512, 0, seed, 1.0 - seed) for seed in (0, 1)])))
    page.point(page.cell(0, 0, 0))
    assert "0.50, mean of 2 records" in page.one("#tip").text
    page.point(page.cell(0, 0, 0), click=True)
    assert "1 of 2" in page.one("#record").text
    page.press(Keys.ARROW_RIGHT)
    assert "2 of 2" in page.one("#record").text
    assert "not retrieved" in page.one("#record").text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_a_model_or_a_file_says_stays_text(page: Page, report: Any, hostile: str) -> None:
    record = sample_record(
        text=hostile, needle_name=hostile, question=hostile + QUESTION, suite=hostile, reason=hostile
    )
    gate = {"gate": hostile, "sentence": hostile, "suite": hostile, "passed": False, "worst": [hostile]}
    run = sample_run(
        [record],
        facts={"model": hostile, "engine": hostile},
        gates={"gates": [gate], "notes": [hostile]},
        config=hostile,
    )
    page.open(report(run))
    page.point(page.cell(0, 0, 0), click=True)
    shown = page.run("return JSON.stringify(document.querySelectorAll('#record .said')[2].textContent)")
    assert json.loads(shown) == hostile
    assert page.run("return window.broken") is None
    assert page.errors() == []
    # Two of ours and no more: the data and the page's own.
    assert len(page.all("script")) == 2
    assert not page.all("img")


def test_a_script_that_is_not_the_reports_own_does_not_run(page: Page, report: Any) -> None:
    page.open(report())
    page.run(
        "const script = document.createElement('script');"
        "script.textContent = 'window.broken = 1'; document.body.append(script)"
    )
    assert page.run("return window.broken") is None
    assert "Content Security Policy" in "".join(page.errors())


def test_an_answer_of_a_megabyte_opens_in_part(page: Page, report: Any) -> None:
    page.open(report(sample_run([sample_record(text="<b>brass</b> " * 80_000)])))
    page.point(page.cell(0, 0, 0), click=True)
    assert "The answer has 1,040,000 characters; results.jsonl holds them all." in page.one("#record").text
    length = "return document.querySelector('.said.long').textContent.length"
    assert page.run(length) == 4000
    page.one("#record .said.long + button").click()
    assert page.run(length) == 20_000


def test_skipped_and_failed_cells_do_not_look_like_a_score_of_zero(page: Page, report: Any) -> None:
    records = [
        sample_record(512, 0, value=0.0),
        sample_record(1024, 0, status="skipped", reason="too long"),
        sample_record(2048, 0, status="error", reason="refused"),
    ]
    page.open(report(sample_run(records)))
    looks = page.run(
        """
        const host = document.querySelector(".heatmap"), {left, top, width, height} = host.plot;
        const pen = host.querySelector("canvas").getContext("2d");
        return [0, 1, 2].map((column) => {
          const {data} = pen.getImageData(left + column * width + 8, top + 8, 16, 8);
          return [...data].join();
        });
        """
    )
    assert len(set(looks)) == 3
    zero = looks[0].split(",")[:3]
    assert zero == ["32", "17", "75"]  # #20114b, the deep end of the scale
    assert "skipped" in page.all(".legend")[0].text
    page.point(page.cell(0, 0, 1), click=True)
    assert "too long" in page.one("#record").text


def test_the_change_against_a_baseline_is_shown_cell_by_cell(page: Page, report: Any) -> None:
    now = [sample_record(512, 0, value=0.25), sample_record(1024, 0)]
    page.open(report(sample_run(now, baseline=[sample_record(512, 0)])))
    page.run(
        "const select = document.querySelectorAll('select')[1];"
        "select.value = 'yes'; select.dispatchEvent(new Event('change'))"
    )
    page.point(page.cell(0, 0, 0))
    assert "change in ROUGE-1 recall, words not in the question \u22120.75" in page.one("#tip").text
    page.point(page.cell(0, 0, 1))
    assert "not measured in both runs" in page.one("#tip").text


def test_heads_are_sorted_by_any_column_and_found_from_the_map(page: Page, report: Any) -> None:
    page.open(report(sample_run([], heads={"tale": sample_heads(4, 8)})))
    rows = "return [...document.querySelectorAll('table.heads tbody tr')]"
    rows += ".map((row) => row.children[1].textContent)"
    assert page.run(rows)[0] == "2-4"
    page.all("th button")[0].click()
    assert page.run(rows)[:3] == ["0-0", "0-1", "0-2"]
    assert page.run("return document.querySelector('th[aria-sort]').ariaSort") == "ascending"
    assert page.run("return document.activeElement.textContent") == "Head"
    page.all("th button")[2].click()  # mass
    assert page.run(rows)[0] == "2-4"
    page.point(page.cell(0, 3, 7))
    assert page.one("#tip").text.splitlines()[0] == "Layer 3, head 7, sliding window of 128"
    page.point(page.cell(0, 3, 7), click=True)
    assert page.one("tr.chosen").text.split()[1] == "3-7"


def test_layers_that_cannot_be_scored_are_named(page: Page, report: Any) -> None:
    table = sample_heads(4, 8)
    layers = (*table.layers[:3], replace(table.layers[3], heads=0, sliding_window=None, kind="MambaMixer2"))
    for estimate in table.estimates.values():
        estimate.mean[3] = math.nan
    page.open(report(sample_run([], heads={"tale": replace(table, layers=layers)})))
    assert "not scored: layers of MambaMixer2" in page.one("main").text
    page.point(page.cell(0, 3, 7))
    assert page.one("#tip").text.splitlines() == ["Layer 3: MambaMixer2", "not scored"]
    assert "3-7" not in page.run("return [...document.querySelectorAll('tbody td')].map((cell) => cell.textContent)")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_a_narrow_screen_in_light_and_dark(page: Page, report: Any, dark: bool) -> None:
    page.look(width=360, height=700, dark=dark)
    page.open(report(sample_run(sample_records(range(512, 512 * 20, 512), range(0, 101, 10)))))
    assert page.run("return document.documentElement.scrollWidth") <= 360
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 22, 26)") == dark
    page.point(page.cell(0, 0, 18), click=True)
    assert page.run("const box = document.querySelector('dialog').getBoundingClientRect(); return box.width") == 360
    heading = "const style = getComputedStyle(document.querySelector('dialog h2')); return %s"
    assert page.run(heading % "parseFloat(style.height) < 1.7 * parseFloat(style.fontSize)"), "it stands in one line"


def test_two_thousand_cells_and_five_thousand_heads_are_few_elements(
    page: Page, report: Any, record_property: Callable[[str, object], None]
) -> None:
    """Lag is elements that a browser has to lay out; how long it took here stands in the JUnit XML."""
    records = sample_records(range(1000, 51_000, 1000), range(0, 100, 5), seeds=(0, 1))
    page.open(report(sample_run(records, heads={"tale": sample_heads(80, 64)})))
    assert len(records) == 2000
    assert page.run("return document.querySelectorAll('*').length") < 2000
    loaded = page.run("return performance.timing.domContentLoadedEventEnd - performance.timing.responseEnd")
    record_property("milliseconds until it can be used", loaded)
    # A hundred moves of the pointer, each with its layout done.
    moved = page.run(
        """
        const map = document.querySelectorAll(".heatmap")[1], box = map.querySelector("canvas").getBoundingClientRect();
        const began = performance.now();
        for (let step = 0; step < 100; step += 1) {
          const place = {clientX: box.left + map.plot.left + step * 5, clientY: box.top + 50 + step};
          map.firstChild.dispatchEvent(new PointerEvent("pointermove", {...place, pointerType: "mouse"}));
          map.querySelector(".cursor").getBoundingClientRect();
        }
        return (performance.now() - began) / 100;
        """
    )
    record_property("milliseconds for a move", moved)
    assert "Layer" in page.one("#tip").text
    began = "const began = performance.now();"
    sorting = page.run(
        f"{began} document.querySelectorAll('th button')[1].click();"
        "document.querySelector('table.heads').getBoundingClientRect(); return performance.now() - began"
    )
    record_property("milliseconds for sorting", sorting)
    assert page.run("return document.querySelector('th[aria-sort]').textContent") == "copy"
