"""CG-SENSE of a radial scan against SigPy's SenseRecon and BART's pics, and finufft's transforms alone.

    python -m benchmarks noncartesian

8 coils, 256 x 256, 201 spokes of 512 samples, golden angle, from the analytic phantom with noise; the coils' own sensitivities
for all. Wall seconds with a thread for each core (at most two), the runs alternated after one of each to load and compile, the
least of each; kernel and preconditioner are part of ours, the point spread function of BART's. Errors against the phantom
within the radius of the trajectory, on the support. SigPy and BART run 30 iterations, their default, as far as `LIMIT` allows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
LIMIT = 30.0  # seconds of one run
SHAPES = (
    ellipsoid((0, 0, 0), (0.085, 0.1, 0.1), 0, 1.0),
    ellipsoid((0.03, 0.01, 0), (0.02, 0.03, 0.02), 20, 0.5),
    ellipsoid((-0.03, -0.03, 0), (0.012, 0.012, 0.05), 0, -0.6),
    ellipsoid((0.01, 0.06, 0), (0.003, 0.004, 0.05), 0, 0.8),
)


def run() -> Iterator[Row]:
    """Rows of (what, number, unit, remark)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
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
    inside = truth > 0.2

    def error(image: torch.Tensor) -> float:
        found = (image.abs() / magnitude)[inside]
        scale = (found @ truth[inside].float()) / (found @ found)  # peers differ in their scale
        return float(torch.linalg.vector_norm(scale * found - truth[inside]) / torch.linalg.vector_norm(truth[inside]))

    def pair() -> torch.Tensor:
        return to_image(to_samples(maps, points), points, (N, N))[0]

    runs: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: CgSense()(y, NonCartesianSense(maps, points)),
        "SigPy's SenseRecon": lambda: _sigpy(y, maps, trajectory),
        "finufft": pair,
    }
    if shutil.which("bart"):
        runs["BART's pics -t"] = lambda: _bart(y, maps, trajectory)
    seconds: dict[str, float] = {}
    errors: dict[str, float] = {}
    for number in range(-1, ROUNDS):
        for name, reconstruct in runs.items():
            print(f"    {name}, run {number + 1} of {ROUNDS} ", end="\r", file=sys.stderr, flush=True)
            start = time.perf_counter()
            try:
                image = reconstruct()
            except subprocess.TimeoutExpired:
                seconds[name] = float("inf")
                continue
            took = time.perf_counter() - start
            if number >= 0:
                seconds[name] = min(took, seconds.get(name, float("inf")))
                errors[name] = error(image)
    ours, floor = seconds.pop("ours"), seconds.pop("finufft")
    yield "finufft, one forward and adjoint transform of all coils", floor, "s", "the floor of an iteration without Toeplitz"
    yield "CG-SENSE", ours, "s", f"error {errors['ours']:.4f}; {ours / floor:.1f} finufft pairs"
    for name, took in seconds.items():
        yield f"{name}, {ITERATIONS} iterations, over ours", took / ours, "x", f"error {errors.get(name, np.nan):.4f}"


def _sigpy(y: torch.Tensor, maps: torch.Tensor, trajectory: np.ndarray) -> torch.Tensor:
    import sigpy.mri.app

    coordinates = (trajectory[..., ::-1] * N).astype(np.float32)
    app = sigpy.mri.app.SenseRecon(
        y.numpy(), maps.numpy(), coord=coordinates, lamda=CgSense().lamda, max_iter=ITERATIONS, show_pbar=False
    )
    start = time.perf_counter()
    while not app.alg.done() and time.perf_counter() - start < LIMIT:  # what `run` does
        app.alg.update()
    return torch.from_numpy(app.alg.x)


def _bart(y: torch.Tensor, maps: torch.Tensor, trajectory: np.ndarray) -> torch.Tensor:
    with tempfile.TemporaryDirectory(prefix="recon-bench-") as folder:
        at = Path(folder)
        points = np.concatenate([trajectory * N, np.zeros((*trajectory.shape[:2], 1))], -1)
        _write(at / "k", points.transpose(2, 1, 0))  # (3 sample spoke)
        _write(at / "y", y.numpy().transpose(2, 1, 0)[None])  # (1 sample spoke coil)
        _write(at / "m", maps.numpy().transpose(2, 1, 0)[:, :, None])  # (x y 1 coil)
        weight = str(CgSense().lamda)
        command = ["bart", "pics", "-S", "-l2", "-r", weight, "-i", str(ITERATIONS), "-t", "k", "y", "m", "x"]
        env = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PATH": "/usr/bin:/bin"}
        subprocess.run(command, cwd=at, check=True, capture_output=True, timeout=LIMIT, env=env)
        image = np.fromfile(at / "x.cfl", np.complex64).reshape(N, N)  # first axis fastest: (y x)
    return torch.from_numpy(image)


def _write(path: Path, array: np.ndarray) -> None:
    """One of BART's files: dimensions as text, and complex64 samples with the first axis fastest."""
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    array.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))
