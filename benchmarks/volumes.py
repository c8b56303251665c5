"""CG-SENSE of a 3-D radial scan against SigPy's SenseRecon and BART's pics: time, error, and peak memory.

    python -m benchmarks volumes

8 coils, 64 x 64 x 64, 3000 spokes of 128 samples in the order of the golden means (half of what the sphere asks for), from the
analytic phantom with noise; the coils' own sensitivities for all. Each runs once in a process of its own, with one thread:
CPU seconds, kernel and preconditioner included, and the most memory that it had beyond samples and maps, in bytes for each
voxel (BART: all of it). Errors against the phantom times the root sum of squares of the coils, of the frequencies within the
sphere. SigPy and BART run 30 iterations, as far as `LIMIT` allows; TV and L1-wavelet a few, for their memory. What they are
made of is measured alone.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.noncartesian import SHAPES
from kspace.fourier import fft, ifft
from kspace.noncartesian.operator import NonCartesianSense
from kspace.noncartesian.trajectory import kooshball
from kspace.simulation.noncartesian import TrajectoryScan
from kspace.simulation.phantom import Phantom, head_coils
from recon.methods.classical import CgSense, L1Wavelet, TotalVariation

Row = tuple[str, float, str, str]
N, COILS, SPOKES, ITERATIONS, FEW = 64, 8, 3000, 30, 5
LIMIT = 120.0  # CPU seconds of one run
AXES = (-3, -2, -1)


def run() -> Iterator[Row]:
    """Rows of (what, number, unit, remark)."""
    trajectory = kooshball(SPOKES, 2 * N)
    scan = TrajectoryScan(Phantom(SHAPES), head_coils(COILS), trajectory, (N, N, N), (0.24, 0.24, 0.24), noise_std=0.02)
    r = (np.arange(N) - N // 2) * 0.24 / N
    coils = scan.coils.maps(r, r[:, None], r[:, None, None])
    magnitude = np.linalg.norm(coils, axis=0)
    truth = _within(scan.image() * magnitude)
    with tempfile.TemporaryDirectory(prefix="recon-bench-") as folder:
        at = Path(folder)
        np.save(at / "y.npy", scan.samples()[0])
        np.save(at / "maps.npy", (coils / magnitude).astype(np.complex64))
        np.save(at / "k.npy", trajectory)
        names = [name for name in METHODS if not name.startswith("BART") or shutil.which("bart")]
        for name in PARTS:
            took, peak, _ = _apart(name, at)
            yield name, took, "CPU s", f"{peak / N**3:.0f} bytes per voxel"
        ours = 0.0
        for name in names:
            took, peak, remark = _apart(name, at)
            ours = ours or took
            image = _error(np.load(at / "image.npy"), truth)
            remark = f"error {image:.4f}; {peak / N**3:.0f} bytes per voxel{remark}"
            peer = name not in OURS
            yield f"{name}, over CG-SENSE" if peer else name, took / ours if peer else took, "x" if peer else "CPU s", remark


def _apart(name: str, at: Path) -> tuple[float, float, str]:
    """CPU seconds and bytes of one run in a process of its own, and a remark."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(name, str(at), there))
    process.start()
    there.close()
    took, peak = here.recv()
    process.join()
    return float(took), float(peak), " in all" if name.startswith("BART") else ""


