"""Trajectories as files state them, in cycles per pixel of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError

Units = Literal["fraction", "grid", "1/m", "rad", "rad/m"]
UNITS: tuple[Units, ...] = ("fraction", "grid", "1/m", "rad", "rad/m")
NEAR, FAR = 1.3, 2.0  # ratios of the largest |k| to that of a full k-space: of this unit, and of no other
BEYOND = {"fraction": 1.4, "grid": 1.4, "rad": 1.02}  # how far above it may be: ±1 is none, nor ±n, and pi is exact
BELOW = {"rad": 1.1}
GOLDEN = math.pi * (math.sqrt(5) - 1) / 2  # 111.25 degrees; Winkelmann et al. 2007, doi:10.1109/TMI.2006.885337


def guess_units(largest: float, voxel_m: float, matrix: Sequence[int], where: str) -> Units:
    """Units of a trajectory from its largest component, among ±0.5, ±n/2, 1/m, radians per pixel (±pi) and per metre.

    Parameters
    ----------
    largest
        Largest magnitude of kx and ky.
    voxel_m
        Encoded voxel size: k-space ends at ``1 / (2 voxel_m)``.
    matrix
        Candidates for n, the encoded and the reconstructed matrix.
    where
        Of the trajectory, for messages.

    Raises
    ------
    InputError
        If no unit fits, or two do.
    """
    end = 1 / (2 * voxel_m)
    full: dict[Units, list[float]] = {
        "fraction": [0.5],
        "grid": [n / 2 for n in matrix],
        "1/m": [end],
        "rad": [math.pi],
        "rad/m": [2 * math.pi * end],
    }
    off = {
        unit: min(max(largest / k, k / largest) for k in ends)
        for unit, ends in full.items()
        if min(ends) / BELOW.get(unit, FAR) <= largest <= max(ends) * BEYOND.get(unit, FAR)
    }
    ranked = sorted(off, key=lambda unit: off[unit])
    said = f"the largest |k| of the trajectory is {largest:.4g}"
    ends = ", ".join(f"{full[unit][0]:.4g} ({unit})" for unit in UNITS[:-1]) + f" or {full['rad/m'][0]:.4g} (rad/m)"
    fix = "give --trajectory-units, or --trajectory FILE in one of them"
    if not ranked:
        raise InputError(f"{said}, outside of every unit: expected about {ends}", where, fix)
    if len(ranked) > 1 and off[ranked[1]] < NEAR * off[ranked[0]]:
        raise InputError(f"{said}: {ranked[0]} or {ranked[1]}; expected about {ends}", where, fix)
    return ranked[0]


def cycles_per_pixel(
    k: NDArray[np.float64], units: Units, voxel_m: Sequence[float], fov_m: Sequence[float]
) -> NDArray[np.float64]:
    """`k` ``(readout sample 2)`` or ``(readout sample 3)`` in `units`, in cycles per pixel of `voxel_m` ``(x, y, z)``; `fov_m`
    is that of ``grid``."""
    if units == "fraction":
        return k
    if units == "rad":
        return k / (2 * math.pi)
    n = k.shape[-1]
    per = {"grid": np.asarray(fov_m[:n]), "1/m": 1.0, "rad/m": 2 * math.pi}[units]
    return np.multiply(k, np.asarray(voxel_m[:n]) / per, dtype=np.float64)


def radial(n_spokes: int, n_samples: int, angles: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Spokes through the centre, ``(spoke sample 2)`` in fractions of k-space (±0.5); the centre is sample ``n_samples // 2``.

    `angles` ``(spoke,)`` in radians; None: equally spaced over the half circle.
    """
    angles = np.arange(n_spokes) * math.pi / n_spokes if angles is None else angles
    r = (np.arange(n_samples) - n_samples // 2) / n_samples
    return np.stack([np.cos(angles)[:, None] * r, np.sin(angles)[:, None] * r], -1)


def golden_angles(n_spokes: int) -> NDArray[np.float64]:
    """Angles of successive spokes, ``(spoke,)`` radians: multiples of `GOLDEN`."""
    return np.arange(n_spokes, dtype=np.float64) * GOLDEN


def spiral(n_arms: int, n_samples: int, n_turns: float) -> NDArray[np.float64]:
    """Archimedean spirals from the centre, ``(arm sample 2)`` in fractions of k-space (±0.5); samples equally spaced."""
    fine = np.linspace(0, 2 * math.pi * n_turns, 16 * n_samples)
    length = fine * np.sqrt(1 + fine**2) + np.arcsinh(fine)  # along ``r = theta``, doubled
    theta = np.interp(np.arange(n_samples) / n_samples * length[-1], length, fine)
    radius = 0.5 * theta / (2 * math.pi * n_turns)
    angle = theta + 2 * math.pi * np.arange(n_arms)[:, None] / n_arms
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def kooshball(n_spokes: int, n_samples: int) -> NDArray[np.float64]:
    """Spokes through the centre in all directions of space, ``(spoke sample 3)`` in fractions of k-space (±0.5): multiples of
    the two-dimensional golden means (Chan et al. 2009, doi:10.1002/mrm.21837), so that any number of successive ones covers
    the sphere evenly; the centre is sample ``n_samples // 2``."""
    turns = np.arange(n_spokes)[:, None] * (0.465571231876768, 0.682327803828019) % 1.0
    height, angle = turns[:, 0], 2 * math.pi * turns[:, 1]  # half a sphere: the spokes have two ends
    flat = np.sqrt(1 - height**2)
    directions = np.stack([flat * np.cos(angle), flat * np.sin(angle), height], -1)
    r = (np.arange(n_samples) - n_samples // 2) / n_samples
    return np.einsum("sd,r->srd", directions, r)


def rotated_stack(counts: Sequence[int], n_samples: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Stack of stars whose angles go on from one partition to the next by the golden angle.

    Parameters
    ----------
    counts
        Spokes of each partition.
    n_samples
        Of a spoke.

    Returns
    -------
    tuple
        ``(spoke sample 3)`` in fractions of k-space (±0.5), kz at the points of the grid, and the partition ``(spoke)``.
    """
    n, partition = len(counts), np.repeat(np.arange(len(counts)), counts)
    plane = radial(len(partition), n_samples, golden_angles(len(partition)))
    kz = np.broadcast_to(((partition - n // 2) / n)[:, None, None], (*plane.shape[:2], 1))
    return np.concatenate([plane, kz], -1), partition
