"""A headless Chromium that opens reports from disk; every test here is skipped where it or its driver is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_page import SWITCHES, Page

from retrieval_heads.report import StoredRun, write_report
from sample_run import sample_run


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The driver of one browser for all tests."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver_binary = shutil.which("chromedriver")
    if binary is None or driver_binary is None:
        pytest.skip("no chromium and chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_binary))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(chromium: Any) -> Page:
    """The browser's page, light and of a desktop's size."""
    made = Page(chromium)
    made.look()
    return made


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Path]:
    """Writes the report of a run."""

    def write(run: StoredRun | None = None) -> Path:
        return write_report(run or sample_run(), tmp_path / "report.html")

    return write
