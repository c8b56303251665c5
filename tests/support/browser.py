"""Pages in a real browser without a screen: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def running() -> Iterator[Any]:
    """A browser, for a fixture; the test skips, saying so, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("needs a browser: no chromium on PATH (make system-packages)")
    with playwright.sync_playwright() as driver:
        # Without its own sandbox, which needs rights that containers do not give; the page is ours.
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@dataclass
class Opened:
    """A page, and everything it complained about or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def images(self) -> dict[str, Any]:
        found: dict[str, Any] = self.page.evaluate("report.view")
        return found

    def show_viewer(self) -> None:
        """With the images at the top of the window, and nothing under the mouse."""
        self.page.mouse.move(0, 0)
        self.page.evaluate("document.getElementById('stage').scrollIntoView({block: 'start', behavior: 'instant'})")

    def shown(self) -> list[Any]:
        """Data set, volume, mask and slice of what the viewer has drawn."""
        found: list[Any] = json.loads(self.page.locator("#stage").get_attribute("data-shown"))
        return found

    def wait_for(self, *, volume: str | None = None, mask: str | None = None, number: int | None = None) -> None:
        self.page.wait_for_function(
            """(wanted) => { const shown = JSON.parse(document.getElementById("stage").dataset.shown);
            return wanted.every((value, i) => value == null || value === shown[i]); }""",
            arg=[None, volume, mask, number],
        )

    def canvas(self, series: str) -> Any:
        return self.page.locator(f'.panel[data-series="{series}"] canvas')

    def place(self, series: str, y: int, x: int) -> tuple[float, float]:
        """Where the centre of a pixel lies in the window, at zoom 1."""
        box = self.canvas(series).bounding_box()
        ny, nx = self.page.evaluate("report.view.file.shape")
        return box["x"] + (x + 0.5) / nx * box["width"], box["y"] + (y + 0.5) / ny * box["height"]


def open_file(browser: Any, path: Path, script: str | None = None, **options: Any) -> Iterator[Opened]:
    """A page in a window of 1280 x 720 points; at the end it must have complained of nothing and asked for nothing.

    `script` runs before the page.
    """
    # With reduced motion the page does not glide while a place on it is being looked up.
    options = {"viewport": {"width": 1280, "height": 720}, "reduced_motion": "reduce"} | options
    context = browser.new_context(**options)
    if script is not None:
        context.add_init_script(script)
    opened = Opened(context.new_page())
    opened.page.on("console", lambda m: opened.complaints.append(m.text) if m.type in ("error", "warning") else None)
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(path.as_uri())
    yield opened
    context.close()
    assert opened.complaints == []
    assert opened.requests == [path.as_uri()], "the page asked for something outside itself"
