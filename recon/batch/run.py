"""A batch from the list to its page, read top to bottom."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

import recon
from kspace.errors import InputError
from recon.batch import bids, claims, worker
from recon.batch.cluster import make_executor
from recon.batch.executor import EndedTask, Executor, TaskLoop, lone_progress_bars, refuse_foreign
from recon.batch.inputs import BatchInputs, ScanEntry
from recon.batch.log import BatchLog, BatchRow, as_row, log_path, log_paths, scan_rows
from recon.batch.options import BatchOptions, ClusterOptions
from recon.batch.records import FileStamp, Identity, done, identity
from recon.batch.summary import BatchCounts, failure_table, status_lines
from recon.run.options import RunOptions

EXIT_FAILED = 4
BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 60.0
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


@dataclass
class Batch:
    """A batch that has been checked: its scans, where their images go, and what determines them.

    Attributes
    ----------
    inputs
        The scans.
    folder
        Of the images.
    identity
        Options, weights and version.
    options, cluster
        As given.
    force
        Make everything again.
    n_scans
        Number of scans of this part.
    work
        What a worker does with a task.
    """

    inputs: BatchInputs
    folder: Path
    identity: Identity
    options: BatchOptions
    cluster: ClusterOptions
    force: bool
    n_scans: int
    work: Callable[[dict[str, Any]], dict[str, Any]] = worker.work
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    def todo(self, known: KnownScans) -> Iterator[tuple[ScanEntry, str, BatchRow | None]]:
        """Each scan with the reason to reconstruct it; empty where there is none, with the row that says how it ended."""
        folder = str(self.folder)
        for entry in self.inputs:
            if self.force:
                yield entry, "--force", None
                continue
            record, reason = done(folder, entry.source, entry.name, self.identity.key, self.options.checksum)
            if record is not None:
                row = BatchRow(
                    entry.name, entry.source, "done", seconds=record.seconds, warnings=record.n_warnings,
                    evidence=dict(record.evidence), key=self.identity.key,
                )  # fmt: skip
                yield entry, "", row
            elif not self.options.retry_failed and (failed := known.failure(entry, self.identity.key)) is not None:
                yield entry, "", failed
            else:
                yield entry, reason, None

    def task(self, entry: ScanEntry) -> dict[str, Any]:
        """What travels to a worker: plain data."""
        return {
            "version": recon.__version__,
            "run": self.run,
            "key": self.identity.key,
            "folder": str(self.folder),
            "scan": entry.name,
            "source": entry.source,
            "options": dict(self.identity.options),
            "time_limit": self.options.time_limit,
            "checksum": self.options.checksum,
            "force": self.force,
        }


class KnownScans:
    """What the logs say of scans: how those failed that may not be tried again, and which have a row."""

    def __init__(self, folder: Path) -> None:
        self._failed: dict[str, BatchRow] = {}
        self._done: set[int] = set()  # hashes: a list of 100,000 names is not held in memory
        for path in log_paths(folder):
            for _, row in scan_rows(path):
                mark = hash((row["scan"], row.get("key")))
                if row["state"] == "failed":
                    self._failed[row["scan"]] = as_row(row)
                    self._done.discard(mark)
                else:
                    self._failed.pop(row["scan"], None)
                    self._done.add(mark)

    def failure(self, entry: ScanEntry, key: str) -> BatchRow | None:
        """The row of a scan that failed with the same options on the same raw file."""
        row = self._failed.get(entry.name)
        if row is None or row.key != key:
            return None
        with suppress(OSError):
            stamp = FileStamp.of(entry.source)
            return row if (row.n_bytes, row.mtime_ns) == (stamp.n_bytes, stamp.mtime_ns) else None
        return row if row.n_bytes == -1 else None

    def has_row(self, row: BatchRow) -> bool:
        """Whether the end of a scan is in a log: a run that was killed may have left its images without a row."""
        return hash((row.scan, row.key)) in self._done


def prepare(
    given: Sequence[str], output: Path | None, options: RunOptions, batch: BatchOptions, cluster: ClusterOptions
) -> Batch:
    """Check everything that can be checked before anything is done.

    Raises
    ------
    InputError
        If there are no scans, two have one output, a folder or list cannot be read, the outputs lie among the inputs, or an
        option cannot be used.
    """
    if options.strict:
        raise InputError("a batch ends with status 0 or 4", "--strict", "leave it out; batch.html counts the verdicts")
    if options.save_weights is not None:
        raise InputError(
            "the scans of a batch would write one file", "--save-weights", "adapt to one scan at a time with recon run"
        )
    inputs = BatchInputs(given, batch.root, batch.share, options.method)
    folder = Path(os.path.abspath(output or (inputs.dataset / "derivatives" / "recon" if inputs.dataset else "out")))
    for root in inputs.folders:
        if folder == root or root in folder.parents:
            raise InputError(f"the images would lie in the input folder {root}", folder, "choose an -o outside of it")
    if folder.exists() and not folder.is_dir():
        raise InputError("the output is a file, expected a folder", folder, "choose another -o")
    _ = options.formats, cluster.n_local  # refused early
    return Batch(inputs, folder, identity(options), batch, cluster, options.force, inputs.check())


def run(batch: Batch, method: str) -> int:
    """Reconstruct what is not done; exit status 0 where every scan is done, 4 where some failed.

    Raises
    ------
    InputError
        If another process runs this batch, or the workers cannot be used.
    """
    with claims.sole(batch.folder / ".batch" / f"{log_path(batch.folder, batch.inputs.share).stem}.lock") as free:
        if not free:
            raise InputError("another recon batch is running there", batch.folder, "wait for it, or use --part for shares")
        if batch.inputs.dataset is not None:
            bids.describe(batch.inputs.dataset, batch.folder, method)
        worker.tidy(batch.folder, batch.inputs.in_part)
        known = KnownScans(batch.folder)
        with BatchLog(log_path(batch.folder, batch.inputs.share)) as log:
            counts = _run_all(batch, known, log)
    print("\n".join(failure_table(batch.folder, {batch.identity.key})), end="", flush=True)
    print(counts.says)
    from recon.batch.page import write_page

    print(write_page(batch.folder))
    return EXIT_FAILED if counts.n_failed else 0


def _run_all(batch: Batch, known: KnownScans, log: BatchLog) -> BatchCounts:
    counts = BatchCounts(batch.n_scans)
    lone_progress_bars()
    executor: Executor | None = None
    bar = tqdm(total=batch.n_scans, desc="batch", unit="scan", disable=None, bar_format=BAR)

    def tasks() -> Iterator[dict[str, Any]]:
        for entry, _, row in batch.todo(known):
            if row is not None:
                counts.add(row, skipped=True)
                if row.state == "done" and not known.has_row(row):
                    log.append(row)
                bar.update()
                continue
            yield batch.task(entry)

    pending = tasks()
    first = next(pending, None)
    try:
        if first is not None:
            executor = make_executor(batch.cluster, batch.work)
            dashboard = f"; dashboard {executor.dashboard}" if executor.dashboard else ""
            print(f"recon: {executor.says}{dashboard}", file=sys.stderr, flush=True)
            loop = TaskLoop(executor, _chain(first, pending))
            for ended in loop:
                if (row := _ended(batch, loop, ended)) is not None:
                    counts.add(log.append(row))
                    bar.update()
                    bar.set_postfix_str(counts.rate)
    except KeyboardInterrupt:
        print(f"recon: {counts.says}; the same command goes on from there", file=sys.stderr, flush=True)
        raise
    finally:
        bar.close()
        if executor is not None:
            executor.close()
        worker.tidy(batch.folder, batch.inputs.in_part)
    return counts


def _chain(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _ended(batch: Batch, loop: TaskLoop, ended: EndedTask) -> BatchRow | None:
    """The row of a task that ended; None where it is tried again."""
    task = ended.task
    if ended.error is not None:
        refuse_foreign(ended.error)
        message = f"{type(ended.error).__name__}: {ended.error}"
        return BatchRow(task["scan"], task["source"], "failed", "defect", " ".join(message.split()), key=task["key"])
    if ended.died:
        message = "its worker process died again and again"
        return BatchRow(task["scan"], task["source"], "failed", "died", message, key=task["key"])
    again = ended.value["again"]
    tried = task.get("tried", 0)
    if again and tried < (batch.options.retries if ended.value["cause"] == "disk" else min(1, batch.options.retries)):
        loop.repeat(task | {"tried": tried + 1}, min(LONGEST_BACKOFF_S, BACKOFF_S * 2**tried))
        return None
    names = {f.name for f in fields(BatchRow)}
    row = BatchRow(**{name: value for name, value in ended.value.items() if name in names})
    return BatchRow(**{**vars(row), "attempts": max(row.attempts, tried + 1)})


def dry_run(batch: Batch) -> int:
    """List what would be reconstructed, and why; exit status 0."""
    known, n, skipped = KnownScans(batch.folder), 0, 0
    for entry, reason, row in batch.todo(known):
        if row is not None:
            skipped += 1
            continue
        n += 1
        print(f"{entry.source} -> {batch.folder / entry.name}.* ({reason})")
    print(f"{n} of {batch.n_scans} scans to reconstruct, {skipped} ended before")
    return 0


def status(batch: Batch) -> int:
    """Say how far the batch is; exit status 0, or 4 where scans failed."""
    known, counts, left = KnownScans(batch.folder), BatchCounts(batch.n_scans), 0
    for _, _, row in batch.todo(known):
        if row is None:
            left += 1
        else:
            counts.add(row, skipped=True)
    print("\n".join(status_lines(batch.folder, counts, left)))
    print("\n".join(failure_table(batch.folder, {batch.identity.key})), end="")
    return EXIT_FAILED if counts.n_failed else 0
