"""Toeplitz matrices of non-uniform sampling: kernels on the doubled grid, in parts of the size of the image.

Wajer and Pruessmann 2001, Proc. ISMRM 9:767; Fessler et al. 2005, doi:10.1109/TSP.2005.853152. A transform of 2n points of an
image of n points is two of n points, behind a modulation each: no zeros are transformed, and a volume needs buffers of its own
size, not of eight times that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kspace.fourier import fft_corner, to_corner
from kspace.noncartesian.nufft import to_image
from kspace.operators import weighted_gram

DIGITS = 1e-6  # relative error of the kernels of volumes in single precision


def modulations(shape: Sequence[int], like: Tensor) -> list[list[Tensor]]:
    """``exp(-pi j sum over the axes of p r / n)`` for the parts p, 0 or 1 along each axis of `shape`, as factors that broadcast
    to ``(y x)`` or ``(z y x)``; of the dtype and on the device of `like`."""
    steps = []
    for n in shape:
        angle = -math.pi * torch.arange(n, dtype=torch.float64, device=like.device) / n
        steps.append([torch.polar(torch.ones_like(angle), p * angle) for p in (0, 1)])
    planes = [(y[:, None] * x).to(like.dtype) for y in steps[-2] for x in steps[-1]]
    if len(shape) == 2:
        return [[plane] for plane in planes]
    return [[z[:, None, None].to(like.dtype), plane] for z in steps[0] for plane in planes]


def kernel(points: Tensor, weights: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Kernel of one image: transform of its point spread function on the doubled grid.

    Parameters
    ----------
    points
        Real ``(readout sample 2)`` or ``(readout sample 3)``, cycles per pixel.
    weights
        Real ``(readout sample)``.
    shape
        Matrix ``(y x)`` or ``(z y x)`` of the image.
    dtype
        Real dtype of the kernel.

    Returns
    -------
    Tensor
        Real ``(4 ky kx)``, or ``(8 kz ky kx)`` of volumes: the frequencies of even and odd index along every axis apart, zero
        frequency at index 0.
    """
    rank = len(shape)
    wide = tuple(2 * n for n in shape)
    # A doubled volume is large enough: neither more digits than are used, nor a grid finer than they need.
    digits = DIGITS if rank == 3 and dtype == torch.float32 else None
    spread = to_image(weights.to(torch.complex128).unsqueeze(0), points, wide, digits)[0]
    spread = spread if digits is None else spread.to(torch.complex64)
    for axis in range(rank):  # shifts of n pixels do not occur, and would be their own mirror image
        spread.select(axis, 0).zero_()
    axes = tuple(range(-rank, 0))
    spread = fft_corner(to_corner(spread, axes), axes).real
    # Orthonormal transforms: sqrt(2^d n) of the NUFFT and as much of this one, over n; 2^-d for the parts.
    parts = [spread[tuple(slice(p, None, 2) for p in part)].to(dtype) for part in _parts(rank)]
    return torch.stack(parts)


def interleaved(parts: Tensor, rank: int) -> Tensor:
    """The kernel on the doubled grid, ``(*batch 2ky 2kx)`` or ``(*batch 2kz 2ky 2kx)``, of its `parts` as from `kernel`."""
    shape = parts.shape[-rank:]
    wide = parts.new_empty((*parts.shape[: -rank - 1], *(2 * n for n in shape)))
    for i, part in enumerate(_parts(rank)):
        every_second: tuple[Any, ...] = (..., *(slice(p, None, 2) for p in part))
        wide[every_second] = parts.select(-rank - 1, i)
    return wide


def gram(maps: Tensor, parts: Tensor, factors: Sequence[Sequence[Tensor]]) -> Callable[[Tensor], Tensor]:
    """Function ``x -> sum over coils of conj(maps) T (maps x)`` with T the Toeplitz matrix of a kernel.

    Parameters
    ----------
    maps
        Complex ``(*batch coil y x)`` or ``(*batch coil z y x)``.
    parts
        Of the kernel, real ``(*batch 4 ky kx)`` or ``(*batch 8 kz ky kx)``.
    factors
        `modulations`.
    """
    rank = len(factors[0]) + 1
    axes = tuple(range(-rank, 0))
    steps = [weighted_gram(maps, parts.select(-rank - 1, i).unsqueeze(-rank - 1), axes) for i in range(len(factors))]

    def apply(x: Tensor) -> Tensor:
        image = steps[0](x)
        for phases, step in zip(factors[1:], steps[1:], strict=True):
            moved = x
            for phase in phases:
                moved = phase * moved
            moved = step(moved)
            for phase in phases:
                moved = phase.conj() * moved
            image = image + moved
        return image

    return apply


def _parts(rank: int) -> list[tuple[int, ...]]:
    """Even (0) or odd (1) frequencies along each axis, in the order of the parts of a kernel."""
    return list(itertools.product((0, 1), repeat=rank))
