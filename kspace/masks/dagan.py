"""DAGAN's Gaussian and Poisson masks, 1 to 50 %, regenerated with the statistics of the published files.

The files of Yang et al. (IEEE TMI 37(6):1310-1321, 2018, doi:10.1109/TMI.2017.2785879) carry no licence and are not part of
this project; the family `file` reads them. Their percentages are nominal: at the published ones (1, 5, 10, 20, 30, 40 and 50)
these masks have the number of lines, the sampled fraction and the fully sampled centre of the files (30 % Poisson is 35.5 %);
at others they have the requested fraction and an interpolated centre. The width of the density was fitted so that zero-filled
images of RefineGAN's brain slices have the same PSNR as with the files. DAGAN undersamples along x; this project along ky.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kspace.masks.poisson import disc_mask
from kspace.masks.request import Mask, Request, distance

N = 256  # matrix size of the published files, zero frequency at index 128

# percentage: (lines, fully sampled lines below k = 0, at and above k = 0, standard deviation of the density / n)
GAUSSIAN_1D: Mapping[int, tuple[float, ...]] = {
    1: (4, 0, 1, 0.15),
    5: (14, 2, 6, 0.15),
    10: (24, 5, 7, 0.164),
    20: (56, 10, 12, 0.097),
    30: (75, 17, 13, 0.216),
    40: (105, 18, 19, 0.255),
    50: (127, 24, 24, 0.391),
}
# percentage: (sampled fraction, side of the fully sampled centre, standard deviation of the density / n)
GAUSSIAN_2D: Mapping[int, tuple[float, ...]] = {
    1: (0.0096, 3, 0.05),
    5: (0.0497, 5, 0.10),
    10: (0.1009, 9, 0.133),
    20: (0.2009, 17, 0.186),
    30: (0.3001, 25, 0.214),
    40: (0.4002, 35, 0.261),
    50: (0.5004, 43, 0.296),
}
POISSON_2D: Mapping[int, tuple[float, ...]] = {
    1: (0.0100, 19, 0.05),
    5: (0.0508, 29, 0.065),
    10: (0.0963, 29, 0.092),
    20: (0.1855, 29, 0.122),
    30: (0.3550, 29, 0.188),
    40: (0.4018, 29, 0.197),
    50: (0.4883, 29, 0.234),
}
DISC_PART = 0.6  # share of Poisson-disc points: a disc alone is never as dense near the centre as the published files


def gaussian1d(request: Request) -> Mask:
    """Gaussian-density phase-encode lines around a fully sampled centre, bool ``(ny,)``."""
    percent = _percent(request)
    lines, below, above, width = _row(GAUSSIAN_1D, percent)
    n_lines = _count(request, lines / N if percent in GAUSSIAN_1D else percent / 100, request.ny, "line")
    scale, zero = request.ny / N, request.ny // 2
    mask = np.zeros(request.ny, bool)
    start, stop = zero - round(below * scale), zero + max(1, round(above * scale))
    mask[start : min(stop, start + n_lines)] = True
    density = np.where(mask, 0.0, np.exp(-0.5 * (distance(request.ny) / (width * request.ny)) ** 2) + 1e-9)
    if stop - start > 1 and request.ny >= 8:
        density[[start - 1, stop]] = 0.0  # keeps the fully sampled centre exactly as wide as in the files
    mask[request.random.choose(density, n_lines - int(mask.sum()))] = True
    return mask


def gaussian2d(request: Request) -> Mask:
    """Gaussian-density 2-D undersampling around a fully sampled square, bool ``(ny, nx)``."""
    percent = _percent(request)
    fraction, side, width = _row(GAUSSIAN_2D, percent)
    n_points = _count(request, fraction if percent in GAUSSIAN_2D else percent / 100, request.ny * request.nx, "point")
    return _fill(request, _square(request, side, n_points), n_points, width)


def poisson2d(request: Request) -> Mask:
    """Poisson disc plus Gaussian-density points around a fully sampled square, bool ``(ny, nx)``."""
    percent = _percent(request)
    fraction, side, width = _row(POISSON_2D, percent)
    n_points = _count(request, fraction if percent in POISSON_2D else percent / 100, request.ny * request.nx, "point")
    square = _square(request, side, n_points)
    n_square = int(square.sum())
    disc = disc_mask(request, square, n_square + round(DISC_PART * (n_points - n_square)), corners=True)
    return _fill(request, disc, n_points, width)


def _percent(request: Request) -> float:
    percent = 100 * request.fraction
    if not 1 - 1e-9 <= percent <= 50 + 1e-9:
        nearest = 1 if percent < 1 else 50
        raise request.refuse(
            f"DAGAN masks are defined from 1 to 50 %, not at {percent:g} %", f"the nearest possible is {nearest}%"
        )
    return round(percent) if abs(percent - round(percent)) < 1e-6 else percent


def _row(table: Mapping[int, tuple[float, ...]], percent: float) -> list[float]:
    """Row of `table` at `percent`, linearly interpolated."""
    return [float(np.interp(percent, list(table), column)) for column in zip(*table.values(), strict=True)]


def _count(request: Request, fraction: float, n: int, unit: str) -> int:
    if (count := round(fraction * n)) < 1:
        raise request.refuse(
            f"{100 * fraction:.3g} % of {n} leaves no {unit}", f"the nearest possible is {min(50.0, 100 / n):.3g}%"
        )
    return count


def _square(request: Request, side: float, n_points: int) -> Mask:
    """Central block of odd side lengths, `side` of 256 scaled to the matrix."""
    mask = np.zeros((request.ny, request.nx), bool)
    half = [int(side / N * n / 2) for n in mask.shape]
    while (2 * half[0] + 1) * (2 * half[1] + 1) > n_points:  # tiny matrices only
        half[int(half[1] > half[0])] -= 1
    zero = request.ny // 2, request.nx // 2
    mask[zero[0] - half[0] : zero[0] + half[0] + 1, zero[1] - half[1] : zero[1] + half[1] + 1] = True
    return mask


def _fill(request: Request, mask: Mask, n_points: int, width: float) -> Mask:
    squared = (distance(request.ny) / request.ny)[:, None] ** 2 + (distance(request.nx) / request.nx) ** 2
    density = np.where(mask, 0.0, np.exp(-0.5 * squared / width**2) + 1e-9)
    mask = mask.copy()
    mask.ravel()[request.random.choose(density.ravel(), n_points - int(mask.sum()))] = True
    return mask
