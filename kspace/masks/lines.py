"""Mask families of complete phase-encode lines: bool ``(ny,)``, True where a line is sampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kspace.fourier import central
from kspace.masks.request import LINE_CENTRE, MIN_LINE_CENTRE, Mask, Request, distance


def random1d(request: Request) -> Mask:
    """Calibration lines and uniformly random lines, exactly ``round(ny / R)`` in total."""
    n_lines = request.n_lines()
    return _weighted(request, np.ones(request.ny), n_lines, request.centre_lines(n_lines))


def equispaced1d(request: Request) -> Mask:
    """Calibration lines and evenly spaced lines, exactly ``round(ny / R)`` in total.

    Gaps differ by at most one line, except across the calibration block. The offset is random.
    """
    n_lines = request.n_lines()
    mask = _calibrated(request.ny, request.centre_lines(n_lines))
    rest = np.flatnonzero(~mask)
    if n_more := n_lines - int(mask.sum()):
        # Positions are distinct because the spacing over the remaining lines is at least 1.
        mask[rest[((np.arange(n_more) + request.random.uniform(1)[0]) * (rest.size / n_more)).astype(int)]] = True
    return mask


def uniform1d(request: Request) -> Mask:
    """Every s-th line and a calibration block, as in GRAPPA (Griswold et al. 2002, doi:10.1002/mrm.10171).

    With ``spacing=s`` and no acceleration: every s-th line and ``centre`` calibration lines, as a scanner acquires them, at
    whatever net acceleration results. With an acceleration: the calibration block is widened until the mask has exactly
    ``round(ny / R)`` lines. Without a given spacing, the one whose block is nearest to the default width (or to ``centre``,
    and never narrower) is used.
    """
    spacing: int | None = request.options["spacing"]
    if request.acceleration is None:
        if spacing is None:
            raise request.refuse("neither an acceleration nor a spacing given", "write uniform1d:4 or uniform1d:spacing=4")
        if spacing > request.ny:
            raise request.refuse(
                f"spacing={spacing} exceeds the {request.ny} lines of the matrix",
                f"the nearest possible is spacing={request.ny}",
            )
        return _comb(request.ny, spacing, request.random.integer(spacing)) | _calibrated(
            request.ny, _plain_centre(request, spacing)
        )
    n_lines, draw = request.n_lines(), float(request.random.uniform(1)[0])
    wanted = request.centre_lines(n_lines)
    # The random offset nearly always allows exactly n_lines; the offset through k = 0 always does, at the widest spacing.
    for phase in (lambda s: int(draw * s), lambda s: request.ny // 2 % s):
        fits = {
            s: width
            for s in range(1, request.ny + 1)
            if (width := _grown(request.ny, s, phase(s), n_lines)) >= (request.centre or 1)
        }
        if spacing is not None and fits and spacing not in fits:
            nearest = min(fits, key=lambda s: (abs(s - spacing), s))
            raise request.refuse(f"spacing={spacing} cannot make {n_lines} lines", f"the nearest possible is spacing={nearest}")
        if fits:
            break
    chosen = spacing or min(fits, key=lambda s: (abs(fits[s] - wanted), s))
    return _comb(request.ny, chosen, phase(chosen)) | _calibrated(request.ny, fits[chosen])


def gancs(request: Request) -> Mask:
    """Lines of density ``(1 - |k| / (n/2)) ** alpha`` and ``centre`` (default 3) central lines.

    Mardani et al., IEEE TMI 38(1):167-179, 2019, doi:10.1109/TMI.2018.2858752. Their code rounds ``n / R`` down and adds the
    central lines; here ``round(n / R)`` includes them, so that the actual acceleration is the nominal one.
    """
    n_lines = request.n_lines()
    density = np.abs(1 - distance(request.ny) / (request.ny / 2)) ** request.options["alpha"]
    # Large exponents underflow at the edge, and a line of probability zero could never be drawn at R = 1.
    return _weighted(request, np.maximum(density, 1e-12), n_lines, request.centre_lines(n_lines, default=3))


def seitzer(request: Request) -> Mask:
    """Lines of Gaussian density (standard deviation n/10) plus a constant 1/(2R), and ``centre`` (default 8) central lines.

    Seitzer et al., MICCAI 2018, doi:10.1007/978-3-030-00928-1_27; the central lines are included in ``round(n / R)``.
    """
    n_lines = request.n_lines()
    density = np.exp(-0.5 * (distance(request.ny) / (request.ny / 10)) ** 2) + 0.5 * request.fraction
    return _weighted(request, density, n_lines, request.centre_lines(n_lines, default=8))


def partial(request: Request) -> Mask:
    """Partial Fourier: ``round(ny / R)`` contiguous lines up to one edge of k-space (``keep=high`` or ``keep=low``)."""
    n_lines, least = request.n_lines(), request.ny // 2 + 1
    if n_lines < least:
        raise request.refuse(
            f"{n_lines} of {request.ny} lines do not reach past the zero frequency",
            f"the nearest possible is partial:{least}/{request.ny}",
        )
    lines = np.arange(request.ny)
    return lines >= request.ny - n_lines if request.options["keep"] == "high" else lines < n_lines


def _weighted(request: Request, density: NDArray[np.float64], n_lines: int, centre: int) -> Mask:
    mask = _calibrated(request.ny, centre)
    mask[request.random.choose(np.where(mask, 0.0, density), n_lines - centre)] = True
    return mask


def _calibrated(n: int, width: int) -> Mask:
    mask = np.zeros(n, bool)
    mask[central(n, width)] = True
    return mask


def _comb(n: int, spacing: int, offset: int) -> Mask:
    mask = np.zeros(n, bool)
    mask[offset::spacing] = True
    return mask


def _grown(n: int, spacing: int, offset: int, n_lines: int) -> int:
    """Width of the calibration block that brings the comb to exactly `n_lines` lines; 0 if none does."""
    comb = _comb(n, spacing, offset)
    # Widened by one line at a time, alternating below and above k = 0, as `central` does.
    order = np.array([n // 2 + (-(i + 1) // 2 if i % 2 else i // 2) for i in range(n)])
    counts = comb.sum() + np.cumsum(~comb[order])
    hits = np.flatnonzero(counts == n_lines)
    return int(hits[-1]) + 1 if hits.size else 0


def _plain_centre(request: Request, spacing: int) -> int:
    if request.centre is None:
        return max(1, min(max(round(LINE_CENTRE * request.ny / spacing), MIN_LINE_CENTRE), request.ny))
    if request.centre > request.ny:
        raise request.refuse(
            f"centre={request.centre} exceeds the {request.ny} lines of the matrix",
            f"the nearest possible is centre={request.ny}",
        )
    return request.centre
