"""`recon batch`: scans per minute against one process per file, overhead per scan, efficiency of workers, and long lists.

``python -m benchmarks batch`` runs all parts, ``python -m benchmarks.batch PART ... --scans N --listed N`` some of them. Both
sides of every ratio are measured in one run, so that other load of the machine falls on both; the remark names the load.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from recon.batch import run as running
from recon.batch.options import BatchOptions, ClusterOptions
from recon.batch.records import FileStamp
from recon.batch.worker import handle
from recon.run.options import RunOptions

Row = tuple[str, float, str, str]
N_SINGLE, N_FEW, N_TASKS = 5, 20, 500
OPTIONS = RunOptions(method="sense", format="nifti,png")
WORKERS = (1, 10, 1000)  # of the model


def run(parts: Sequence[str] = (), n_scans: int = 200, n_empty: int = 500, n_listed: int = 100_000) -> Iterator[Row]:
    """Rows of (what, figure, unit, remark).

    Parameters
    ----------
    parts
        Of `PARTS`; none: all.
    n_scans
        Small scans for the throughput, the efficiency and the model.
    n_empty
        Tasks without work for the overhead.
    n_listed
        Entries of the long list.
    """
    sizes = {"throughput": n_scans, "efficiency": n_scans, "model": n_scans, "overhead": n_empty, "listed": n_listed}
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="recon-bench-") as name:
            yield from PARTS[part](Path(name), sizes[part])


def throughput(folder: Path, n: int) -> Iterator[Row]:
    """Scans per minute of two warm workers, their start included, against a process for each file."""
    first = _scans(folder, n)
    single = _one_process(first, folder / "single")
    both = _timed(folder / "in", folder / "out", "local:2") / n
    note = f"{single:.2f} s against {both:.3f} s per scan; expected 5 or more; {_load()}"
    yield f"local:2 over one process per file, {n} scans", single / both, "x", note


def efficiency(folder: Path, n: int) -> Iterator[Row]:
    """Time of one worker over twice that of two, their start apart: of `n` scans less that of `N_FEW`.

    Beside it the same ratio of the seconds within the workers: what two busy cores of this machine take from each other.
    """
    _scans(folder, n)
    seconds: dict[int, list[float]] = {}
    alone: dict[int, list[float]] = {}
    for workers in (1, 2, 2, 1):  # in turns: the load of the machine drifts
        took = [_timed(folder / "in", folder / f"out-{workers}-{m}", f"local:{workers}", n=m) for m in (N_FEW, n)]
        seconds.setdefault(workers, []).append((took[1] - took[0]) / (n - N_FEW))
        alone.setdefault(workers, []).append(_seconds_in_workers(folder / f"out-{workers}-{n}"))
        shutil.rmtree(folder / f"out-{workers}-{n}")
        shutil.rmtree(folder / f"out-{workers}-{N_FEW}")
    one, two = (min(seconds[workers]) for workers in (1, 2))
    note = f"{one:.3f} s against {two:.3f} s per scan; expected 0.9 or more, with two idle cores; {_load()}"
    yield f"efficiency of two workers against one, {n} scans", one / two / 2, "", note
    first, second = (min(alone[workers]) for workers in (1, 2))
    note = f"median seconds within a worker: {first:.3f} s alone, {second:.3f} s beside another; without a scheduler"
    yield "of it the machine: the scans themselves", first / second, "", note


def _seconds_in_workers(out: Path) -> float:
    rows = [json.loads(line) for line in (out / "batch.jsonl").read_text().splitlines()]
    return statistics.median(row["seconds"] for row in rows)


def overhead(folder: Path, n: int) -> Iterator[Row]:
    """Seconds per scan without reconstruction: list, claim, record, row, and the way to a worker and back."""
    _fill(folder / "in", n, lambda path: path.write_bytes(b"raw"))
    for scheduler in (None, "local:2"):
        took, used = {}, {}
        for m in (N_FEW, n):
            before = time.process_time()
            took[m] = _timed(folder / "in", folder / f"{scheduler}-{m}", scheduler, instant, m)
            used[m] = time.process_time() - before
        wall, processor = (1e3 * (x[n] - x[N_FEW]) / (n - N_FEW) for x in (took, used))
        note = f"of it {processor:.1f} ms of the processor in the command; expected below 20; {_load()}"
        yield f"overhead per scan, {scheduler or 'one process'}", wall, "ms", note


def listed(folder: Path, n: int) -> Iterator[Row]:
    """A list of which everything is done: found, checked against its records, logged, summarised, and ``--status``."""
    for m in (n // 10, n):
        source, out = folder / f"in{m}", folder / f"out{m}"
        _fill(source, m, lambda path: path.write_bytes(b"raw"))
        made = _prepared(source, out, None, instant)
        for entry in made.inputs:
            _write(made.task(entry), out, Path(entry.source), PurePosixPath(entry.name))
        started, used = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            running.run(_prepared(source, out, None, instant), "rss")
            running.status(_prepared(source, out, None, instant))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        took = time.perf_counter() - started
        limit = "; expected below 120" if m == 100_000 else ""
        note = f"{time.process_time() - used:.1f} s of the processor, peak memory {peak:.0f} MB{limit}; {_load()}"
        yield f"{m} scans listed, resumed, summarised, and --status", took, "s", note
        shutil.rmtree(folder / f"in{m}")
        shutil.rmtree(folder / f"out{m}")


def model(folder: Path, n: int) -> Iterator[Row]:
    """The quantities of the model in docs/CLUSTER.md, and what it says of more workers than this machine has."""
    first = _scans(folder, n)
    small = folder / "small"
    _fill(small, N_TASKS, lambda path: path.write_bytes(b"raw"))
    took = {m: _timed(folder / "in", folder / f"out{m}", "local:1", n=m) for m in (N_FEW, n)}
    t = (took[n] - took[N_FEW]) / (n - N_FEW)
    yield "t: seconds per scan of a warm worker", t, "s", _load()
    start = took[N_FEW] - N_FEW * t
    yield "start of a worker", start, "s", "imports and methods, once"
    b = first.stat().st_size + _size(folder / f"out{n}") / n
    yield "b: bytes read and written per scan", b / 1e6, "MB", ""
    used = {}
    for m in (N_FEW, N_TASKS):
        before = time.process_time()
        _timed(small, folder / f"empty{m}", "local:1", instant, m)
        used[m] = time.process_time() - before
    o = (used[N_TASKS] - used[N_FEW]) / (N_TASKS - N_FEW)
    yield "o: processor seconds of scheduler and client per scan", 1e3 * o, "ms", "one core"
    bandwidth = _bandwidth(folder / "large")
    yield "B: bytes per second of this file system, written and synced", bandwidth / 1e6, "MB/s", ""
    for workers in WORKERS:
        rates = {"workers": workers / t, "file system": bandwidth / b, "scheduler": 1 / o}
        limit = min(rates, key=lambda name: rates[name])
        says = ", ".join(f"{name} {rate:.3g}/s" for name, rate in rates.items())
        yield (
            f"model: 10,000 of these scans with {workers} workers",
            start + 1e4 / rates[limit],
            "s",
            f"limit: {limit} ({says})",
        )


PARTS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    "throughput": throughput,
    "efficiency": efficiency,
    "overhead": overhead,
    "listed": listed,
    "model": model,
}


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


def _scans(folder: Path, n: int) -> Path:
    """`n` copies of one small scan; the first of them."""
    from kspace.simulation.measurement import write_scan
    from recon.commands.demo import head_scan

    first = folder / "scan.h5"
    write_scan(head_scan(matrix=64, n_slices=1, n_coils=4), first)
    _fill(folder / "in", n, lambda path: shutil.copy(first, path))
    return first


def _one_process(scan: Path, out: Path) -> float:
    """Wall seconds of ``recon run`` on one file; the median."""
    command = [
        sys.executable,
        "-m",
        "recon",
        "run",
        str(scan),
        "--method",
        "sense",
        "--format",
        "nifti,png",
        "-f",
        "-o",
        str(out),
    ]
    took = []
    for _ in range(N_SINGLE):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        took.append(time.perf_counter() - started)
    return sorted(took)[N_SINGLE // 2]


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
    """Wall seconds of a batch, from the list to its page."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert running.run(_prepared(source, out, scheduler, work, n), "sense") == 0
    return time.perf_counter() - started


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _bandwidth(path: Path, n_bytes: int = 256 << 20) -> float:
    block = os.urandom(8 << 20)
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(n_bytes // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return n_bytes / (time.perf_counter() - started)


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def main() -> None:
    """Run some parts, and print their rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which (default: all)")
    parser.add_argument("--scans", type=int, default=200, help="scans for throughput, efficiency and model (default: 200)")
    parser.add_argument("--empty", type=int, default=500, help="tasks for the overhead (default: 500)")
    parser.add_argument("--listed", type=int, default=100_000, help="entries of the long list (default: 100000)")
    given = parser.parse_args()
    if min(given.scans, given.empty) <= N_FEW or given.listed < 10:
        parser.error(f"--scans and --empty need more than {N_FEW}, --listed at least 10")
    for what, value, unit, note in run(given.parts, given.scans, given.empty, given.listed):
        print(f"  {what:<62} {value:>9.3g} {unit:<5} {note}", flush=True)


if __name__ == "__main__":
    from benchmarks import batch  # under its own name, which workers import

    batch.main()
