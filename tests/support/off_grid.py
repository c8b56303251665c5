"""A phantom sampled along spokes and spirals, what SENSE shows of it, and the error of an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

import recon
from kspace.noncartesian.trajectory import golden_angles, radial, spiral
from kspace.simulation.noncartesian import TrajectoryScan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils

N = 48
Rows = NDArray[np.void]
SHAPES = (
    ellipsoid((0.01, -0.02, 0), (0.08, 0.06, 0.1), 20, 1.0),
    ellipsoid((0.03, 0.01, 0.005), (0.02, 0.03, 0.02), 0, 0.6),
    ellipsoid((-0.03, -0.03, 0), (0.012, 0.012, 0.05), 0, -0.7),
)
SPOKES = radial(72, 2 * N)
TRAJECTORIES = {
    "radial": SPOKES,
    "goldenangle": radial(60, 2 * N, golden_angles(60)),
    "spiral": spiral(24, 400, 2.0),
}


def scan_of(kind: str = "radial", **changes: object) -> TrajectoryScan:
    scan = TrajectoryScan(Phantom(SHAPES), head_coils(4), TRAJECTORIES[kind], (N, N, 1), kind=kind, noise_std=0.01)
    return replace(scan, **changes)  # type: ignore[arg-type]


def image_of(path: Path, method: str = "sense", **options: object) -> NDArray[np.complex64]:
    with recon.open(path) as opened:
        return opened.reconstruct(method=method, **options)[0].numpy()  # type: ignore[arg-type]


def shown(scan: TrajectoryScan, plane: int = 0) -> NDArray[np.float64]:
    """What SENSE shows: the phantom times the root sum of squares of the coils, since maps have a root sum of squares of 1. The
    phantom alone differs from it by 0.089."""
    nx, ny, nz = scan.matrix
    x, y = ((np.arange(n) - n // 2) * fov / n for n, fov in zip((nx, ny), scan.fov_m[:2], strict=True))
    at = np.array(scan.position_m) + np.array((0, 0, (plane - nz // 2) * scan.fov_m[2] / nz))
    coils = scan.coils.section(at, (1, 0, 0), (0, 1, 0)).maps(x, y[:, None])
    return scan.image()[plane] * np.linalg.norm(coils, axis=0)


def error(image: NDArray[np.complex64], truth: NDArray[np.float64]) -> float:
    """Relative, up to the scale."""
    a, b = np.abs(image).ravel(), np.abs(truth).ravel()
    return float(np.linalg.norm(a * (a @ b) / (a @ a) - b) / np.linalg.norm(b))


def rows_of(path: Path) -> Rows:
    """The acquisitions of a file: ``head``, ``traj`` and ``data`` of each."""
    with h5py.File(path) as file:
        rows: Rows = file["dataset/data"][:]
    return rows


def put(path: Path, rows: Rows) -> None:
    """Write others in their place."""
    with h5py.File(path, "r+") as file:
        kind = file["dataset/data"].dtype
        del file["dataset/data"]
        file["dataset"].create_dataset("data", data=rows, dtype=kind)
