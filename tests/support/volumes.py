"""A phantom with a mark along each axis, sampled in three dimensions, and what its reconstruction shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kspace.fourier import fft, ifft
from kspace.noncartesian.trajectory import kooshball, rotated_stack
from kspace.simulation.noncartesian import TrajectoryScan, write_trajectory_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils

N = 16
AXES = (-3, -2, -1)
SHAPES = (
    ellipsoid((0.01, -0.02, 0.01), (0.08, 0.06, 0.07), 20, 1.0),
    ellipsoid((0.03, 0.01, 0.025), (0.02, 0.03, 0.02), 0, 0.6),
    ellipsoid((-0.03, -0.03, -0.02), (0.02, 0.02, 0.02), 0, -0.7),
)
STACK, PARTITIONS = rotated_stack([20] * N, 2 * N)
UNEQUAL, UNEQUAL_PARTITIONS = rotated_stack([16 + 3 * i % 7 for i in range(N)], 2 * N)
KOOSHBALL = kooshball(500, 2 * N)


def volume_scan(trajectory: NDArray[np.float64] = KOOSHBALL, **changes: object) -> TrajectoryScan:
    fov = (0.24, 0.24, 0.24)
    scan = TrajectoryScan(Phantom(SHAPES), head_coils(4), trajectory, (N, N, N), fov, kind="other", noise_std=0.003)
    return replace(scan, **changes)  # type: ignore[arg-type]


def written(path: Path, scan: TrajectoryScan | None = None, stated: NDArray[np.float64] | None = None, **more: object) -> Path:
    """The file of a scan, with its own trajectory where none is `stated`."""
    scan = volume_scan() if scan is None else scan
    write_trajectory_scan(scan, path, scan.trajectory if stated is None else stated, **more)  # type: ignore[arg-type]
    return path


def coil_maps(scan: TrajectoryScan) -> NDArray[np.complex128]:
    """Sensitivities ``(coil z y x)`` at the voxels."""
    x, y, z = ((np.arange(n) - n // 2) * fov / n for n, fov in zip(scan.matrix, scan.fov_m, strict=True))
    return scan.coils.section(scan.position_m, *np.eye(3)).maps(x, y[:, None], z[:, None, None])


def shown(scan: TrajectoryScan) -> NDArray[np.float64]:
    """What SENSE shows, ``(z y x)``: the phantom times the root sum of squares of the coils."""
    return scan.image() * np.linalg.norm(coil_maps(scan), axis=0)


def error(image: NDArray[np.complex64], truth: NDArray[np.float64]) -> float:
    """Relative, up to the scale, of the frequencies within the sphere that spokes reach: nothing was measured beyond."""
    k = np.meshgrid(*((np.arange(n) - n // 2) / n for n in image.shape), indexing="ij")
    inside = torch.from_numpy(np.linalg.norm(k, axis=0) <= 0.5)
    a, b = (
        ifft(inside * fft(torch.from_numpy(x.astype(np.complex128)), AXES), AXES).abs().numpy().ravel() for x in (image, truth)
    )
    return float(np.linalg.norm(a * (a @ b) / (a @ a) - b) / np.linalg.norm(b))
