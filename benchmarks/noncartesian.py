"""CG-SENSE of a radial scan against SigPy's SenseRecon and BART's pics, and finufft's transforms alone.

    python -m benchmarks noncartesian

8 coils, 256 x 256, 201 spokes of 512 samples, golden angle, from the analytic phantom with noise; the coils' own sensitivities
for all. CPU seconds on one thread, the runs alternated; density, kernel and preconditioner are part of ours. Errors against the
phantom within the radius of the trajectory, on the support. SigPy and BART run 30 iterations.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from kspace.noncartesian.nufft import to_image, to_samples
from kspace.noncartesian.operator import NonCartesianSense
from kspace.noncartesian.trajectory import golden_angles, radial
from kspace.simulation.noncartesian import TrajectoryScan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils
from recon.methods.classical import CgSense

Row = tuple[str, float, str, str]
N, COILS, SPOKES, ROUNDS, ITERATIONS = 256, 8, 201, 2, 30
SHAPES = (
    ellipsoid((0, 0, 0), (0.085, 0.1, 0.1), 0, 1.0),
    ellipsoid((0.03, 0.01, 0), (0.02, 0.03, 0.02), 20, 0.5),
    ellipsoid((-0.03, -0.03, 0), (0.012, 0.012, 0.05), 0, -0.6),
    ellipsoid((0.01, 0.06, 0), (0.003, 0.004, 0.05), 0, 0.8),
)


def run() -> Iterator[Row]:
    """Rows of (what, number, unit, remark)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _rows()
    finally:
        torch.set_num_threads(threads)


def _rows() -> Iterator[Row]:
    trajectory = radial(SPOKES, 2 * N, golden_angles(SPOKES))
    scan = TrajectoryScan(Phantom(SHAPES), head_coils(COILS), trajectory, (N, N, 1), noise_std=0.02)
    y, truth = torch.from_numpy(scan.samples()[0]), torch.from_numpy(scan.image()[0])
    x = (torch.arange(N) - N // 2).numpy() * 0.24 / N
    coils = scan.coils.section((0, 0, 0), (1, 0, 0), (0, 1, 0)).maps(x, x[:, None])
    maps = torch.from_numpy(coils).to(torch.complex64)
    magnitude = maps.abs().square().sum(0).sqrt()
    maps, points = maps / magnitude, torch.from_numpy(trajectory)

    def error(image: torch.Tensor) -> float:
        inside = truth > 0.2
        found = (image.abs() / magnitude)[inside]
        scale = (found @ truth[inside].float()) / (found @ found)  # peers differ in their scale
        return float(torch.linalg.vector_norm(scale * found - truth[inside]) / torch.linalg.vector_norm(truth[inside]))

    runs: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: CgSense()(y, NonCartesianSense(maps, points)),
        "SigPy's SenseRecon": lambda: _sigpy(y, maps, trajectory),
    }
    if shutil.which("bart"):
        runs["BART's pics -t"] = lambda: _bart(y, maps, trajectory)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    errors = {}
    for _ in range(ROUNDS):
        for name, reconstruct in runs.items():
            start = _cpu()
            image = reconstruct()
            seconds[name].append(_cpu() - start)
            errors[name] = error(image)
    start = _cpu()
    to_image(to_samples(maps, points), points, (N, N))
    floor = _cpu() - start
    ours = min(seconds["ours"])
    yield "CG-SENSE to 1e-6", ours, "s", f"error {errors['ours']:.4f}; {ours / floor:.1f} finufft forward and adjoint pairs"
    for name in list(runs)[1:]:
        yield f"{name}, {ITERATIONS} iterations, over ours", min(seconds[name]) / ours, "x", f"error {errors[name]:.4f}"


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _sigpy(y: torch.Tensor, maps: torch.Tensor, trajectory: np.ndarray) -> torch.Tensor:
    import sigpy.mri.app

    coordinates = (trajectory[..., ::-1] * N).astype(np.float32)
    app = sigpy.mri.app.SenseRecon(
        y.numpy(), maps.numpy(), coord=coordinates, lamda=CgSense().lamda, max_iter=ITERATIONS, show_pbar=False
    )
    return torch.from_numpy(app.run())


def _bart(y: torch.Tensor, maps: torch.Tensor, trajectory: np.ndarray) -> torch.Tensor:
    with tempfile.TemporaryDirectory(prefix="recon-bench-") as folder:
        at = Path(folder)
        points = np.concatenate([trajectory * N, np.zeros((*trajectory.shape[:2], 1))], -1)
        _write(at / "k", points.transpose(2, 1, 0))  # (3 sample spoke)
        _write(at / "y", y.numpy().transpose(2, 1, 0)[None])  # (1 sample spoke coil)
        _write(at / "m", maps.numpy().transpose(2, 1, 0)[:, :, None])  # (x y 1 coil)
        weight = str(CgSense().lamda)
        command = ["bart", "pics", "-S", "-l2", "-r", weight, "-i", str(ITERATIONS), "-t", "k", "y", "m", "x"]
        subprocess.run(command, cwd=at, check=True, capture_output=True, env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"})
        image = np.fromfile(at / "x.cfl", np.complex64).reshape(N, N)  # first axis fastest: (y x)
    return torch.from_numpy(image)


def _write(path: Path, array: np.ndarray) -> None:
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    np.asfortranarray(array.astype(np.complex64)).ravel(order="F").tofile(path.with_suffix(".cfl"))
