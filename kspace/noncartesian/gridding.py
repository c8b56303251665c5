"""What gridding makes of samples off the Cartesian grid: coil images, and the calibration area for coil maps.

Volumes, whose trajectories have kz, go coil by coil; their maps are in `kspace.noncartesian.volume`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
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
    """Complex ``(*batch coil y x)``, or ``(coil z y x)`` of a volume: the density-compensated samples of `compensated` k-space,
    gridded."""
    assert k.trajectory is not None
    assert k.density is not None
    shape = _shape(k)
    y = (k.data * k.density).reshape(-1, *k.data.shape[-2:])
    at_once = 1 if k.is_volume else len(y)
    images = y.new_zeros((len(y), *shape))
    for first in range(0, len(y), at_once):
        images[first : first + at_once] = to_image(y[first : first + at_once], k.trajectory, shape)
    return images.reshape(*k.data.shape[:-2], *shape)


def forward_model(k: KSpace, maps: Tensor) -> NonCartesianSense:
    """Forward model of k-space off the grid with coil maps ``(*batch coil y x)``, or ``(coil z y x)`` of a volume."""
    assert k.trajectory is not None
    noise = k.header.noise_std
    return NonCartesianSense(maps, k.trajectory, density=k.density, noise_std=noise or 1.0, noise_known=bool(noise))


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
        raise too_few(k, covered, 1)
    size = min(covered, width)
    inside = [(torch.arange(n) - n // 2 + size // 2 >= 0) & (torch.arange(n) - n // 2 + size // 2 < size) for n in shape]
    mask = (inside[0][:, None] & inside[1]).unsqueeze(0)
    return replace(k, data=fft(coil_images(k)), mask=mask, n_averages=None, trajectory=None, density=None)


def too_few(k: KSpace, covered: int, power: int) -> NoCalibration:
    """The error of k-space whose readouts cover too little: the number that is needed grows with a `power` of the width."""
    n, axes = k.data.shape[-2], 3 if k.is_volume else 2
    needed = math.ceil(n * (FEWEST / max(covered, 1)) ** power)
    found, wanted = (" x ".join([str(width)] * axes) for width in (covered, FEWEST))
    return NoCalibration(
        f"{n} readouts cover {found} points of the centre of k-space, coil maps need {wanted}: about {needed} readouts",
        k.header.source or None,
        "use more readouts per frame, or give --maps FILE",
    )


def covered_width(trajectory: Tensor, shape: Sequence[int]) -> int:
    """Points along each axis of the largest centred square of the grid, `LARGEST` at most, of which none is farther than
    `REACH` from a sample of `trajectory` ``(readout sample 2)``; `shape` is the matrix ``(y x)``. With kz and ``(z y x)`` that
    of a cube, along z as far as the matrix goes."""
    from scipy.spatial import cKDTree

    points = trajectory.reshape(-1, len(shape)).double().numpy()[:, ::-1] * np.array(shape)
    n = min(LARGEST, *shape[-2:])
    sizes = [min(n, size) for size in shape]
    grid = np.stack(np.meshgrid(*(np.arange(size) - size // 2 for size in sizes), indexing="ij"), -1)
    near = points[(np.abs(points) <= np.array(sizes) // 2 + 1).all(1)]
    if not len(near):
        return 0
    far = cKDTree(near).query(grid.reshape(-1, len(shape)))[0].reshape(sizes) > REACH
    for width in range(n, 0, -1):
        parts = [min(width, size) for size in sizes]
        centre = tuple(slice(size // 2 - m // 2, size // 2 - m // 2 + m) for size, m in zip(sizes, parts, strict=True))
        if not far[centre].any():
            return width
    return 0


def sampling_of(k: KSpace) -> dict[str, object]:
    """Digest of the trajectory, and the acceleration: points of the grid over those that a sample lies at."""
    assert k.trajectory is not None
    shape = _shape(k)
    digest = hashlib.sha256(k.trajectory.numpy().tobytes()).hexdigest()
    return {"digest": digest, "acceleration": math.prod(shape) / max(int(visited(k.trajectory, shape).sum()), 1)}


def _shape(k: KSpace) -> tuple[int, ...]:
    x, y, z = k.header.encoded_matrix
    return (z, y, x) if k.is_volume else (y, x)
