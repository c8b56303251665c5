"""Receivers for simulated scans: coil maps, the noise that their coils share, and smooth phase."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PHASE_ORDER = 4
RING = 64  # elements of the ring that coils are picked from
RADII = (1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0)
CLOSE_RADII = (0.85, 0.95, 1.05, 1.2, 1.4, 1.8)  # where elements lie inside of the field of view, in its corners or in air
MAPS_GRID = 64


@dataclass(frozen=True, eq=False)
class Receiver:
    """A receiver: maps and noise of its coils.

    Attributes
    ----------
    maps
        Whitened, complex64 ``(coil y x)``, unit root sum of squares everywhere.
    mixing
        Complex64 ``(coil coil)``, the Cholesky factor L of the noise covariance ``L L^H``, whose mean variance is 1: unwhitened
        samples are ``L`` times whitened ones.
    """

    maps: Tensor
    mixing: Tensor


def whitened_coils(maps: Tensor, covariance: Tensor, shape: Sequence[int]) -> Receiver:
    """A receiver of maps and noise covariance, both of any scale, its maps interpolated to `shape`.

    Parameters
    ----------
    maps
        Smooth, complex64 ``(coil y x)``, not whitened.
    covariance
        Complex ``(coil coil)``, positive definite.
    shape
        Points ``(y, x)``.
    """
    covariance = covariance.to(torch.complex128)
    if covariance.shape != (len(maps), len(maps)):
        raise ValueError(f"covariance {tuple(covariance.shape)} for {len(maps)} coils")
    mixing = torch.linalg.cholesky(covariance / covariance.diagonal().real.mean())
    # Whitening and interpolation commute, and the coarse grid has fewer points.
    whitened = torch.linalg.solve_triangular(mixing.to(torch.complex64), maps.flatten(1), upper=False).view(maps.shape)
    whitened = _resample(whitened, shape)
    power = torch.view_as_real(whitened).square().sum((0, -1))
    return Receiver(whitened * power.clamp_min(torch.finfo(power.dtype).tiny).rsqrt(), mixing.to(torch.complex64))


def birdcage(n_coils: int, rng: torch.Generator, varied: bool = False) -> Tensor:
    """Coil maps of a random receiver, complex64 ``(coil 64 64)``: they are smooth, `whitened_coils` brings them to the matrix.

    Elements of SigPy's birdcage of random radius, at jittered places around the ring, each with its own gain, phase and a
    smooth deviation of about a tenth; `varied`: with elements as close as those of head arrays, and a deviation that is drawn.
    """
    radii = CLOSE_RADII if varied else RADII
    radius = radii[int(torch.randint(len(radii), (), generator=rng))]
    strength = 0.05 + 0.45 * float(torch.rand((), generator=rng)) if varied else 0.1
    ring = _ring(radius)
    jitter = 0.6 * (torch.rand(n_coils, generator=rng) - 0.5)
    place = (torch.arange(n_coils) + jitter) / n_coils + torch.rand((), generator=rng)
    maps = ring[(place * RING).long() % RING]
    if torch.rand((), generator=rng) < 0.5:
        maps = maps.flip(-1)
    gain = torch.exp(0.2 * torch.randn(n_coils, generator=rng))
    phase = 2 * math.pi * torch.rand(n_coils, generator=rng)
    deviation = torch.stack(
        [
            torch.complex(
                strength * _bump(maps.shape[-2:], rng), strength * _bump(maps.shape[-2:], rng)
            )  # of log gain, and of phase
            for _ in range(n_coils)
        ]
    )
    return maps * torch.polar(gain, phase)[:, None, None] * deviation.exp()


def coupling(n_coils: int, rng: torch.Generator) -> Tensor:
    """Noise covariance of coils that couple with their neighbours: complex128 ``(coil coil)``, mean variance 1.

    ``A A^H`` with 1 on the diagonal of A, complex normal entries of standard deviation 0.2 between neighbours on the ring and
    0.05 between the others; gains differ by about 15 percent.
    """
    place = torch.arange(n_coils)
    distance = (place[:, None] - place[None]).abs()
    distance = torch.minimum(distance, n_coils - distance)
    strength = torch.where(distance == 1, 0.2, 0.05).double() * (distance > 0)
    mixing = torch.eye(n_coils) + strength * torch.randn(n_coils, n_coils, generator=rng, dtype=torch.complex128)
    mixing = torch.exp(0.15 * torch.randn(n_coils, generator=rng, dtype=torch.float64))[:, None] * mixing
    covariance = mixing @ mixing.mH
    return covariance / covariance.diagonal().real.mean()


def smooth_phase(shape: Sequence[int], rng: torch.Generator, std: float) -> Tensor:
    """Random smooth phase, float32 ``(y x)``, in radians.

    Cosines of orders 0 to 4 along each axis (not periodic, as phase is not), with normal weights that fall off as
    1 / (1 + order^2), scaled to `std` in expectation over images; the constant is uniform over the circle.
    """
    order = torch.arange(PHASE_ORDER + 1)
    weight = 1.0 / (1.0 + order[:, None] ** 2 + order[None] ** 2)
    weight[0, 0] = 0.0
    power = torch.where(order == 0, 1.0, 0.5)  # mean square of a cosine over the axis
    weight = weight * (std / (weight.square() * power[:, None] * power[None]).sum().sqrt())
    weight = weight * torch.randn(weight.shape, generator=rng)
    y, x = (torch.cos(math.pi * order[:, None] * (torch.arange(n) + 0.5) / n) for n in shape)
    return y.T @ weight @ x + 2 * math.pi * torch.rand((), generator=rng)


def maps_from_images(coil_images: Tensor) -> Tensor:
    """Smooth coil maps from low-resolution coil images of any object, continued beyond it; complex64 ``(coil y x)``.

    The phase of the object is removed by a virtual coil, the combination of largest energy; ratios to it are averaged over
    Gaussian neighbourhoods, wider ones where the object is far, weighted with the signal (normalised convolution: Knutsson and
    Westin, CVPR 1993, doi:10.1109/CVPR.1993.341081).

    Parameters
    ----------
    coil_images
        Complex ``(coil y x)``.
    """
    flat = coil_images.flatten(1).to(torch.complex128)
    _, vectors = torch.linalg.eigh(flat @ flat.mH)
    virtual = (vectors[:, -1].conj() @ flat).view(coil_images.shape[1:])
    product = coil_images.to(torch.complex128) * virtual.conj()
    weight = virtual.abs().square()
    maps, filled = torch.zeros_like(product), torch.zeros_like(weight, dtype=torch.bool)
    width = max(coil_images.shape[-2:])
    for sigma in (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 1.0):
        near = _blur(weight, sigma * width)
        use = ~filled & ((near > 0.05 * near.max()) if sigma < 1 else torch.ones_like(filled))
        maps = torch.where(use, _blur(product, sigma * width) / near.clamp_min(torch.finfo(near.dtype).tiny), maps)
        filled |= use
    smooth = _blur(maps, 0.012 * width)  # joins the pieces
    return smooth.to(torch.complex64)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian mean over the last two axes; beyond the edge there is nothing."""
    for axis in (-2, -1):
        place = torch.arange(x.shape[axis], dtype=torch.float64)
        kernel = torch.exp(-0.5 * ((place[:, None] - place[None]) / sigma) ** 2).to(x.dtype)
        x = torch.movedim(torch.tensordot(x, kernel, dims=([axis], [0])), -1, axis)
    return x


def _bump(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    phase = smooth_phase(shape, rng, 1.0)
    return phase - phase.mean()


@functools.lru_cache(maxsize=len(RADII) + len(CLOSE_RADII))
def _ring(radius: float) -> Tensor:
    import sigpy.mri

    maps = sigpy.mri.birdcage_maps((RING, MAPS_GRID, MAPS_GRID), r=radius, dtype=np.complex64)
    return torch.from_numpy(maps)


def _resample(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """Smooth maps ``(coil y x)`` on another grid, by cubic interpolation."""
    if tuple(maps.shape[-2:]) == tuple(shape):
        return maps
    to_y, to_x = (_cubic(n, m) for n, m in zip(maps.shape[-2:], shape, strict=True))
    return torch.complex(to_y @ maps.real @ to_x.T, to_y @ maps.imag @ to_x.T)


@functools.lru_cache(maxsize=16)
def _cubic(n: int, m: int) -> Tensor:
    """Matrix ``(m n)`` that interpolates n points to m; two products with it are faster than a general resampling."""
    columns = torch.eye(n)[:, None, :, None]
    return torch.nn.functional.interpolate(columns, size=(m, 1), mode="bicubic", align_corners=True)[:, 0, :, 0].T
