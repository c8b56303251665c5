"""`recon batch`: scans per minute against one process per file, overhead per scan, and a list of 100,000.

Everything is measured in one run, so that other load of the machine falls on both sides of a ratio; the remark names the load.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from recon.batch import run as running
from recon.batch.options import BatchOptions, ClusterOptions
from recon.batch.records import FileStamp
from recon.batch.worker import handle
from recon.run.options import RunOptions

Row = tuple[str, float, str, str]
N_SCANS, N_SINGLE = int(os.environ.get("BENCH_SCANS", "200")), 5
N_EMPTY, N_LISTED = 500, int(os.environ.get("BENCH_LISTED", "100000"))
OPTIONS = RunOptions(method="sense", format="nifti,png")


def run() -> Iterator[Row]:
    """Rows of (what, figure, unit, remark)."""
    with tempfile.TemporaryDirectory(prefix="recon-bench-") as name:
        folder = Path(name)
        yield from _listed(folder / "listed")
        yield from _empty(folder / "empty")
        yield from _scans(folder / "scans")


def _scans(folder: Path) -> Iterator[Row]:
    from kspace.simulation.measurement import write_scan
    from recon.commands.demo import head_scan

    folder.mkdir()
    first = folder / "scan.h5"
    write_scan(head_scan(matrix=64, n_slices=1, n_coils=4), first)
    _fill(folder / "in", N_SCANS, lambda path: shutil.copy(first, path))
    command = [sys.executable, "-m", "recon", "run", str(first), "--method", "sense", "--format", "nifti,png", "-f"]
    started = time.perf_counter()
    for _ in range(N_SINGLE):
        subprocess.run([*command, "-o", str(folder / "single")], check=True, capture_output=True)
    single = (time.perf_counter() - started) / N_SINGLE
    seconds = {n: _timed(folder / "in", folder / f"out{n}", f"local:{n}") / N_SCANS for n in (2, 1)}
    note = f"{single:.2f} s against {seconds[2]:.3f} s per scan, start of the workers included; {_load()}"
    yield f"local:2 over one process per file, {N_SCANS} scans", single / seconds[2], "x", note
    yield "efficiency of two workers against one", seconds[1] / seconds[2] / 2, "", _load()


def _empty(folder: Path) -> Iterator[Row]:
    _fill(folder / "in", N_EMPTY, lambda path: path.write_bytes(b"raw"))
    for scheduler in (None, "local:2"):
        took = {n: _timed(folder / "in", folder / f"{scheduler}-{n}", scheduler, instant, n) for n in (20, N_EMPTY)}
        milliseconds = 1e3 * (took[N_EMPTY] - took[20]) / (N_EMPTY - 20)
        yield f"overhead per scan, {scheduler or 'one process'}", milliseconds, "ms", f"list, claim, record, row; {_load()}"


def _listed(folder: Path) -> Iterator[Row]:
    for n in (N_LISTED // 10, N_LISTED):
        source, out = folder / f"in{n}", folder / f"out{n}"
        _fill(source, n, lambda path: path.write_bytes(b"raw"))
        made = _prepared(source, out, None, instant)
        for entry in made.inputs:
            _write(made.task(entry), out, Path(entry.source), PurePosixPath(entry.name))
        started, used = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            running.run(_prepared(source, out, None, instant), "rss")
            running.status(_prepared(source, out, None, instant))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        took = time.perf_counter() - started
        note = f"{time.process_time() - used:.1f} s of the processor, peak memory {peak:.0f} MB; {_load()}"
        yield f"{n} scans listed, resumed, summarised, and --status", took, "s", note
        shutil.rmtree(folder)


def instant(task: dict[str, Any]) -> dict[str, Any]:
    """A worker that writes a record and nothing else."""
    return handle(task, _write)


def _write(task: dict[str, Any], folder: Path, source: Path, output: PurePosixPath) -> list[dict[str, Any]]:
    about = {"name": task["scan"], "key": task["key"], "n_records": 1, **vars(FileStamp.of(source))}
    path = folder / output.with_name(f"{output.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"source_sha256": "", "files": [path.name], "extra": {"batch": about}}
    path.write_text(json.dumps(record))
    return [record]


def _fill(folder: Path, n: int, write: Callable[[Path], object]) -> None:
    for i in range(n):
        path = folder / f"sub-{i // 100:04}" / f"scan-{i % 100:02}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)


def _prepared(source: Path, out: Path, scheduler: str | None, work: Any = None, n: int | None = None) -> running.Batch:
    given = [str(source)] if n is None else [str(p) for p in sorted(source.glob("*/*.h5"))[:n]]
    made = running.prepare(given, out, OPTIONS, BatchOptions(root=source), ClusterOptions(scheduler=scheduler))
    return made if work is None else replace(made, work=work)


def _timed(source: Path, out: Path, scheduler: str | None, work: Any = None, n: int | None = None) -> float:
    """Wall seconds of a batch."""
    made, started = _prepared(source, out, scheduler, work, n), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        assert running.run(made, "sense") == 0
    return time.perf_counter() - started


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"