def _child(name: str, folder: str, pipe: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    at = Path(folder)
    y, maps = (torch.from_numpy(np.load(at / f"{one}.npy")) for one in ("y", "maps"))
    k = np.load(at / "k.npy")
    if name in PARTS:
        before, part = PARTS[name]
        small = NonCartesianSense(maps[:, ::8, ::8, ::8].contiguous(), torch.from_numpy(k[:20, :8]))
        op = NonCartesianSense(maps, torch.from_numpy(k))
        for one in (small, op):
            before(one)
        part(small)  # to load
        pipe.send(_measured(lambda: part(op))[1:])
        return
    METHODS[name](y[:, :20, :8], maps[:, ::8, ::8, ::8].contiguous(), k[:20, :8], at)  # to load and compile
    image, took, peak = _measured(lambda: METHODS[name](y, maps, k, at))
    if name.startswith("BART"):
        peak = 1024.0 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    np.save(at / "image.npy", image.numpy())
    pipe.send((took, peak))


def _measured(work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float, float]:
    """Result of `work`, CPU seconds, and bytes beyond those that were there."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = _status("VmRSS"), _cpu()
    made = work()
    return made, _cpu() - start, float(_status("VmHWM") - before)


def _cpu() -> float:
    """Seconds of this process and its children."""
    return sum(
        usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _within(image: np.ndarray) -> np.ndarray:
    q = np.meshgrid(*((np.arange(n) - n // 2) / n for n in image.shape), indexing="ij")
    inside = torch.from_numpy(np.linalg.norm(q, axis=0) <= 0.5)
    limited: np.ndarray = ifft(inside * fft(torch.from_numpy(image.astype(np.complex128)), AXES), AXES).abs().numpy()
    return limited


def _error(image: np.ndarray, truth: np.ndarray) -> float:
    found = _within(image).ravel()
    scale = (found @ truth.ravel()) / (found @ found)  # peers differ in their scale
    return float(np.linalg.norm(scale * found - truth.ravel()) / np.linalg.norm(truth))


def _sense(y: torch.Tensor, maps: torch.Tensor, k: np.ndarray, at: Path) -> torch.Tensor:
    return CgSense()(y, NonCartesianSense(maps, torch.from_numpy(k)))


def _tv(y: torch.Tensor, maps: torch.Tensor, k: np.ndarray, at: Path) -> torch.Tensor:
    return TotalVariation(iterations=FEW)(y, NonCartesianSense(maps, torch.from_numpy(k)))


def _wavelet(y: torch.Tensor, maps: torch.Tensor, k: np.ndarray, at: Path) -> torch.Tensor:
    return L1Wavelet(iterations=FEW)(y, NonCartesianSense(maps, torch.from_numpy(k)))


def _sigpy(y: torch.Tensor, maps: torch.Tensor, k: np.ndarray, at: Path) -> torch.Tensor:
    import sigpy.mri.app

    coordinates = (k[..., ::-1] * maps.shape[-1]).astype(np.float32)
    app = sigpy.mri.app.SenseRecon(
        y.numpy(), maps.numpy(), coord=coordinates, lamda=CgSense().lamda, max_iter=ITERATIONS, show_pbar=False
    )
    start = _cpu()
    while not app.alg.done() and _cpu() - start < LIMIT:  # what `run` does
        app.alg.update()
    return torch.from_numpy(app.alg.x)


def _bart(y: torch.Tensor, maps: torch.Tensor, k: np.ndarray, at: Path) -> torch.Tensor:
    from benchmarks.noncartesian import _write

    n = maps.shape[-1]
    _write(at / "k", (k * n).transpose(2, 1, 0))  # (3 sample spoke)
    _write(at / "y", y.numpy().transpose(2, 1, 0)[None])  # (1 sample spoke coil)
    _write(at / "m", maps.numpy().transpose(3, 2, 1, 0))  # (x y z coil)
    command = ["bart", "pics", "-S", "-l2", "-r", str(CgSense().lamda), "-i", str(ITERATIONS), "-t", "k", "y", "m", "x"]
    env = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, cwd=at, check=True, capture_output=True, env=env)
    return torch.from_numpy(np.fromfile(at / "x.cfl", np.complex64).reshape(n, n, n))  # first axis fastest: (z y x)


METHODS: dict[str, Callable[[torch.Tensor, torch.Tensor, np.ndarray, Path], torch.Tensor]] = {
    "CG-SENSE": _sense,
    f"TV, {FEW} iterations": _tv,
    f"L1-wavelet, {FEW} iterations": _wavelet,
    f"SigPy's SenseRecon, {ITERATIONS} iterations": _sigpy,
    f"BART's pics -t, {ITERATIONS} iterations": _bart,
}
OURS = list(METHODS)[:3]
# What is there before, and what is measured.
PARTS: dict[str, tuple[Callable[[NonCartesianSense], object], Callable[[NonCartesianSense], torch.Tensor]]] = {
    "kernel": (lambda op: None, lambda op: op._kernel),
    "preconditioner": (lambda op: op._kernel, lambda op: op.circulant),
    "normal operator, once": (lambda op: op.circulant, lambda op: op.gram(op.weights)(op.maps[0])),
    "density compensation": (lambda op: None, lambda op: op.compensation),
}
