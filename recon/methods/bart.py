"""BART as an outside judge: arrays in and out of its files, and its seconds. Needs the program `bart` (Debian package bart)."""

from __future__ import annotations

import functools
import math
import os
import resource
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.operators import ForwardModel, on_grid


def available() -> bool:
    """Whether `bart` is installed."""
    return shutil.which("bart") is not None


@functools.cache
def version() -> str:
    """What ``bart version`` says.

    Raises
    ------
    InputError
        If it is not installed.
    """
    if not available():
        raise InputError("the program bart is not installed", "--bart", "apt install bart, or leave --bart out")
    return subprocess.run(["bart", "version"], capture_output=True, text=True, check=True).stdout.strip()


@dataclass(frozen=True)
class Pics:
    """``bart pics -S -R KIND:3:0:lamda -i iterations``, called ``(y, op) -> image`` like any other reconstructor.

    Attributes
    ----------
    kind
        ``W``: l1 norm of wavelets; ``T``: total variation.
    lamda
        Regularisation weight, relative to BART's own scale of the data.
    iterations
        As many, always.
    """

    kind: Literal["W", "T"]
    lamda: float
    iterations: int = 100

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``, with the maps of `op`.

        Raises
        ------
        InputError
            If samples were measured different numbers of times or off the Cartesian grid, or BART refuses the data.
        """
        op = on_grid(op, "BART's pics", "use a classical method of ours")
        if op.n_averages is not None and len(op.n_averages[op.mask.expand(op.n_averages.shape)].unique()) > 1:
            raise InputError("samples measured different numbers of times are not weighted here", "BART's pics")
        batch, plane = y.shape[:-3], y.shape[-3:]
        planes = zip(y.reshape(-1, *plane), op.maps.expand(y.shape).reshape(-1, *plane), strict=True)
        images = [pics(samples, maps, *self.options, threads=torch.get_num_threads())[0] for samples, maps in planes]
        return torch.stack(images).reshape(*batch, *plane[-2:])

    @property
    def options(self) -> tuple[str, ...]:
        """What is handed to ``bart pics`` besides ``-S``, which gives the image the scale of the data."""
        return "-R", f"{self.kind}:3:0:{self.lamda:g}", f"-i{self.iterations}"


def pics(y: Tensor, maps: Tensor, *options: str, threads: int = 1) -> tuple[Tensor, float]:
    """``bart pics -S OPTIONS``: image ``(y x)`` from k-space and maps ``(coil y x)``, and the CPU seconds that it took."""
    image, seconds = _call(["pics", "-S", *options], y, maps, threads=threads)
    return image.reshape(y.shape[-2:]), seconds


def ecalib(y: Tensor, *options: str) -> tuple[Tensor, float]:
    """``bart ecalib -m 1 OPTIONS``: maps ``(coil y x)`` from k-space ``(coil y x)``, and the CPU seconds on one thread."""
    maps, seconds = _call(["ecalib", "-m", "1", *options], y)
    return maps.reshape(y.shape), seconds


def _call(command: list[str], *inputs: Tensor, threads: int = 1) -> tuple[Tensor, float]:
    with tempfile.TemporaryDirectory(prefix="recon-bart-") as folder:
        for i, x in enumerate(inputs):
            _write(Path(folder) / f"in{i}", x)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        names = [f"in{i}" for i in range(len(inputs))]
        done = subprocess.run(
            ["bart", *command, *names, "out"],
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        if done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split())[-200:]
            raise InputError(f"bart {command[0]} failed with status {done.returncode} ({said})")
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        return _read(Path(folder) / "out"), seconds


def _write(path: Path, x: Tensor) -> None:
    """``(coil ky kx)`` as BART's (kx, ky, 1, coil), first index fastest."""
    array = x.detach().cpu().resolve_conj().to(torch.complex64).numpy()
    n_coils, ny, nx = array.shape
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{nx} {ny} 1 {n_coils} " + "1 " * 12 + "\n")
    array.tofile(path.with_suffix(".cfl"))


def _read(path: Path) -> Tensor:
    sizes = [int(n) for n in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    array = np.fromfile(path.with_suffix(".cfl"), np.complex64, math.prod(sizes)).reshape(sizes[::-1])
    return torch.from_numpy(array).squeeze()
