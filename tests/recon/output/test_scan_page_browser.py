"""The page of a run in a real browser: offline, linked panels, slices, and names that stay text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recon.output.scan_page import build
from recon.output.series import make_series
from tests.support.browser import Opened, open_file, running
from tests.support.scan_pages import HOSTILE, images_and_record


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from running()


@contextmanager
def opened(browser: Any, folder: Path, text: str = "", **options: Any) -> Iterator[Opened]:
    """Page of a run; the test fails on a network request or a console error."""
    images, record = images_and_record(text=text)
    path = folder / "scan.html"
    path.write_text(build(make_series(images, record), record), encoding="utf-8")
    pages = open_file(browser, path, **options)
    yield next(pages)
    assert next(pages, None) is None


def drawn(page: Opened, panel: int) -> bytes:
    """What a panel shows, as PNG."""
    found: bytes = page.locator("#stage .panel canvas").nth(panel).screenshot()
    return found


def test_five_linked_panels_show_each_slice(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path) as page:
        panels = page.locator("#stage .panel")
        assert panels.count() == 5
        for words in ("refinegan", "sense", "difference", "prior", "uncertainty"):
            assert panels.filter(has_text=words).count() >= 1, words
        page.show_viewer()
        first = [drawn(page, i) for i in range(2)]
        assert first[0] != first[1], "the panels show different images"
        number = page.shown()[3]
        page.locator("#stage").focus()
        page.keyboard.press("PageDown")
        page.wait_for_function("(n) => JSON.parse(document.getElementById('stage').dataset.shown)[3] !== n", arg=number)
        second = [drawn(page, i) for i in range(2)]
        assert all(a != b for a, b in zip(first, second, strict=True)), "both panels show the next slice"
        page.keyboard.press("+")
        page.wait_for_timeout(100)
        assert all(a != drawn(page, i) for i, a in enumerate(second)), "and are magnified together"
        assert page.get_by_role("alert").count() == 1, "the classical image in place of a generated one is announced"


def test_hostile_names_stay_text_and_a_narrow_window_is_not_exceeded(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path, HOSTILE, viewport={"width": 420, "height": 800}) as page:
        assert page.evaluate("window.stolen === undefined")
        assert page.locator("img[src=x]").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert "</script>" in page.locator("body").inner_text()
