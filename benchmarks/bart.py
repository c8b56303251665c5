"""BART as an outside judge: arrays in and out of its files, and its seconds. Needs the program `bart` (Debian package bart)."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def available() -> bool:
    """Whether `bart` is installed."""
    return shutil.which("bart") is not None


def pics(y: Tensor, maps: Tensor, *options: str) -> tuple[Tensor, float]:
    """``bart pics -S OPTIONS``: image ``(y x)`` from k-space and maps ``(coil y x)``, and the CPU seconds on one thread."""
    image, seconds = _call(["pics", "-S", *options], y, maps)
    return image.reshape(y.shape[-2:]), seconds


def ecalib(y: Tensor, *options: str) -> tuple[Tensor, float]:
    """``bart ecalib -m 1 OPTIONS``: maps ``(coil y x)`` from k-space ``(coil y x)``, and the CPU seconds on one thread."""
    maps, seconds = _call(["ecalib", "-m", "1", *options], y)
    return maps.reshape(y.shape), seconds


def _call(command: list[str], *inputs: Tensor) -> tuple[Tensor, float]:
    with tempfile.TemporaryDirectory() as folder:
        for i, x in enumerate(inputs):
            _write(Path(folder) / f"in{i}", x)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        names = [f"in{i}" for i in range(len(inputs))]
        subprocess.run(
            ["bart", *command, *names, "out"],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        return _read(Path(folder) / "out"), seconds


def _write(path: Path, x: Tensor) -> None:
    """``(coil ky kx)`` as BART's (kx, ky, 1, coil), first index fastest."""
    array = x.to(torch.complex64).numpy()
    n_coils, ny, nx = array.shape
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{nx} {ny} 1 {n_coils} " + "1 " * 12 + "\n")
    array.tofile(path.with_suffix(".cfl"))


def _read(path: Path) -> Tensor:
    sizes = [int(n) for n in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    array = np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(sizes[::-1])
    return torch.from_numpy(array).squeeze()
