"""Partial Fourier reconstruction by projection onto convex sets (POCS)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import fft, ifft

FEWEST_CENTRE_LINES = 4


def pocs(k: KSpace, n_iterations: int = 20) -> KSpace:
    """Estimate the unmeasured side of partial Fourier data by projection onto convex sets.

    The phase of each coil image is estimated from the symmetric centre of k-space, and the unmeasured side is filled in
    consistently with it (Haacke et al. 1991, doi:10.1016/0022-2364(91)90253-P). Applies to ky, kz and the readout.

    Parameters
    ----------
    k
        k-space ``(*batch coil ky kx)`` without undersampling between the outermost sampled lines.
    n_iterations
        Number of projections.

    Returns
    -------
    KSpace
        With the estimated samples, marked as sampled once.

    Raises
    ------
    InputError
        If k-space is undersampled, is symmetric, or extends less than 4 samples beyond its centre.
    """
    source = k.header.source or None
    axes = (-4, -2, -1) if k.header.encoded_matrix[2] > 1 and "decouple" not in k.header.steps else (-2, -1)
    sampled = torch.ones_like(k.data[..., :1, :, :].real, dtype=torch.bool) & k.mask
    boxes = {axis: _extent(sampled, axis) for axis in axes}
    partial = [axis for axis, (low, high, n) in boxes.items() if abs((n // 2 - low) - (high - n // 2)) > 1]
    if not partial:
        raise InputError("k-space is sampled symmetrically, POCS has nothing to estimate", source, "leave POCS out")
    box = _box(sampled, {axis: (low, high) for axis, (low, high, _) in boxes.items()})
    if not bool(sampled[box].all()):
        raise InputError("POCS needs contiguous lines, the data are undersampled", source, "leave POCS out")
    target, taper = {}, torch.ones((), device=k.data.device)
    for axis, (low, high, n) in boxes.items():
        centre = n // 2
        least, most = min(centre - low, high - centre), max(centre - low, high - centre)
        if axis in partial:
            if least < FEWEST_CENTRE_LINES:
                raise InputError(
                    f"partial Fourier data extend {least} samples beyond the centre, POCS needs {FEWEST_CENTRE_LINES}", source
                )
            taper = taper * _window(n, least, axis, k.data)
        target[axis] = max(0, centre - most), min(n - 1, centre + most)
    estimate = _project(k.data, sampled, taper, axes, n_iterations)
    filled = torch.zeros_like(sampled)
    filled[_box(sampled, target)] = True
    data = torch.where(filled, estimate, 0)
    n_averages = None if k.n_averages is None else torch.where(sampled, k.n_averages, filled.to(k.n_averages.dtype))
    return k.after("pocs", data=data, mask=filled, n_averages=n_averages)


def _project(y: Tensor, sampled: Tensor, taper: Tensor, axes: tuple[int, ...], n_iterations: int) -> Tensor:
    phase = torch.sgn(ifft(y * taper, axes))
    estimate = y
    for _ in range(n_iterations):
        estimate = torch.where(sampled, y, fft(ifft(estimate, axes).abs() * phase, axes))
    return estimate


def _extent(sampled: Tensor, axis: int) -> tuple[int, int, int]:
    lines = sampled.movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
    n = sampled.shape[axis]
    return (int(lines[0]), int(lines[-1]), n) if len(lines) else (0, n - 1, n)


def _box(x: Tensor, ranges: dict[int, tuple[int, int]]) -> tuple[slice, ...]:
    box = [slice(None)] * x.ndim
    for axis, (low, high) in ranges.items():
        box[axis] = slice(low, high + 1)
    return tuple(box)


def _window(n: int, half_width: int, axis: int, like: Tensor) -> Tensor:
    """Hann window over the symmetric centre: a sharp edge would cause ringing in the phase estimate."""
    distance = (torch.arange(n, device=like.device) - n // 2).abs() / (half_width + 1)
    window = torch.where(distance < 1, torch.cos(distance * (math.pi / 2)) ** 2, 0)
    return window.reshape(-1, *[1] * (-axis - 1))
