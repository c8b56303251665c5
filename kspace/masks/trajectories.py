"""Radial and spiral trajectories, as they are or gridded to an exact number of Cartesian samples, and central blocks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kspace.fourier import central
from kspace.masks.request import Mask, Request
from kspace.noncartesian.trajectory import golden_angles
from kspace.noncartesian.trajectory import radial as radial_lines
from kspace.noncartesian.trajectory import spiral as spiral_arms

REACH = math.sqrt(2)  # trajectories extend into the corners of k-space, so that fractions up to 1 are possible
# Spiral design limited by the gradient amplitude, never by the slew rate, so that samples are evenly spaced along the arms.
FOV_M, GRADIENT_T_M, SLEW_T_M_S = 0.24, 0.03, 1e8
ARM_STEP = 0.8  # points of the grid between samples along the arms of `spiral_readouts`
STEP, DENSEST = 0.4, 1.0  # sample spacing along the arm, and minimum spacing between turns, in grid samples


def radial(request: Request) -> Mask:
    """Golden-angle centre-out spokes of exactly ``round(ny * nx / R)`` grid points, the last one truncated.

    Winkelmann et al., IEEE TMI 26(1):68-76, 2007, doi:10.1109/TMI.2006.885337. All spokes share one random rotation.
    """
    from sigpy.mri import radial as spokes  # imported here: SigPy is heavy

    n_points, angle = request.n_points(), 2 * math.pi * request.random.uniform(1)[0]
    # At most half a sample apart, so that no grid point is skipped; a power of two, because SigPy steps by 0.5 / n_readout
    # and fails where rounding makes room for one more sample.
    n_readout = 1 << math.ceil(math.log2(REACH * max(request.ny, request.nx)))
    n_spokes = max(8, 2 * n_points // max(request.ny, request.nx))
    most = 64 * max(request.ny, request.nx)
    while True:
        points = _gridded(request, REACH * _rotated(spokes((n_spokes, n_readout, 2), (1, 1)).reshape(-1, 2), angle))
        if points.size >= n_points or n_spokes >= most:
            return _first(request, points, n_points)
        n_spokes *= 2


def spiral(request: Request) -> Mask:
    """Variable-density spiral of exactly ``round(ny * nx / R)`` grid points, bool ``(ny, nx)``.

    ``alpha`` sets the density and ``interleaves`` the number of arms (Kim, Adalsteinsson and Spielman, MRM 50(1):214-219,
    2003, doi:10.1002/mrm.10493). The pitch is searched for a slight excess of points, and the outermost are dropped; where
    even turns one sample apart give too few, points are added from the centre outwards. The rotation is random.
    """
    n_points, angle = request.n_points(), 2 * math.pi * request.random.uniform(1)[0]
    if n_points == request.ny * request.nx:
        return np.ones((request.ny, request.nx), bool)
    n_arms, n = request.options["interleaves"], math.ceil(REACH * max(request.ny, request.nx))
    # SigPy's formula holds only if the arms make more than one turn in total.
    low, high = DENSEST, max(DENSEST, 0.99 * n / 2 / n_arms)
    pitch = min(max(low, request.required_acceleration), high)
    for _ in range(10):
        size = _count(request, _rotated(_arms(request, n, pitch), angle))
        low, high = (pitch, high) if size >= n_points else (low, pitch)
        if n_points <= size <= 1.01 * n_points or high < 1.02 * low:
            break
        guess = pitch * size / (1.005 * n_points)  # points are inversely proportional to pitch until turns overlap
        pitch = guess if low < guess < high else math.sqrt(low * high)
    k = _rotated(_arms(request, n, low), angle)
    # Rounded, so that the order of samples does not depend on the last bit of a platform's cosine.
    points = _gridded(request, k[np.argsort(np.round(np.hypot(k[:, 0], k[:, 1]), 9), kind="stable")])
    return _first(request, points, n_points)


def _arms(request: Request, n: int, pitch: float) -> NDArray[np.float64]:
    """SigPy's spiral, ``(sample, 2)`` of (ky, kx), scaled to put the edge of the longer axis at 0.5."""
    from sigpy.mri import spiral as sigpy_spiral  # imported here: SigPy is heavy

    with np.errstate(invalid="ignore"):  # the first sample, k = 0, evaluates 0 ** 0 of rounding errors
        k = sigpy_spiral(
            FOV_M, n, STEP, pitch, request.options["interleaves"], request.options["alpha"], GRADIENT_T_M, SLEW_T_M_S
        )
    return k[np.isfinite(k).all(1)] * FOV_M / max(request.ny, request.nx)


