"""What a researcher does with a report: finds failures, sends a link to one, opens a head, compares scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from browser_page import Page

from retrieval_heads.report import StoredRun
from retrieval_heads.runs.steps import Steps
from sample_run import sample_heads, sample_record, sample_records, sample_run

pytestmark = pytest.mark.browser


@pytest.fixture
def detection() -> StoredRun:
    """Heads with three samples, one of which has its steps."""
    table = sample_heads(4, 8)
    copied, mass = np.zeros((3, 4, 8), dtype=np.int16), np.full((3, 4, 8), 0.1, dtype=np.float32)
    copied[1, 2, 4], mass[1, 2, 4] = 2, 0.9
    steps = replace(Steps.of(copied, mass), answer=("In", " brass", "."), needle=(" the", " brass", " tube"))
    records = [
        sample_record(
            512 * (1 + number),
            kind="detect",
            cell=f"detect/tale/{number}",
            heads={"copy": table.estimates["copy"].mean.tolist()},
            steps=steps if number == 1 else None,
        )
        for number in range(3)
    ]
    return sample_run(records, heads={"tale": table})


def choose(page: Page, label: str, value: str) -> None:
    page.run(
        "const select = [...document.querySelectorAll('label')].find((each) => each.firstChild.textContent"
        " === arguments[0]).querySelector('select');"
        "select.value = arguments[1]; select.dispatchEvent(new Event('change'))",
        label,
        value,
    )


def listed(page: Page) -> list[str]:
    return [row.text for row in page.all("table.records tbody tr")]


def test_failures_are_listed_filtered_searched_and_leafed_through(page: Page, report: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    records = [
        sample_record(512, 0),
        sample_record(512, 50, value=0.25),
        sample_record(1024, 0, value=0.0, text="In a Blue hat."),
        sample_record(1024, 50, status="error", reason="refused"),
    ]
    page.open(report(sample_run(records, heads={})))
    assert [row.partition("%")[0] for row in listed(page)] == [
        "512 tokens, depth 50 ",
        "1,024 tokens, depth 0 ",
        "1,024 tokens, depth 50 ",
    ]
    choose(page, "Show", "low")
    assert len(listed(page)) == 2
    page.one("input[type=search]").send_keys("blue 1,024")
    assert listed(page) == ["1,024 tokens, depth 0 % 0 In a Blue hat."]
    page.one("input[type=search]").clear()
    page.one("input[type=search]").send_keys(Keys.SPACE)
    page.all("table.records button")[0].click()
    assert "1 of 2" in page.one("#record").text
    page.press(Keys.ARROW_RIGHT)
    assert page.one("#record-title").text == "1,024 tokens, depth 0 %"
    assert page.run("return decodeURIComponent(location.hash)") == "#cell=niah/tale/seed_0/len_1024/depth_0"
    page.press(Keys.ESCAPE)
    assert page.run("return new Promise((done) => setTimeout(() => done(location.hash)))") == ""
    assert page.run("return document.activeElement.textContent") == "512 tokens, depth 50 %"


def test_an_address_opens_a_cell_or_a_head(page: Page, report: Any, detection: StoredRun) -> None:
    path = report(replace(detection, records=[*detection.records, *sample_records([512, 1024], [0, 50])]))
    for address, title in (
        ("#cell=niah/tale/seed_0/len_1024/depth_50", "1,024 tokens, depth 50 %"),
        ("#cell=detect/tale/2", "1,536 tokens, depth 0 %"),
        ("#head=2-4", "Layer 2, head 4"),
        ("#head=tale/0-1", "Layer 0, head 1"),
    ):
        page.open(path)
        page.run("location.hash = arguments[0]", address)
        assert page.run("return new Promise((done) => setTimeout(() => done(document.querySelector('dialog').open)))")
        assert page.one("#record-title").text == title
    page.driver.get(f"{path.as_uri()}#head=2-4")
    page.driver.refresh()
    assert page.one("#record-title").text == "Layer 2, head 4"
    for address in ("#head=99-0", "#cell=none", "#cell=%", "#other=1", "#toString=1"):
        page.open(path)
        page.run("location.hash = arguments[0]", address)
        assert not page.one("#record").is_displayed()
    assert page.errors() == []


def test_a_map_and_a_curve_are_tables_as_well(page: Page, report: Any) -> None:
    records = [sample_record(length, 0, seed, 0.75) for length in (512, 1024) for seed in range(5)]
    page.open(report(sample_run([*records, sample_record(1024, 50, status="skipped", reason="x")], heads={})))
    tables = page.all("section details")
    assert not page.all("section details table")
    for each in tables[:2]:
        each.find_element("css selector", "summary").click()
    texts = [each.find_element("css selector", "tbody").text for each in tables[:2]]
    assert texts[0].splitlines() == ["0 0.750 0.750", "50 not in the results skipped"]
    lines = texts[1].splitlines()
    assert [line.split()[0:2] for line in lines] == [["512", "0.750"], ["1,024", "0.750"]]
    assert all(line.endswith(" 5") and "–" in line for line in lines)


def test_a_head_that_is_clicked_shows_its_samples_and_the_tokens_that_it_copied(
    page: Page, report: Any, detection: StoredRun
) -> None:
    page.open(report(detection))
    page.point(page.cell(0, 2, 4), click=True)
    said = page.one("#record").text
    assert page.one("#record-title").text == "Layer 2, head 4"
    assert "a retrieval head" in said
    assert "copy 0.900 0.810 – 0.990 1 of 32" in said
    assert "512 tokens, depth 0 % retrieved 0.900" in said
    assert [token.text.strip() for token in page.all("#record .tokens .token.copied")] == ["brass", "brass"]
    assert "Copied: brass ← needle token 2 (brass)." in said
    page.all("#record table:not(.scores) tbody button")[1].click()
    assert page.one("#record-title").text == "1,024 tokens, depth 0 %"
    assert "2 of 3" in page.one("#record").text


def test_heads_without_stored_samples_say_so(page: Page, report: Any) -> None:
    page.open(report(sample_run([], heads={"tale": sample_heads(4, 8)})))
    page.all("table.heads tbody button")[0].click()
    assert "No samples are stored beside these heads." in page.one("#record").text


def test_scores_stand_side_by_side_and_switch_to_kv_heads(page: Page, report: Any, detection: StoredRun) -> None:
    page.open(report(detection))
    assert [each.text for each in page.all(".multiple h4")] == ["copy", "mass"]
    assert "100 %" in page.one("table.agreement").text
    first = "return document.querySelector('table.heads tbody tr').innerText.split(/\\s+/)"
    assert page.run(first)[:3] == ["1", "2-4", "0.900"]
    assert page.run(first).count("#1") == 2, "its rank by each score"
    choose(page, "Heads", "2")
    assert page.run(first)[:3] == ["1", "2-1", "0.900"]
    page.point(page.cell(0, 2, 1))
    assert page.one("#tip").text.splitlines()[0] == "Layer 2, KV head 1"
    page.point(page.cell(0, 2, 1), click=True)
    assert "Query heads 4 to 7 of the layer share it" in page.one("#record").text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_cell_of_any_score_has_an_edge_that_the_page_does_not_swallow(page: Page, report: Any, dark: bool) -> None:
    page.look(dark=dark)
    page.open(report(sample_run([sample_record(512, 0), sample_record(1024, 0, value=0.0)], heads={})))
    shades = page.run(
        """
        const host = document.querySelector(".heatmap"), {left, top, width} = host.plot;
        const pen = host.querySelector("canvas").getContext("2d");
        const part = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        const luminance = ([red, green, blue]) =>
          0.2126 * part(red / 255) + 0.7152 * part(green / 255) + 0.0722 * part(blue / 255);
        const page = luminance(getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number));
        return [0, 1].map((column) => {
          const edge = luminance([...pen.getImageData(left + column * width + 20, top, 1, 1).data]);
          return (Math.max(edge, page) + 0.05) / (Math.min(edge, page) + 0.05);
        });
        """
    )
    assert min(shades) >= 3, "WCAG 1.4.11: what is needed to see a thing stands out from what is beside it"
