"""``batch.html`` in a real browser: offline, sortable, searchable, links that open, and names that stay text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from recon.batch.log import BatchLog, BatchRow
from recon.batch.page import write_page
from recon.output.scan_page import build
from recon.output.series import make_series
from tests.support.browser import Opened, open_file, running
from tests.support.scan_pages import HOSTILE, images_and_record

NAMES = ["sub-01/scan", "sub-02/scan", "sub-10/scan"]
MARKUP = "<img src=x onerror=window.stolen=1> & 50% #1?"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from running()


@contextmanager
def opened(browser: Any, folder: Path, rows: list[BatchRow], **options: Any) -> Iterator[Opened]:
    """Page of a batch; the test fails on a network request or a console error."""
    with BatchLog(folder / "batch.jsonl") as log:
        for row in rows:
            log.append(row)
    pages = open_file(browser, write_page(folder), **options)
    yield next(pages)
    assert next(pages, None) is None


def scan(folder: Path, name: str) -> None:
    """What a run leaves of a scan: picture, page and record."""
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (200, 100), 128).save(path)
    images, record = images_and_record(n_slices=1, fallen=None)
    path.with_suffix(".html").write_text(build(make_series(images, record), record), encoding="utf-8")
    path.with_suffix(".json").write_text("{}")


def rows_shown(page: Opened) -> list[str]:
    found: list[str] = page.locator("#scans tbody tr:visible td:nth-child(2)").all_inner_texts()
    return found


def test_the_table_is_sorted_searched_and_leads_to_the_page_of_each_scan(browser: Any, tmp_path: Path) -> None:
    scan(tmp_path, NAMES[0])
    rows = [
        BatchRow(NAMES[0], "/raw/1.h5", "done", seconds=2.5, evidence={"green": 2, "amber": 1}),
        BatchRow(NAMES[1], "/raw/2.h5", "failed", "input", "12 channels came", seconds=0.5),
        BatchRow(NAMES[2], "/raw/3.h5", "done", seconds=10.0, evidence={"red": 1}),
    ]
    with opened(browser, tmp_path, rows) as page:
        assert page.locator("h1").inner_text() == "3 scans: 2 done, 1 failed"
        seconds = page.get_by_role("button", name="Seconds")
        seconds.click()
        assert rows_shown(page) == [NAMES[1], NAMES[0], NAMES[2]]
        seconds.click()
        assert rows_shown(page) == [NAMES[2], NAMES[0], NAMES[1]]
        assert page.locator("th[aria-sort=descending]").inner_text().strip() == "Seconds"
        page.get_by_role("button", name="Evidence").click()
        assert rows_shown(page) == [NAMES[2], NAMES[0], NAMES[1]], "red first"
        page.get_by_role("button", name="Scan").click()
        assert rows_shown(page) == NAMES, "numbers are compared as numbers"
        page.fill("#filter", "channels")
        assert rows_shown(page) == [NAMES[1]]
        page.fill("#filter", "")
        picture = page.locator("#scans img")
        assert picture.count() == 1
        assert picture.evaluate("image => image.naturalWidth") == 96

        other = page.context.new_page()
        other.goto(page.locator("a", has_text="page").evaluate("a => a.href"))
        assert other.url == (tmp_path / f"{NAMES[0]}.html").as_uri()
        assert other.locator("#stage .panel canvas").count() >= 1
        other.goto(picture.locator("..").evaluate("a => a.href"))
        assert other.url == (tmp_path / f"{NAMES[0]}.png").as_uri()


def test_names_and_messages_stay_text_and_their_links_lead_to_the_files(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / MARKUP
    scan(folder, f"{MARKUP}/scan")
    rows = [
        BatchRow(f"{MARKUP}/scan", f"/raw/{HOSTILE}.h5", "done"),
        BatchRow(f"{MARKUP}/bad", f"/raw/{HOSTILE}.h5", "failed", "input", f"refused: {HOSTILE}"),
    ]
    with opened(browser, folder, rows, viewport={"width": 420, "height": 800}) as page:
        assert page.evaluate("window.stolen === undefined")
        assert page.locator("img[src=x]").count() == 0
        assert page.locator("script").count() == 1
        assert f"{MARKUP}/scan" in rows_shown(page)
        assert HOSTILE in page.locator("#scans").inner_text()
        assert "refused:" in page.locator("pre").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        other = page.context.new_page()
        other.goto(page.locator("a", has_text="page").evaluate("a => a.href"))
        assert other.locator("#stage .panel canvas").count() >= 1
