"""What gridding makes of samples off the Cartesian grid: coil images, and the calibration area for coil maps."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kspace.coils import NoCalibration
from kspace.container import KSpace
from kspace.fourier import fft
from kspace.noncartesian.density import DENSITIES, Density, visited
from kspace.noncartesian.nufft import to_image
from kspace.noncartesian.operator import NonCartesianSense

FEWEST = 8  # points along each axis of a calibration area
LARGEST = 48
REACH = 0.75  # points of the grid: from any point of the area to the nearest sample


def compensated(k: KSpace, density: Density = "pipe") -> KSpace:
    """k-space off the grid with a density compensation (`kspace.noncartesian.density`), whatever density the file states: one
    that was wrong at the centre alone bent the coil maps. The step is ``density_pipe`` or ``density_voronoi``."""
    assert k.trajectory is not None
    return k.after(f"density_{density}", density=DENSITIES[density](k.trajectory, _shape(k)).float())


def coil_images(k: KSpace) -> Tensor:
    """Complex ``(*batch coil y x)``: the density-compensated samples of `compensated` k-space, gridded."""
    assert k.trajectory is not None
    assert k.density is not None
    shape = _shape(k)
    y = (k.data * k.density).reshape(-1, *k.data.shape[-2:])
    return to_image(y, k.trajectory, shape).reshape(*k.data.shape[:-2], *shape)


def forward_model(k: KSpace, maps: Tensor) -> NonCartesianSense:
    """Forward model of k-space off the grid with coil maps ``(*batch coil y x)``."""
    assert k.trajectory is not None
    return NonCartesianSense(maps, k.trajectory, density=k.density, noise_std=k.header.noise_std or 1.0)


def calibration_of(k: KSpace, width: int) -> KSpace:
    """Cartesian k-space ``(*batch coil ky kx)`` about the centre, where `k` samples it densely: for coil maps.

    Raises
    ------
    NoCalibration
        If fewer than `FEWEST` points along an axis are covered.
    """
    assert k.trajectory is not None
    shape = _shape(k)
    covered = covered_width(k.trajectory, shape)
    if covered < FEWEST:
        n = k.data.shape[-2]
        needed = math.ceil(n * FEWEST / max(covered, 1))
        raise NoCalibration(
            f"{n} readouts cover {covered} x {covered} points of the centre of k-space, coil maps need {FEWEST} x {FEWEST}: "
            f"about {needed} readouts",
            k.header.source or None,
            "use more readouts per frame, or give --maps FILE",
        )
    size = min(covered, width)
    inside = [(torch.arange(n) - n // 2 + size // 2 >= 0) & (torch.arange(n) - n // 2 + size // 2 < size) for n in shape]
    mask = (inside[0][:, None] & inside[1]).unsqueeze(0)
    return replace(k, data=fft(coil_images(k)), mask=mask, n_averages=None, trajectory=None, density=None)


def covered_width(trajectory: Tensor, shape: tuple[int, int]) -> int:
    """Points along each axis of the largest centred square of the grid, `LARGEST` at most, of which none is farther than
    `REACH` from a sample of `trajectory` ``(readout sample 2)``; `shape` is the matrix ``(y x)``."""
    from scipy.spatial import cKDTree

    points = trajectory.reshape(-1, 2).double().numpy() * np.array([shape[1], shape[0]])
    n = min(LARGEST, *shape)
    line = np.arange(n) - n // 2
    x, y = np.meshgrid(line, line)
    far = cKDTree(points).query(np.stack([x.ravel(), y.ravel()], -1))[0].reshape(n, n) > REACH
    for width in range(n, 0, -1):
        part = slice(n // 2 - width // 2, n // 2 - width // 2 + width)
        if not far[part, part].any():
            return width
    return 0


def sampling_of(k: KSpace) -> dict[str, object]:
    """Digest of the trajectory, and the acceleration: points of the grid over those that a sample lies at."""
    assert k.trajectory is not None
    shape = _shape(k)
    digest = hashlib.sha256(k.trajectory.numpy().tobytes()).hexdigest()
    return {"digest": digest, "acceleration": math.prod(shape) / max(int(visited(k.trajectory, shape).sum()), 1)}


def _shape(k: KSpace) -> tuple[int, int]:
    x, y, _ = k.header.encoded_matrix
    return y, x
