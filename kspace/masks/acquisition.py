"""Fully sampled k-space as a scan with other sampling would have acquired it, on the Cartesian grid or off it."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from kspace import coils, preprocess
from kspace.container import KSpace
from kspace.fourier import ifft
from kspace.masks.spec import acceleration, digest
from kspace.noncartesian import gridding
from kspace.noncartesian.density import visited
from kspace.noncartesian.nufft import to_samples
from kspace.operators import ForwardModel, Sense


class MaskSource(Protocol):
    """What says where a scan is sampled: `MaskSpec`. Without `trajectory` it is on the grid always."""

    def draw(self, shape: tuple[int, int], key: str) -> Tensor:
        """Bool ``(ky, 1)`` or ``(ky, kx)`` for a matrix `shape`; a pure function."""


def acquire(k: KSpace, sampling: MaskSource, key: str) -> KSpace:
    """Fully sampled k-space ``(coil ky kx)`` as a scan with `sampling` would have acquired it.

    Off the grid the samples are those of the image that the grid determines, by non-uniform transforms. White noise keeps its
    variance, but that of samples closer than a point of the grid is correlated, as it is not in a scan.

    Parameters
    ----------
    k
        Prepared and fully sampled.
    sampling, key
        Where to sample, and for what volume.

    Raises
    ------
    InputError
        If there is no such sampling for this matrix.
    """
    shape = (k.data.shape[-2], k.data.shape[-1])
    find = getattr(sampling, "trajectory", None)
    points = None if find is None else find(shape, key)
    if points is None:
        return preprocess.undersample(k, sampling.draw(shape, key))
    y = to_samples(ifft(torch.where(k.mask, k.data, 0)), points)
    ny, nx = shape
    header = {"encoded_matrix": (nx, ny, k.header.encoded_matrix[2])}
    mask = torch.ones((1, *y.shape[-2:]), dtype=torch.bool)
    sampled = k.after("resample", header=header, data=y, mask=mask, n_averages=None, calibration=None, trajectory=points)
    return gridding.compensated(sampled)


def matrix_of(k: KSpace) -> tuple[int, int]:
    """Matrix ``(y x)`` of the image of prepared k-space of one plane."""
    if k.trajectory is None:
        return k.data.shape[-2], k.data.shape[-1]
    return k.header.encoded_matrix[1], k.header.encoded_matrix[0]


def forward_model(k: KSpace, maps: Tensor) -> ForwardModel:
    """Forward model of prepared k-space with coil maps ``(*batch coil y x)``."""
    if k.trajectory is not None:
        return gridding.forward_model(k, maps)
    return Sense(maps, k.mask, k.header.noise_std or 1.0, k.n_averages, k.calibration)


def estimate_maps(k: KSpace, method: str = "espirit", calibration_width: int = 24) -> Tensor:
    """`kspace.coils.estimate_maps` of prepared k-space; off the grid of its gridded centre. Complex ``(*batch coil y x)``."""
    if k.trajectory is not None:
        k = gridding.calibration_of(k, calibration_width)
    return coils.estimate_maps(k, method, calibration_width=calibration_width)


def digest_of(k: KSpace) -> str:
    """Identity of the sampling of prepared k-space."""
    return digest(k.mask, matrix_of(k)) if k.trajectory is None else str(gridding.sampling_of(k)["digest"])


def acceleration_of(k: KSpace) -> float:
    """Points of the grid over those that are sampled, off the grid those that a sample lies at."""
    if k.trajectory is None:
        return acceleration(k.mask, matrix_of(k))
    shape = matrix_of(k)
    return math.prod(shape) / max(int(visited(k.trajectory, shape).sum()), 1)
