"""``batch.html``: the scans of a batch with states, seconds, evidence and thumbnails, in one file that opens offline."""

from __future__ import annotations

import base64
import html
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kspace.io.atomic import atomic_write
from recon.batch.log import BatchRow
from recon.batch.summary import failure_table, last_rows
from recon.viewer.template import asset, fill, page

PAGE = "batch.html"
ASSETS = "recon.report"
MOST_ROWS, MOST_THUMBNAILS = 5000, 400
THUMBNAIL = 96  # pixels
VERDICTS = ("red", "amber", "green")


def write_page(folder: Path) -> Path:
    """Write the page of a batch from its logs: failures first, then scans as they ended, at most `MOST_ROWS`.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    counts: Counter[str] = Counter()
    failed: list[BatchRow] = []
    others: list[BatchRow] = []
    for row in last_rows(folder):
        counts[row.state] += 1
        counts.update({f"evidence {name}": n for name, n in row.evidence.items()})
        worth = failed if row.state == "failed" or "red" in row.evidence else others
        if len(worth) < MOST_ROWS:
            worth.append(row)
    shown = [*failed, *others][:MOST_ROWS]
    path = folder / PAGE
    with atomic_write(path) as beside:
        beside.write_text(_page(folder, shown, counts), encoding="utf-8")
    return path


def _page(folder: Path, rows: Sequence[BatchRow], counts: Counter[str]) -> str:
    n, left = counts["done"] + counts["failed"], MOST_THUMBNAILS
    lines = []
    for row in rows:
        image = _thumbnail(folder, row) if left else ""
        left -= bool(image)
        lines.append(_line(folder, row, image))
    parts = {
        "title": html.escape(f"recon batch: {folder.name}"),
        "style": asset("page.css") + asset("batch.css", ASSETS),
        "script": asset("batch.js", ASSETS),
        "heading": f"{n} scans: {counts['done']} done, {counts['failed']} failed",
        "facts": "".join(f"<li>{html.escape(line)}</li>" for line in _facts(rows, counts, n)),
        "reasons": html.escape("\n".join(failure_table(folder))),
        "rows": "".join(lines),
    }
    return fill(page("batch.html", ASSETS), parts)


def _facts(rows: Sequence[BatchRow], counts: Counter[str], n: int) -> Iterator[str]:
    if len(rows) < n:
        yield f"{len(rows)} of {n} scans are shown, failures first; batch.jsonl has all"
    verdicts = [f"{counts[f'evidence {name}']} {name}" for name in VERDICTS if counts[f"evidence {name}"]]
    if verdicts:
        yield f"Evidence of generated images: {', '.join(verdicts)}"
    if any(row.state == "done" for row in rows) and len(rows) > MOST_THUMBNAILS:
        yield f"Thumbnails of the first {MOST_THUMBNAILS} scans"


def _line(folder: Path, row: BatchRow, image: str) -> str:
    evidence = ", ".join(f"{row.evidence[name]} {name}" for name in VERDICTS if row.evidence.get(name))
    worst = next((i for i, name in enumerate(VERDICTS) if row.evidence.get(name)), len(VERDICTS))
    name = html.escape(row.scan)
    if row.state == "done":
        links = [(".html", "page"), (".json", "record"), (".nii.gz", "NIfTI"), (".png", "PNG"), ("_dicom", "DICOM")]
        stem = os.path.join(folder, row.scan)
        found = [(f"{row.scan}{suffix}", text) for suffix, text in links if os.path.exists(f"{stem}{suffix}")]
        there = [f'<a href="{quote(path)}">{text}</a>' for path, text in found]
        message = " ".join(there) + (f" · {row.warnings} warnings" if row.warnings else "")
    else:
        message = html.escape(row.message)
    cells: list[tuple[Any, str, str]] = [
        ("", image, ""),
        (row.scan, name, "text"),
        (row.state + row.cause, f"{row.state}{f': {row.cause}' if row.cause else ''}", f"text {row.state}"),
        (row.seconds, f"{row.seconds:.2f}", ""),
        (row.attempts, str(row.attempts), ""),
        (worst, html.escape(evidence), "text"),
        (message if row.state == "failed" else "", message, "text wide"),
    ]
    return "<tr>" + "".join(f'<td class="{kind}" data-v="{html.escape(str(v))}">{t}</td>' for v, t, kind in cells) + "</tr>\n"


def _thumbnail(folder: Path, row: BatchRow) -> str:
    """The montage of a scan, small, as part of the page; empty where there is none."""
    path = folder / f"{row.scan}.png"
    if row.state != "done" or not path.is_file():
        return ""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("L")
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            content = io.BytesIO()
            image.save(content, "PNG")
    except OSError:
        return ""
    data = base64.b64encode(content.getvalue()).decode()
    label = html.escape(f"images of {row.scan}")
    return f'<a href="{quote(path.relative_to(folder).as_posix())}"><img alt="{label}" src="data:image/png;base64,{data}"></a>'
