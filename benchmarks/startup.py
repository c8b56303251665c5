"""Start-up time of the command line, over that of importing NumPy and h5py, which any reader of raw data needs.

Command and peer take turns in one run, each in a fresh process; the figure is the ratio of their medians, the remark names the
fastest run in seconds, which other load disturbs least.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

Row = tuple[str, float, str, str]
ROUNDS = 9
PEER = [sys.executable, "-c", "import numpy, h5py"]


def run() -> Iterator[Row]:
    """Rows of (what, figure, unit, remark)."""
    from kspace.simulation.measurement import write_scan
    from recon.commands.demo import head_scan

    with tempfile.TemporaryDirectory(prefix="recon-bench-") as folder:
        path = Path(folder) / "scan.h5"
        write_scan(head_scan(matrix=128, n_slices=2, n_coils=4), path)
        for arguments in (["--help"], ["run", "--help"], ["info", str(path)]):
            yield _row(arguments)


def _row(arguments: list[str]) -> Row:
    command = [sys.executable, "-m", "recon", *arguments]
    ours, peers = [], []
    for _ in range(ROUNDS):
        peers.append(_seconds(PEER))
        ours.append(_seconds(command))
    ratio = statistics.median(ours) / statistics.median(peers)
    shown = "recon " + " ".join(a if not a.endswith(".h5") else "scan.h5" for a in arguments)
    return shown, ratio, "x", f"import numpy, h5py; {min(ours):.2f} s against {min(peers):.2f} s"


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
