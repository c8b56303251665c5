"""Reading a 350 MB scan: against ISMRMRD's own readers, and memory against the number of repetitions.

Every figure is taken in a process of its own, because what one reader leaves in HDF5's and the system's caches flatters the
next; the readers take turns, and the best times are compared: what else the machine does only ever adds.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 5
COILS, LINES, SAMPLES = 16, 256, 512
FEW, MANY = 2, 20


def run() -> list[tuple[str, float, str, str]]:
    """Rows of (what, figure, unit, peer)."""
    with tempfile.TemporaryDirectory(prefix="recon-bench-") as folder:
        few, many = Path(folder) / "few.h5", Path(folder) / "many.h5"
        _write(few, FEW)
        _write(many, MANY)
        size = many.stat().st_size / 1e6
        times: dict[Callable[[Path], None], list[float]] = {_ours: [], _bulk: []}
        _fresh(_seconds, _bulk, many)  # the file into the system's cache, for both
        for _ in range(ROUNDS):
            for reader, seconds in times.items():
                seconds.append(_fresh(_seconds, reader, many))
        ours, bulk = min(times[_ours]), min(times[_bulk])
        loop = _fresh(_seconds, _loop, many)
        memory = {path: _fresh(_peak_bytes, path) for path in (few, many)}
    return [
        (f"read and sort {size:.0f} MB", size / ours, "MB/s", f"{ours:.2f} s, best of {ROUNDS}"),
        ("time / bulk File.acquisitions[:] (at most 1.3)", ours / bulk, "x", f"ismrmrd bulk {bulk:.2f} s, unsorted"),
        ("speed / Dataset.read_acquisition loop (at least 10)", loop / ours, "x", f"ismrmrd loop {loop:.2f} s"),
        (
            f"peak memory, {MANY} / {FEW} repetitions (at most 1.5)",
            memory[many] / memory[few],
            "x",
            f"{memory[many] / 2**20:.0f} and {memory[few] / 2**20:.0f} MiB above the imports",
        ),
    ]


def _write(path: Path, n_repetitions: int) -> None:
    """A scan as scanners write it: one chunk per readout, appended one by one."""
    import h5py
    import ismrmrd.hdf5

    from kspace.io.mrd.write import Space, header_xml, new_acquisition_headers

    space = Space(
        encoded_matrix=(SAMPLES, LINES, 1),
        recon_matrix=(SAMPLES // 2, LINES, 1),
        encoded_fov_m=(0.6, 0.3, 0.006),
        recon_fov_m=(0.3, 0.3, 0.006),
    )
    rng = np.random.default_rng(0)
    rows = np.empty(LINES, ismrmrd.hdf5.acquisition_dtype)
    with h5py.File(path, "w") as file:
        group = file.create_group("dataset")
        group.create_dataset("xml", (1,), h5py.special_dtype(vlen=bytes))[0] = header_xml((space,), {}).encode()
        data = group.create_dataset("data", (n_repetitions * LINES,), rows.dtype, maxshape=(None,), chunks=(1,))
        for repetition in range(n_repetitions):
            rows["head"] = new_acquisition_headers(LINES, COILS, SAMPLES)
            rows["head"]["idx"]["kspace_encode_step_1"] = np.arange(LINES)
            rows["head"]["idx"]["repetition"] = repetition
            for line in range(LINES):
                rows["traj"][line] = np.zeros(0, np.float32)
                rows["data"][line] = rng.standard_normal(2 * COILS * SAMPLES, np.float32)
            data[repetition * LINES : (repetition + 1) * LINES] = rows


def _fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function` in a new interpreter."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _seconds(reader: Callable[[Path], None], path: Path) -> float:
    import ismrmrd  # noqa: F401 - imports are not what is measured

    import kspace.io.mrd  # noqa: F401

    start = time.perf_counter()
    reader(path)
    return time.perf_counter() - start


def _ours(path: Path) -> None:
    from kspace.io.mrd import open_scan

    scan = open_scan(path)
    for index in scan.images(0):
        scan.load(0, index)


def _bulk(path: Path) -> None:
    import ismrmrd

    with ismrmrd.File(str(path), "r") as file:
        file["dataset"].acquisitions[:]


def _loop(path: Path) -> None:
    import ismrmrd

    dataset = ismrmrd.Dataset(str(path), mode="r")
    kept = [dataset.read_acquisition(i) for i in range(dataset.number_of_acquisitions())]
    dataset.close()
    del kept


def _peak_bytes(path: Path) -> int:
    """Peak resident memory while reading repetition by repetition, above what the imports have left (Linux)."""
    import kspace.io.mrd  # noqa: F401

    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the imports: forget it
    before = _status("VmRSS")
    _ours(path)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
