"""How far a batch is, and what failed, in words."""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recon.batch.claims import is_held
from recon.batch.log import CAUSES, BatchRow, as_row, log_paths, scan_rows

MOST_REASONS = 20
RECENT = 500  # scans that the rate is taken over


@dataclass
class BatchCounts:
    """Counts of a run.

    Attributes
    ----------
    n_scans
        All scans of this part.
    n_done, n_failed
        How many ended so, earlier runs included.
    n_skipped
        How many of them ended in earlier runs.
    """

    n_scans: int
    n_done: int = 0
    n_failed: int = 0
    n_skipped: int = 0
    _started: float = field(default_factory=time.monotonic)

    def add(self, row: BatchRow, skipped: bool = False) -> None:
        """Count a scan that ended."""
        self.n_done += row.state == "done"
        self.n_failed += row.state == "failed"
        self.n_skipped += skipped

    @property
    def rate(self) -> str:
        """Scans per minute of this run, and failures."""
        n = self.n_done + self.n_failed - self.n_skipped
        minutes = max(1e-6, (time.monotonic() - self._started) / 60)
        return f"{n / minutes:.1f} scans/min, {self.n_failed} failed"

    @property
    def says(self) -> str:
        """The end of a run, in one line."""
        earlier = f", {self.n_skipped} of them before" if self.n_skipped else ""
        return f"{self.n_done} of {self.n_scans} scans done, {self.n_failed} failed{earlier}"


def last_rows(folder: Path, keys: Collection[str] = ()) -> Iterator[BatchRow]:
    """The last row of each scan, in order of its first one; only those of `keys` where any are given."""
    where: dict[int, tuple[int, int]] = {}  # of the hash of a name: a list of 100,000 names is not held in memory
    paths = log_paths(folder)
    for i, path in enumerate(paths):
        for position, row in scan_rows(path):
            where[hash(row["scan"])] = i, position
    last = set(where.values())
    del where
    for i, path in enumerate(paths):
        for position, row in scan_rows(path):
            if (i, position) in last and (not keys or row.get("key") in keys):
                yield as_row(row)


def failure_table(folder: Path, keys: Collection[str] = ()) -> Iterator[str]:
    """The reasons of failures with their numbers and an example of each, the most frequent first; nothing without failures."""
    failed: dict[str, dict[str, Any]] = {}
    for path in log_paths(folder):
        for _, row in scan_rows(path):
            if row["state"] == "failed":
                failed[row["scan"]] = row
            elif failed:
                failed.pop(row["scan"], None)
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for last in map(as_row, failed.values()):
        if not keys or last.key in keys:
            reason = CAUSES.get(last.cause, last.cause), _without_names(last)
            n, example = found.get(reason, (0, last.source))
            found[reason] = n + 1, example
    if not found:
        return
    yield "failed  reason"
    ordered = sorted(found.items(), key=lambda item: -item[1][0])
    for (cause, message), (n, example) in ordered[:MOST_REASONS]:
        yield f"{n:6}  {cause}: {message} (e.g. {example})"
    if len(ordered) > MOST_REASONS:
        yield f"        and {len(ordered) - MOST_REASONS} other reasons: see batch.html"
    yield ""


def _without_names(row: BatchRow) -> str:
    """The message without the file that it is about: equal reasons become equal text."""
    text = row.message.removeprefix(f"{row.source}: ").replace(row.source, "the file")
    return re.sub(re.escape(Path(row.source).name), "the file", text)


def status_lines(folder: Path, counts: BatchCounts, n_left: int) -> Iterator[str]:
    """Lines of ``--status``: counts, scans in work, rate and estimate."""
    yield f"{counts.n_done} of {counts.n_scans} scans done, {counts.n_failed} failed, {n_left} to go"
    busy = sum(is_held(path) for path in (folder / ".batch").glob("*.claim"))
    running = sum(is_held(path) for path in (folder / ".batch").glob("*.lock"))
    yield f"{running} commands and {busy} scans in work on file systems with locks" if running else "not running"
    times = _recent(folder)
    if len(times) > 1 and (span := (times[-1] - times[0]).total_seconds()) > 0:
        per_minute = 60 * (len(times) - 1) / span
        idle = (datetime.now(UTC) - times[-1]).total_seconds()
        estimate = f"; {_duration(60 * n_left / per_minute)} to go at this rate" if running and n_left else ""
        yield f"{per_minute:.1f} scans/min over the last {len(times)}, the last {_duration(idle)} ago{estimate}"


def _recent(folder: Path) -> list[datetime]:
    times = (row["time"] for path in log_paths(folder) for _, row in scan_rows(path) if row.get("time"))
    return [datetime.fromisoformat(time) for time in sorted(heapq.nlargest(RECENT, times))]  # all of one format, in UTC


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
