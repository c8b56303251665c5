"""Volumes whose planes are coupled, since their trajectory has kz: coil maps, and the memory that they take."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kspace.container import KSpace
from kspace.errors import InputError
from kspace.espirit import align_phase
from kspace.fourier import fft, ifft, resize
from kspace.noncartesian.gridding import FEWEST, covered_width, too_few
from kspace.noncartesian.nufft import to_image

AXES = (-3, -2, -1)
# Of the largest voxel, below which there are no maps. 3-D radial, 64 points, 8 coils: error of SENSE 0.0409 without it, 0.0184
# at 0.005, 0.0175 here, 0.0171 at 0.05, 0.0232 at 0.1.
DARK = 0.02
# Measured peak beyond the program itself (docs/NONCARTESIAN.md), bytes for each voxel, by method, and for each voxel and coil.
PER_VOXEL = {"l1-wavelet": 870}
LEAST_PER_VOXEL, PER_COIL = 710, 24


def check_memory(k: KSpace, method: str, there: int | None = None) -> None:
    """Refuse early what would die late: a volume takes memory for each point of its matrix and coil, and for its samples.

    Parameters
    ----------
    k
        k-space with kz, its coils compressed or not.
    method
        Name of the method.
    there
        Bytes of memory; None: those of this machine.

    Raises
    ------
    InputError
        With the estimate and what to do.
    """
    x, y, z = k.header.encoded_matrix
    each = PER_VOXEL.get(method, LEAST_PER_VOXEL) + PER_COIL * k.n_coils
    needed = x * y * z * each + 4 * k.data.numel() * k.data.element_size()
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if there is None else there
    if needed > there:
        fix = "choose sense" if method in PER_VOXEL else "give --virtual-coils"
        raise InputError(
            f"a volume of {x} x {y} x {z} points and {k.n_coils} coils needs about {needed / 2**30:.1f} GiB, this machine has "
            f"{there / 2**30:.1f}",
            k.header.source or None,
            f"{fix}, or use a machine with more memory",
        )


def calibration_volume(k: KSpace, width: int) -> Tensor:
    """Cartesian k-space about the centre, complex ``(coil kz ky kx)``, where `compensated` k-space samples it densely.

    Parameters
    ----------
    k
        k-space with kz.
    width
        Most points along each axis.

    Raises
    ------
    NoCalibration
        If fewer than `FEWEST` points in the plane are covered.
    """
    assert k.trajectory is not None
    assert k.density is not None
    x, y, z = k.header.encoded_matrix
    shape = z, y, x
    covered = covered_width(k.trajectory, shape)
    if covered < min(FEWEST, y, x):
        raise too_few(k, covered, 2)
    size = tuple(min(covered, width, n) for n in shape)
    # On a grid of twice the block, of the same field of view: the whole matrix is not needed for it.
    small = tuple(min(2 * m, n) for m, n in zip(size, shape, strict=True))
    points = k.trajectory * torch.tensor([n / m for n, m in zip(shape, small, strict=True)][::-1], dtype=torch.float64)
    inside = ((points >= -0.5) & (points < 0.5)).all(-1)
    points, density = points[inside][None], k.density[inside][None]
    block = k.data.new_zeros((k.n_coils, *size))
    for one, samples in zip(block, k.data, strict=True):
        gridded = to_image((samples[inside][None] * density)[None], points, small)
        one.copy_(resize(fft(gridded[0], AXES), size))
    return block


def estimate_volume_maps(k: KSpace, width: int, of_plane: Callable[[KSpace], Tensor]) -> Tensor:
    """Coil maps of a volume, plane by plane from its gridded centre, brought to image space along z.

    Parameters
    ----------
    k
        `compensated` k-space with kz.
    width
        Most calibration points along each axis.
    of_plane
        Makes maps ``(coil y x)`` from Cartesian k-space ``(coil ky kx)``: `kspace.coils.estimate_maps`.

    Returns
    -------
    Tensor
        Complex64 ``(coil z y x)``, zero in the dark, their phase that of one combination of the coils everywhere.

    Raises
    ------
    NoCalibration
        If the readouts cover too little of the centre of k-space.
    """
    x, y, z = k.header.encoded_matrix
    block = calibration_volume(k, width)
    planes = ifft(resize(block, (z, *block.shape[-2:])), (-3,)).transpose(0, 1)
    mask = resize(torch.ones(block.shape[-2:], dtype=torch.bool), (y, x)).unsqueeze(0)
    maps = torch.zeros((k.n_coils, z, y, x), dtype=torch.complex64)
    for i, plane in enumerate(planes):
        one = replace(k, data=resize(plane, (y, x)), mask=mask, n_averages=None, trajectory=None, density=None)
        maps[:, i] = of_plane(one)
    folded = align_phase(maps.reshape(k.n_coils, z * y, x), block.reshape(k.n_coils, -1, block.shape[-1]))
    return folded.reshape(maps.shape) * _bright(block, (z, y, x))


def _bright(block: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Bool ``(z y x)``: where the image of a block ``(coil kz ky kx)``, windowed against ringing, exceeds `DARK` of its largest
    voxel. Maps of planes beside the object, made of nothing but ringing and noise, are any."""
    window = torch.ones(())
    for n in block.shape[1:]:
        window = window[..., None] * torch.hann_window(n + 2, periodic=False)[1:-1]
    energy = torch.zeros(shape)
    for one in block:
        energy += ifft(resize(one * window, shape), AXES).abs().square()
    return energy > DARK**2 * energy.max()
