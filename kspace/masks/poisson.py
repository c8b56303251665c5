"""Variable-density Poisson-disc masks: SigPy's kernel in a bounded search for an exact acceleration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kspace.fourier import central
from kspace.masks.request import Mask, Request, distance

SLOPES = (0.0, 1e4)
ATTEMPTS = 10
SURPLUS = 1.04  # accepted excess of points: removing random ones keeps the minimum distance


def poisson2d(request: Request) -> Mask:
    """Variable-density Poisson disc of exactly ``round(ny * nx / R)`` points, bool ``(ny, nx)``.

    The minimum distance is ``1 + s r`` samples, ``r`` the radius from the calibration square (0) to the edge (1). Density and
    kernel are those of `sigpy.mri.poisson` (Bridson, SIGGRAPH sketches 2007, doi:10.1145/1278780.1278807; Lustig et al. 2007,
    doi:10.1002/mrm.21391). SigPy's own search for the slope ``s`` raises where its tolerance on R is missed and, for some
    sizes and R, never ends. Here a bounded number of draws aims at a slight excess of points, and random ones are removed.
    Corners outside the ellipse are excluded (as in SigPy) unless ``corners=yes`` or the acceleration needs them.
    """
    n_points = request.n_points()
    side = request.centre_side(n_points)
    calibration = np.zeros((request.ny, request.nx), bool)
    calibration[central(request.ny, side), central(request.nx, side)] = True
    return disc_mask(request, calibration, n_points, corners=request.options["corners"] == "yes")


def disc_mask(request: Request, calibration: Mask, n_points: int, corners: bool) -> Mask:
    """Exactly `n_points` points: the square `calibration`, bool ``(ny, nx)``, and a Poisson disc around it."""
    radius = _radius(calibration)
    inside = (radius < 1) | calibration
    # Bridson's algorithm fills at most about two thirds of a grid.
    allowed = inside if not corners and n_points <= 0.6 * inside.sum() else np.ones_like(inside)
    points = _search(radius, allowed, calibration, n_points, request.random.integer(2**32))
    return _exactly(request, points | calibration, calibration, allowed, n_points)


def disc(radius: NDArray[np.float64], slope: float, seed: int, max_attempts: int = 30) -> Mask:
    """Poisson disc without calibration, as `sigpy.mri.poisson` draws it for this slope.

    Parameters
    ----------
    radius
        Float ``(ny, nx)``, 0 in the centre and 1 at the edges.
    slope
        Growth of the minimum distance with `radius`: ``1 + slope * radius`` samples along the longer side.
    seed
        Below 2**32. The kernel seeds numba's random generator, not NumPy's.
    """
    # Imported here: numba compiles it. The private kernel, because the search in `sigpy.mri.poisson` may never end.
    from sigpy.mri.samp import _poisson

    ny, nx = radius.shape
    stretch = np.clip(1 + radius * slope, 1, None)
    distance_x, distance_y = (np.clip(stretch * n / max(nx, ny), 1, None) for n in (nx, ny))
    return _poisson(nx, ny, max_attempts, distance_x, distance_y, (0, 0), seed).astype(bool)


def _radius(calibration: Mask) -> NDArray[np.float64]:
    """Distance from the calibration square, normalised to 1 at the edge of each axis."""
    sides = calibration.any(1).sum(), calibration.any(0).sum()
    y, x = (np.maximum(distance(n) - side / 2, 0) for n, side in zip(calibration.shape, sides, strict=True))
    return np.hypot((y / (y.max() or 1))[:, None], x / (x.max() or 1))


def _search(radius: NDArray[np.float64], allowed: Mask, calibration: Mask, n_points: int, seed: int) -> Mask:
    """Disc with the fewest points that, with the calibration, number at least `n_points`; else the fullest disc."""
    (low, high), slope = SLOPES, _slope(radius, allowed, calibration, n_points, 0.68)
    best = fullest = np.zeros_like(allowed)
    for _ in range(ATTEMPTS):
        points = disc(radius, slope, seed) & allowed
        n = int((points | calibration).sum())
        if n >= n_points and not (best.any() and n >= (best | calibration).sum()):
            best = points
        if n > fullest.sum():
            fullest = points
        if n_points <= n <= SURPLUS * n_points or (n < n_points and slope == 0):
            break
        low, high = (slope, high) if n > n_points else (low, slope)
        fill = (n - calibration.sum()) / max(_expected(radius, allowed & ~calibration, slope), 1e-9)
        guess = _slope(radius, allowed, calibration, round(SURPLUS**0.5 * n_points), float(fill))
        slope = guess if low < guess < high else (low + high) / 2 if high < SLOPES[1] else 2 * low + 1
    return best if best.any() else fullest


def _expected(radius: NDArray[np.float64], allowed: Mask, slope: float) -> float:
    """Expected number of points on the `allowed` grid if each occupies a square of its minimum distance."""
    ny, nx = radius.shape
    stretch = 1 + radius[allowed] * slope
    areas = np.maximum(stretch * nx / max(nx, ny), 1) * np.maximum(stretch * ny / max(nx, ny), 1)
    return float((1 / areas).sum())


def _slope(radius: NDArray[np.float64], allowed: Mask, calibration: Mask, n_points: int, fill: float) -> float:
    """Slope at which `fill` times the expected points plus the calibration make `n_points` (bisection)."""
    rest, wanted = allowed & ~calibration, n_points - calibration.sum()
    low, high = SLOPES
    if fill * _expected(radius, rest, low) <= wanted:
        return low
    for _ in range(40):
        middle = (low * high) ** 0.5 if low > 0 else min(1.0, high / 2)
        if low == 0 and high < 1e-3:
            return low
        low, high = (middle, high) if fill * _expected(radius, rest, middle) > wanted else (low, middle)
    return high


def _exactly(request: Request, mask: Mask, calibration: Mask, allowed: Mask, n_points: int) -> Mask:
    """Remove random points, or add some where the disc has too few, down or up to `n_points`."""
    surplus = int(mask.sum()) - n_points
    candidates = (mask & ~calibration) if surplus > 0 else (allowed & ~mask)
    changed = request.random.choose(candidates.ravel().astype(float), abs(surplus))
    mask = mask.copy()
    mask.ravel()[changed] = surplus < 0
    return mask
