"""Variable-density Poisson discs: the kernel of `sigpy.mri.poisson`, in a search that ends, at an exact acceleration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kspace.masks.request import Mask, Request, central, distance

SLOPES = (0.0, 1e4)
ATTEMPTS = 10
SURPLUS = 1.04  # so many times the wanted points may be drawn: the rest is taken away again, which keeps the distances


def poisson2d(ask: Request) -> Mask:
    """Points that keep a distance of ``1 + s r`` samples, ``r`` the radius from the calibration square to the edge.

    The density is that of `sigpy.mri.poisson` (Bridson, SIGGRAPH sketches 2007, doi:10.1145/1278780.1278807; Lustig et al.
    2007, doi:10.1002/mrm.21391), and so is the kernel that draws the points. SigPy's own search for the slope ``s`` raises
    where its tolerance on R is missed and, for some sizes and R, never ends. Here the slope is searched in a bounded number
    of draws for slightly too many points, of which random ones are taken away until ``round(ny * nx / R)`` are left. Corners
    outside the ellipse are left out (as SigPy does) unless ``corners=yes`` or the acceleration needs them.
    """
    n_points = ask.n_points()
    side = ask.centre_side(n_points)
    calibration = np.zeros((ask.ny, ask.nx), bool)
    calibration[central(ask.ny, side), central(ask.nx, side)] = True
    return disc_mask(ask, calibration, n_points, corners=ask.options["corners"] == "yes")


def disc_mask(ask: Request, calibration: Mask, n_points: int, corners: bool) -> Mask:
    """Exactly `n_points`: all of the central square `calibration`, the others a Poisson disc around it."""
    radius = _radius(calibration)
    inside = (radius < 1) | calibration
    # Bridson's points fill at most about two thirds of a grid.
    allowed = inside if not corners and n_points <= 0.6 * inside.sum() else np.ones_like(inside)
    points = _search(radius, allowed, calibration, n_points, ask.random.integer(2**32))
    return _exactly(ask, points | calibration, calibration, allowed, n_points)


def disc(radius: NDArray[np.float64], slope: float, seed: int, max_attempts: int = 30) -> Mask:
    """One Poisson disc without calibration: what `sigpy.mri.poisson` draws for this slope.

    Parameters
    ----------
    radius
        ``(ny, nx)``, 0 in the centre and 1 at the edges.
    slope
        Growth of the distance with `radius`: ``1 + slope * radius`` samples along the longer side.
    seed
        Below 2**32. The kernel seeds numba's generator with it, and leaves NumPy's alone.
    """
    # Imported here: it compiles. A private name, because `sigpy.mri.poisson` around it may loop for ever.
    from sigpy.mri.samp import _poisson

    ny, nx = radius.shape
    stretch = np.clip(1 + radius * slope, 1, None)
    distance_x, distance_y = (np.clip(stretch * n / max(nx, ny), 1, None) for n in (nx, ny))
    return _poisson(nx, ny, max_attempts, distance_x, distance_y, (0, 0), seed).astype(bool)


def _radius(calibration: Mask) -> NDArray[np.float64]:
    """Distance from the calibration as a part of its largest value, along each axis apart."""
    sides = calibration.any(1).sum(), calibration.any(0).sum()
    y, x = (np.maximum(distance(n) - side / 2, 0) for n, side in zip(calibration.shape, sides, strict=True))
    return np.hypot((y / (y.max() or 1))[:, None], x / (x.max() or 1))


def _search(radius: NDArray[np.float64], allowed: Mask, calibration: Mask, n_points: int, seed: int) -> Mask:
    """The drawn disc with the fewest points that are at least `n_points` together with the calibration; else the fullest."""
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
    """Points on the `allowed` grid if each keeps a square of its distance to itself."""
    ny, nx = radius.shape
    stretch = 1 + radius[allowed] * slope
    areas = np.maximum(stretch * nx / max(nx, ny), 1) * np.maximum(stretch * ny / max(nx, ny), 1)
    return float((1 / areas).sum())


def _slope(radius: NDArray[np.float64], allowed: Mask, calibration: Mask, n_points: int, fill: float) -> float:
    """The slope at which `fill` times the expected points are `n_points`, less the calibration."""
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


def _exactly(ask: Request, mask: Mask, calibration: Mask, allowed: Mask, n_points: int) -> Mask:
    """Take random points away, or, where the disc is as full as it gets, add some."""
    surplus = int(mask.sum()) - n_points
    candidates = (mask & ~calibration) if surplus > 0 else (allowed & ~mask)
    changed = ask.random.choose(candidates.ravel().astype(float), abs(surplus))
    mask = mask.copy()
    mask.ravel()[changed] = surplus < 0
    return mask
