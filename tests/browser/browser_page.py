"""A report in a headless browser, as tests handle it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Chromium's own background requests would be looked for in vain on a machine without a network.
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1280,900",
)


@dataclass(frozen=True)
class Page:
    """A report in the browser."""

    driver: Any

    def open(self, path: Path) -> None:
        """Open it from disk, with empty logs."""
        self.driver.get("about:blank")
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(path.as_uri())

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        (element,) = self.all(selector)
        return element

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def cell(self, map_index: int, row: int, column: int) -> tuple[int, int]:
        """The middle of a heatmap's cell in the window, the heatmap scrolled into view."""
        return tuple(  # type: ignore[return-value]
            self.run(
                """
                const host = document.querySelectorAll(".heatmap")[arguments[0]];
                host.scrollIntoView({block: "center"});
                const canvas = host.querySelector("canvas"), box = canvas.getBoundingClientRect();
                const {left, top, width, height} = host.plot;
                return [
                  Math.round(box.left + left + (arguments[2] + 0.5) * width),
                  Math.round(box.top + top + (arguments[1] + 0.5) * height),
                ];
                """,
                map_index,
                row,
                column,
            )
        )

    def point(self, place: tuple[int, int], *, click: bool = False) -> None:
        """Move the mouse to a place of the window."""
        kinds = ("mouseMoved", "mousePressed", "mouseReleased") if click else ("mouseMoved",)
        for kind in kinds:
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.cdp("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], **button)

    def press(self, *keys: str) -> None:
        """Type keys into whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, parameters)

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Set the window's size and the colour scheme that the reader prefers."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])

    def errors(self) -> list[str]:
        """What the console said since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address that the page asked for since it was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
