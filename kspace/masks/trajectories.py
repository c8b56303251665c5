"""SigPy's radial and spiral trajectories, rasterised on the Cartesian grid to an exact number of points; and central blocks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kspace.masks.request import Mask, Request, central

REACH = math.sqrt(2)  # trajectories run on beyond the edges, into the corners: fractions up to 1 are possible
# Of the spiral. The gradient limits it everywhere and the slew rate nowhere: its samples are evenly spaced along it.
FOV_M, GRADIENT_T_M, SLEW_T_M_S = 0.24, 0.03, 1e8
STEP, DENSEST = 0.4, 1.0  # spacing of samples along, and at least of turns across, in samples of the grid


def radial(ask: Request) -> Mask:
    """Golden-angle spokes from the centre outwards, as many as make ``round(ny * nx / R)`` points; the last one is cut short.

    Winkelmann et al., IEEE TMI 26(1):68-76, 2007, doi:10.1109/TMI.2006.885337. One random angle rotates all spokes.
    """
    from sigpy.mri import radial as spokes  # imported here: SigPy is heavy

    n_points, turn = ask.n_points(), 2 * math.pi * ask.random.uniform(1)[0]
    # At most half a sample apart, so that no point of the grid is jumped over; a power of two, because SigPy steps by
    # 0.5 / n_readout and fails where that rounds such that one more sample fits.
    n_readout = 1 << math.ceil(math.log2(REACH * max(ask.ny, ask.nx)))
    n_spokes = max(8, 2 * n_points // max(ask.ny, ask.nx))
    most = 64 * max(ask.ny, ask.nx)
    while True:
        points = _gridded(ask, REACH * _turned(spokes((n_spokes, n_readout, 2), (1, 1)).reshape(-1, 2), turn))
        if points.size >= n_points or n_spokes >= most:
            return _first(ask, points, n_points)
        n_spokes *= 2


def spiral(ask: Request) -> Mask:
    """A variable-density spiral of exactly ``round(ny * nx / R)`` points: ``alpha`` sets the density, ``interleaves`` the arms.

    Kim, Adalsteinsson and Spielman, MRM 50(1):214-219, 2003, doi:10.1002/mrm.10493. The pitch is searched for slightly too
    many points, and the outermost are left out; a fraction that turns one sample apart do not reach is filled up from the
    centre. The spiral has a random rotation.
    """
    n_points, turn = ask.n_points(), 2 * math.pi * ask.random.uniform(1)[0]
    if n_points == ask.ny * ask.nx:
        return np.ones((ask.ny, ask.nx), bool)
    n_arms, n = ask.options["interleaves"], math.ceil(REACH * max(ask.ny, ask.nx))
    # SigPy's formula holds while the arms together make more than one turn.
    low, high = DENSEST, max(DENSEST, 0.99 * n / 2 / n_arms)
    pitch = min(max(low, ask.required_acceleration), high)
    for _ in range(10):
        size = _count(ask, _turned(_arms(ask, n, pitch), turn))
        low, high = (pitch, high) if size >= n_points else (low, pitch)
        if n_points <= size <= 1.01 * n_points or high < 1.02 * low:
            break
        guess = pitch * size / (1.005 * n_points)  # half the pitch makes twice the points, until turns meet
        pitch = guess if low < guess < high else math.sqrt(low * high)
    k = _turned(_arms(ask, n, low), turn)
    # Rounded, so that samples of several arms come in the same order whatever the last bit of a platform's cosine is.
    points = _gridded(ask, k[np.argsort(np.round(np.hypot(k[:, 0], k[:, 1]), 9), kind="stable")])
    return _first(ask, points, n_points)


def _arms(ask: Request, n: int, pitch: float) -> NDArray[np.float64]:
    """SigPy's spiral, the edge of the grid's longer axis at 0.5."""
    from sigpy.mri import spiral as sigpy_spiral  # imported here: SigPy is heavy

    with np.errstate(invalid="ignore"):  # its first sample, the zero frequency, comes out as 0 ** 0 of rounding errors
        k = sigpy_spiral(FOV_M, n, STEP, pitch, ask.options["interleaves"], ask.options["alpha"], GRADIENT_T_M, SLEW_T_M_S)
    return k[np.isfinite(k).all(1)] * FOV_M / max(ask.ny, ask.nx)


def centre(ask: Request) -> Mask:
    """The central block alone: the same part of both axes (``axes=both``), or central lines (``axes=ky``)."""
    if ask.options["axes"] == "ky":
        mask = np.zeros(ask.ny, bool)
        mask[central(ask.ny, ask.n_lines())] = True
        return mask
    n_points = ask.n_points()
    height = max(1, round(ask.ny / math.sqrt(ask.required_acceleration)))
    width = min(max(1, round(n_points / height)), ask.nx)
    height = min(max(1, round(n_points / width)), ask.ny)
    block = np.zeros((ask.ny, ask.nx), bool)
    block[central(ask.ny, height), central(ask.nx, width)] = True
    return block


def _turned(k: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    return k @ np.array([[cos, sin], [-sin, cos]])


def _flat(ask: Request, k: NDArray[np.float64]) -> NDArray[np.intp]:
    """Flat indices of the grid's points that `k`, ``(n, 2)`` of (ky, kx) with the edges at 0.5, passes, in its order."""
    shape = np.array([ask.ny, ask.nx])
    index = np.floor(k * shape + 0.5).astype(np.intp) + shape // 2
    index = index[((index >= 0) & (index < shape)).all(1)]
    return index[:, 0] * ask.nx + index[:, 1]


def _count(ask: Request, k: NDArray[np.float64]) -> int:
    passed = np.zeros(ask.ny * ask.nx, bool)
    passed[_flat(ask, k)] = True
    return int(passed.sum())


def _gridded(ask: Request, k: NDArray[np.float64]) -> NDArray[np.intp]:
    """As `_flat`, each point once: where the trajectory first passes it."""
    flat = _flat(ask, k)
    return flat[np.sort(np.unique(flat, return_index=True)[1])]


def _first(ask: Request, points: NDArray[np.intp], n_points: int) -> Mask:
    """The calibration square, then the first of `points`, then, where even these are too few, the most central others."""
    mask = np.zeros((ask.ny, ask.nx), bool)
    if ask.centre is not None:
        side = ask.centre_side(n_points)
        mask[central(ask.ny, side), central(ask.nx, side)] = True
    y, x = np.divmod(np.arange(mask.size), ask.nx)
    outwards = np.argsort(((y - ask.ny // 2) * ask.nx) ** 2 + ((x - ask.nx // 2) * ask.ny) ** 2, kind="stable")
    flat = mask.ravel()
    for order in (outwards[:1], points, outwards):
        fresh = order[~flat[order]]
        flat[fresh[: n_points - int(flat.sum())]] = True
    return mask
