"""``batch.jsonl``: one line for each scan that ended, appended by the one process that runs the batch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from kspace.errors import InputError

State = Literal["done", "failed"]
Cause = Literal["", "input", "disk", "memory", "died", "time limit", "defect"]
CAUSES: dict[str, str] = {
    "input": "cannot be reconstructed",
    "disk": "error of a disk or network",
    "memory": "not enough memory",
    "died": "worker process died",
    "time limit": "time limit exceeded",
    "defect": "unexpected error",
}
"""What each cause of a failure means."""


@dataclass(frozen=True)
class BatchRow:
    """How one scan ended.

    Attributes
    ----------
    scan
        Name of the scan: folder and stem of its images.
    source
        Raw file.
    state
        ``done`` or ``failed``.
    cause
        Of a failure, one of `CAUSES`.
    message
        Of a failure, in one line.
    seconds
        Wall time of the last attempt.
    attempts
        How often it was tried.
    worker
        Host and process that ended it.
    warnings
        Number of warnings in its records.
    evidence
        Number of images by verdict of the evidence.
    key
        `recon.batch.records.Identity.key`.
    n_bytes, mtime_ns
        Of the raw file; -1 where it cannot be read.
    time
        When, ISO 8601, UTC.
    """

    scan: str
    source: str
    state: State
    cause: Cause = ""
    message: str = ""
    seconds: float = 0.0
    attempts: int = 1
    worker: str = ""
    warnings: int = 0
    evidence: dict[str, int] = field(default_factory=dict)
    key: str = ""
    n_bytes: int = -1
    mtime_ns: int = -1
    time: str = ""


_FIELDS = {f.name for f in fields(BatchRow)}
_REQUIRED = {"scan", "source", "state"}


class BatchLog:
    """The log of a part of a batch, open for appending. Each row is one write: a killed process tears at most its own line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            n = os.fstat(self._descriptor).st_size
            if n and os.pread(self._descriptor, 1, n - 1) != b"\n":  # torn: the rows to come begin lines of their own
                os.write(self._descriptor, b"\n")
        except OSError as error:
            raise InputError(f"the log cannot be written ({error.strerror})", path, "choose another -o") from error

    def append(self, row: BatchRow) -> BatchRow:
        """Append a row; returned with its time.

        Raises
        ------
        InputError
            If the disk cannot take it.
        """
        row = BatchRow(**{**vars(row), "time": row.time or datetime.now(UTC).isoformat(timespec="milliseconds")})
        line = (json.dumps(vars(row), ensure_ascii=False, separators=(",", ":")) + "\n").encode()
        try:
            if os.write(self._descriptor, line) != len(line):
                raise InputError("the log cannot be written (disk full)", self.path, "free space, and run again")
        except OSError as error:
            raise InputError(f"the log cannot be written ({error.strerror})", self.path, "free space, and run again") from error
        return row

    def __enter__(self) -> BatchLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._descriptor)


def log_path(folder: Path, share: tuple[int, int]) -> Path:
    """The log of a part (i from 0, n): each part has its own, because appending from several machines tears lines."""
    i, n = share
    return folder / ("batch.jsonl" if n == 1 else f"batch.{i + 1}-of-{n}.jsonl")


def log_paths(folder: Path) -> list[Path]:
    """All logs of a batch, sorted."""
    return sorted(folder.glob("batch*.jsonl"))


def read_rows(path: Path) -> Iterator[BatchRow]:
    """The rows of a log, in order; torn lines are passed over."""
    return (as_row(row) for _, row in scan_rows(path))


def as_row(found: dict[str, Any]) -> BatchRow:
    """A row from plain data; what later versions may add is passed over."""
    return BatchRow(**{name: value for name, value in found.items() if name in _FIELDS})


def scan_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a log as plain data, each with the position of its line in the file; torn lines are passed over."""
    if not path.exists():
        return
    position = 0
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line.decode())
            except ValueError:
                row = None
            if isinstance(row, dict) and row.keys() >= _REQUIRED:
                yield position, row
            position += len(line)