def radial_readouts(request: Request) -> NDArray[np.float64]:
    """Spokes through the centre, ``(spoke sample 2)`` of kx and ky in cycles per pixel: a readout for every R-th line of the
    matrix, two samples per pixel, as scanners have them. All share one random rotation.
    """
    n = max(request.ny, request.nx)
    n_spokes = _readouts(request, n)
    angles = golden_angles(n_spokes) if request.options["angles"] == "golden" else np.arange(n_spokes) * math.pi / n_spokes
    return radial_lines(n_spokes, 2 * n, angles + 2 * math.pi * request.random.uniform(1)[0])


def spiral_readouts(request: Request) -> NDArray[np.float64]:
    """Interleaved Archimedean spirals, ``(interleave sample 2)`` of kx and ky in cycles per pixel.

    Neighbouring turns lie R points of the grid apart, samples along the arms `ARM_STEP`. The rotation is random.
    """
    n, n_arms = max(request.ny, request.nx), request.options["interleaves"]
    turns = n / 2 / (request.required_acceleration * n_arms)
    theta = 2 * math.pi * turns
    length = n / 4 / theta * (theta * math.hypot(theta, 1) + math.asinh(theta))  # points of the grid
    n_samples = math.ceil(length / ARM_STEP)
    return spiral_arms(n_arms, n_samples, turns) @ _turn(2 * math.pi * request.random.uniform(1)[0])


def refuse_points(request: Request) -> Mask:
    """Refuses: what these families sample lies between the points of a grid."""
    family = request.text.partition(":")[0]
    raise request.refuse(
        f"'{family}' samples off the Cartesian grid", f"use {family.removesuffix('-nufft')} where a mask of a grid is needed"
    )


def _readouts(request: Request, n: int) -> int:
    if (count := round(n / request.required_acceleration)) < 1:
        raise request.refuse(
            f"acceleration {request.required_acceleration:g} leaves no readout", f"the nearest possible is {n}"
        )
    return count


def _turn(angle: float) -> NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])


def centre(request: Request) -> Mask:
    """Central block of k-space: the same share of both axes (``axes=both``), or central lines (``axes=ky``)."""
    if request.options["axes"] == "ky":
        mask = np.zeros(request.ny, bool)
        mask[central(request.ny, request.n_lines())] = True
        return mask
    n_points = request.n_points()
    height = max(1, round(request.ny / math.sqrt(request.required_acceleration)))
    width = min(max(1, round(n_points / height)), request.nx)
    height = min(max(1, round(n_points / width)), request.ny)
    block = np.zeros((request.ny, request.nx), bool)
    block[central(request.ny, height), central(request.nx, width)] = True
    return block


def _rotated(k: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    return k @ _turn(angle)


def _flat(request: Request, k: NDArray[np.float64]) -> NDArray[np.intp]:
    """Flat indices of the grid points that `k`, ``(n, 2)`` of (ky, kx) with the edges at 0.5, visits, in order."""
    shape = np.array([request.ny, request.nx])
    index = np.floor(k * shape + 0.5).astype(np.intp) + shape // 2
    index = index[((index >= 0) & (index < shape)).all(1)]
    return index[:, 0] * request.nx + index[:, 1]


def _count(request: Request, k: NDArray[np.float64]) -> int:
    passed = np.zeros(request.ny * request.nx, bool)
    passed[_flat(request, k)] = True
    return int(passed.sum())


def _gridded(request: Request, k: NDArray[np.float64]) -> NDArray[np.intp]:
    """As `_flat`, without repeated visits."""
    flat = _flat(request, k)
    return flat[np.sort(np.unique(flat, return_index=True)[1])]


def _first(request: Request, points: NDArray[np.intp], n_points: int) -> Mask:
    """Mask of `n_points`: the calibration square, then `points` in order, then the remaining points nearest to the centre."""
    mask = np.zeros((request.ny, request.nx), bool)
    if request.centre is not None:
        side = request.centre_side(n_points)
        mask[central(request.ny, side), central(request.nx, side)] = True
    y, x = np.divmod(np.arange(mask.size), request.nx)
    outwards = np.argsort(((y - request.ny // 2) * request.nx) ** 2 + ((x - request.nx // 2) * request.ny) ** 2, kind="stable")
    flat = mask.ravel()
    for order in (outwards[:1], points, outwards):
        fresh = order[~flat[order]]
        flat[fresh[: n_points - int(flat.sum())]] = True
    return mask
