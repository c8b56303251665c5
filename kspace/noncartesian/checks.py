"""What contradicts a trajectory: its reach, the samples on it, the memory that they need."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError

OFF_CENTRE = 1.1  # mean radius of the samples by their energy, relative to that of all


def check_range(points: NDArray[np.float64], encoding: int, path: Path, units: str) -> None:
    """Refuse `points` ``(readout sample axis)`` in cycles per pixel that reach beyond twice the end of k-space."""
    largest = float(np.abs(points).max())
    if largest > 1.0:
        what = f"encoding {encoding}: in units of {units} the trajectory reaches {2 * largest:.3g} times the end of k-space"
        raise InputError(what, path, "correct --trajectory-units, or matrix and field of view in the header")


def check_centre(y: NDArray[np.complexfloating], points: NDArray[np.float64], path: Path) -> None:
    """Refuse a trajectory ``(readout sample axis)`` away from whose centre the samples `y` ``(coil readout sample)`` are
    strongest: no image is like that."""
    radius = np.linalg.norm(points, axis=-1)
    energy = (y.real**2 + y.imag**2).sum(0, dtype=np.float64)
    if (energy * radius).sum() > OFF_CENTRE * radius.mean() * energy.sum():
        at = 2 * (energy * radius).sum() / energy.sum()
        what = f"by the trajectory the samples are strongest at {at:.2f} of the end of k-space, not at its centre"
        raise InputError(what, path, "it is reversed or of other readouts: give --trajectory FILE")


def check_size(n_samples: int, n_coils: int, path: Path) -> None:
    """Refuse early what would die late: the samples of one image, twice, must fit into the machine."""
    needed = 16 * n_samples * n_coils
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        what = f"{n_samples} samples of {n_coils} coils need {needed / 2**30:.1f} GiB, this machine has {there / 2**30:.1f}"
        raise InputError(what, path, "give --frames or --spokes-per-frame, or use a machine with more memory")
