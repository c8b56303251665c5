"""CPU seconds per slice of every stage of `recon run`, with BART's beside them, and memory against the number of repetitions.

CPU seconds on one thread: what else the machine does hits them less than it hits the clock. The stages are those that a run
writes into its JSON record; each figure is the median of `ROUNDS` runs. BART's seconds are those of its programs alone, the
process's start and its files included, on the same whitened k-space.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from recon.methods import bart

Row = tuple[str, float, str, str]
ROUNDS = 5
MATRIX, COILS, SLICES, FACTOR, CALIBRATION = 256, 8, 4, 3, 24
STAGES = ("noise", "read", "preprocess", "maps", "reconstruct", "checksum", "export")
METHODS = ("rss", "zero-filled", "sense", "l1-wavelet", "tv")
BART_OPTIONS = {"sense": ("-l2", "-r0.001"), "l1-wavelet": ("-RW:3:0:0.002", "-i100"), "tv": ("-RT:3:0:0.005", "-i100")}
FEW, MANY, SERIES = 2, 20, 1000


def run() -> Iterator[Row]:
    """Rows of (what, figure, unit, remark)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="recon-bench-") as folder:
            yield from _stages(Path(folder))
            yield from _memory(Path(folder))
    finally:
        torch.set_num_threads(threads)


def _stages(folder: Path) -> Iterator[Row]:
    from kspace.simulation.measurement import write_scan
    from recon.commands.demo import head_scan

    path = folder / "scan.h5"
    write_scan(head_scan(MATRIX, SLICES, COILS, FACTOR), path)
    seconds = {method: _seconds(path, folder / method, method) for method in METHODS}
    what = f"{MATRIX}x{MATRIX}, {COILS} coils, R = {FACTOR}, {SLICES} slices"
    for stage in STAGES:
        if stage != "reconstruct":
            source = "rss" if stage != "maps" else "sense"
            yield f"{stage}, {what}", 1e3 * seconds[source][stage] / SLICES, "ms/slice", f"median of {ROUNDS}"
    for method in METHODS:
        yield f"reconstruct and finish: {method}", 1e3 * seconds[method]["reconstruct"] / SLICES, "ms/slice", ""
    if not bart.available():
        yield "BART (Debian package bart) is not installed", 0.0, "", ""
        return
    yield from _bart_rows(path, seconds)


def _seconds(path: Path, out: Path, method: str) -> dict[str, float]:
    """CPU seconds of every stage of a run, by its own record."""
    from recon.run.pipeline import RunOptions, reconstruct_file

    records = []
    for _ in range(ROUNDS):
        with mock.patch("time.perf_counter", time.process_time):
            reconstruct_file(path, out, RunOptions(method=method, force=True))
        records.append(json.loads((out / "scan.json").read_text())["seconds"])
    return {stage: float(np.median([record.get(stage, 0.0) for record in records])) for stage in STAGES}


def _bart_rows(path: Path, ours: dict[str, dict[str, float]]) -> Iterator[Row]:
    from kspace import coils, preprocess
    from kspace.io.mrd import open_scan

    scan = open_scan(path)
    assert scan.noise is not None
    k = preprocess.remove_oversampling(preprocess.whiten(scan.load(0, scan.images(0)[0]), scan.noise))
    maps = coils.estimate_maps(k)
    theirs = {"maps": _median(lambda: bart.ecalib(k.data, f"-r{CALIBRATION}")[1])}
    calls = {"maps": f"bart ecalib -m 1 -r{CALIBRATION}"}
    for method, options in BART_OPTIONS.items():
        theirs[method] = _median(lambda chosen=options: bart.pics(k.data, maps, *chosen)[1])  # type: ignore[misc]
        calls[method] = f"bart pics -S {' '.join(options)}"
    for name, seconds in theirs.items():
        mine = (ours["sense"]["maps"] if name == "maps" else ours[name]["reconstruct"]) / SLICES
        note = f"{1e3 * mine:.0f} and {1e3 * seconds:.0f} ms/slice"
        yield f"{name}: time / {calls[name]}", mine / seconds, "x", note


def _median(function: Callable[[], float]) -> float:
    return float(np.median([function() for _ in range(ROUNDS)]))


def _memory(folder: Path) -> Iterator[Row]:
    peaks = {}
    for n in (FEW, MANY):
        write_repetitions(folder / f"{n}.h5", n)
        for method in ("rss", "sense"):
            peaks[method, n] = peak_bytes(folder / f"{n}.h5", method)
    for method in ("rss", "sense"):
        few, many = peaks[method, FEW], peaks[method, MANY]
        note = f"{many / 2**20:.0f} and {few / 2**20:.0f} MiB above the imports"
        yield f"peak memory of a run, {MANY} / {FEW} repetitions, {method} (at most 1.5)", many / few, "x", note
    path = folder / "series.h5"
    write_repetitions(path, SERIES, n_coils=2)
    note = f"above the imports; a file of {path.stat().st_size / 2**20:.0f} MiB, {SERIES * MATRIX} readouts"
    yield f"peak memory of a run, {SERIES} repetitions, 2 coils, rss", peak_bytes(path, "rss") / 2**20, "MiB", note


def write_repetitions(path: Path, n_repetitions: int, matrix: int = 256, n_coils: int = 16) -> None:
    """A fully sampled scan whose repetitions are alike but for their counter; 17 MB each at 256x256 with 16 coils."""
    from kspace.io.mrd.write import header_xml, write_raw
    from kspace.simulation.acquisition import ScanProtocol, cartesian
    from kspace.simulation.measurement import measure
    from kspace.simulation.phantom import head_coils
    from recon.commands.demo import head_phantom

    protocol = ScanProtocol(matrix=(matrix, matrix, 1), fov_m=(0.24, 0.24, 0.005))
    scan = cartesian(protocol, head_phantom(), head_coils(n_coils))
    lines = measure(scan)
    headers = np.tile(scan.headers, n_repetitions)
    headers["idx"]["repetition"] = np.repeat(np.arange(n_repetitions), len(lines))
    limits = {"kspace_encoding_step_1": (0, matrix - 1, matrix // 2), "repetition": (0, n_repetitions - 1, 0)}
    write_raw(path, header_xml([replace(scan.spaces[0], limits=limits)]), headers, lines * n_repetitions)


def peak_bytes(path: Path, method: str) -> int:
    """Peak resident memory of a run above what the imports have left, in a process of its own (Linux)."""
    code = "import sys; from benchmarks.pipeline import _peak_bytes; print(_peak_bytes(*sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(path), method]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root, env=environment)
    return int(done.stdout)


def _peak_bytes(path: str, method: str) -> int:
    from recon.run.pipeline import RunOptions, reconstruct_file

    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the imports: forget it
    before = _status("VmRSS")
    with tempfile.TemporaryDirectory(prefix="recon-bench-") as out:
        reconstruct_file(Path(path), Path(out), RunOptions(method=method))
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    for row in run():
        print("{:<72} {:>9.3g} {:<9} {}".format(*row), flush=True)
