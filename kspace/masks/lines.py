"""Families that sample whole lines: each returns ``(ny,)``, True where a line of ky is sampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kspace.masks.request import LINE_CENTRE, MIN_LINE_CENTRE, Mask, Request, central, distance


def random1d(ask: Request) -> Mask:
    """Calibration lines, and others with equal probability: exactly ``round(ny / R)`` lines in all."""
    n_lines = ask.n_lines()
    return _weighted(ask, np.ones(ask.ny), n_lines, ask.centre_lines(n_lines))


def equispaced1d(ask: Request) -> Mask:
    """Calibration lines, and the others spread evenly over the rest: exactly ``round(ny / R)`` lines in all.

    Neighbouring gaps differ by at most one line, apart from the one that holds the calibration block. The comb has a random
    offset.
    """
    n_lines = ask.n_lines()
    mask = _calibrated(ask.ny, ask.centre_lines(n_lines))
    rest = np.flatnonzero(~mask)
    if n_more := n_lines - int(mask.sum()):
        # A comb over the uncalibrated positions: its teeth are distinct, because their pitch is at least 1.
        mask[rest[((np.arange(n_more) + ask.random.uniform(1)[0]) * (rest.size / n_more)).astype(int)]] = True
    return mask


def uniform1d(ask: Request) -> Mask:
    """Every s-th line and a calibration block, as in GRAPPA (Griswold et al. 2002, doi:10.1002/mrm.10171).

    With ``spacing=s`` and no acceleration: what a scanner acquires, s-th lines and ``centre`` calibration lines, whatever
    fraction that is. With an acceleration: the calibration block is grown until there are exactly ``round(ny / R)`` lines, at
    the spacing (or the given one) that needs the block nearest to the default, or the smallest that is at least ``centre``.
    """
    spacing: int | None = ask.options["spacing"]
    if ask.acceleration is None:
        if spacing is None:
            raise ask.refuse("neither an acceleration nor a spacing is given", "write uniform1d:4 or uniform1d:spacing=4")
        if spacing > ask.ny:
            raise ask.refuse(f"spacing={spacing} is wider than the matrix", f"the nearest possible is spacing={ask.ny}")
        return _comb(ask.ny, spacing, ask.random.integer(spacing)) | _calibrated(ask.ny, _plain_centre(ask, spacing))
    n_lines, draw = ask.n_lines(), float(ask.random.uniform(1)[0])
    wanted = ask.centre_lines(n_lines)
    # The drawn phase fits nearly always; the phase of the zero frequency always does, at the widest spacing if at no other.
    for phase in (lambda s: int(draw * s), lambda s: ask.ny // 2 % s):
        fits = {s: width for s in range(1, ask.ny + 1) if (width := _grown(ask.ny, s, phase(s), n_lines)) >= (ask.centre or 1)}
        if spacing is not None and fits and spacing not in fits:
            nearest = min(fits, key=lambda s: (abs(s - spacing), s))
            raise ask.refuse(f"spacing={spacing} cannot make {n_lines} lines", f"the nearest possible is spacing={nearest}")
        if fits:
            break
    chosen = spacing or min(fits, key=lambda s: (abs(fits[s] - wanted), s))
    return _comb(ask.ny, chosen, phase(chosen)) | _calibrated(ask.ny, fits[chosen])


def gancs(ask: Request) -> Mask:
    """Lines with probability proportional to ``(1 - |k| / (n/2)) ** alpha``, and ``centre`` (3) lines around zero.

    Mardani et al., IEEE TMI 38(1):167-179, 2019, doi:10.1109/TMI.2018.2858752. Their program rounds ``n / R`` down and adds
    the central lines to it; here ``round(n / R)`` lines include them, so that the acceleration is the nominal one.
    """
    n_lines = ask.n_lines()
    density = np.abs(1 - distance(ask.ny) / (ask.ny / 2)) ** ask.options["alpha"]
    # A power of nearly zero underflows, and a line of probability zero could not be drawn when every line is asked for.
    return _weighted(ask, np.maximum(density, 1e-12), n_lines, ask.centre_lines(n_lines, default=3))


def seitzer(ask: Request) -> Mask:
    """Variable-density rows: Gaussian of standard deviation n/10 on a floor of 1/(2R), and ``centre`` (8) central lines.

    Seitzer et al., MICCAI 2018, doi:10.1007/978-3-030-00928-1_27; the central lines are included in ``round(n / R)``.
    """
    n_lines = ask.n_lines()
    density = np.exp(-0.5 * (distance(ask.ny) / (ask.ny / 10)) ** 2) + 0.5 * ask.fraction
    return _weighted(ask, density, n_lines, ask.centre_lines(n_lines, default=8))


def partial(ask: Request) -> Mask:
    """Partial Fourier: ``round(ny / R)`` neighbouring lines that reach one edge (``keep=high`` or ``keep=low``)."""
    n_lines, least = ask.n_lines(), ask.ny // 2 + 1
    if n_lines < least:
        raise ask.refuse(
            f"partial Fourier keeps {n_lines} of {ask.ny} lines, which do not reach beyond the zero frequency",
            f"the nearest possible is partial:{least}/{ask.ny}",
        )
    lines = np.arange(ask.ny)
    return lines >= ask.ny - n_lines if ask.options["keep"] == "high" else lines < n_lines


def _weighted(ask: Request, density: NDArray[np.float64], n_lines: int, centre: int) -> Mask:
    mask = _calibrated(ask.ny, centre)
    mask[ask.random.choose(np.where(mask, 0.0, density), n_lines - centre)] = True
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
    """Width of the calibration block with which the comb has exactly `n_lines` lines; 0 where there is none."""
    comb = _comb(n, spacing, offset)
    # The block grows by one line at a time, below and above zero in turn: the order in which `central` takes them.
    order = np.array([n // 2 + (-(i + 1) // 2 if i % 2 else i // 2) for i in range(n)])
    counts = comb.sum() + np.cumsum(~comb[order])
    hits = np.flatnonzero(counts == n_lines)
    return int(hits[-1]) + 1 if hits.size else 0


def _plain_centre(ask: Request, spacing: int) -> int:
    if ask.centre is None:
        return max(1, min(max(round(LINE_CENTRE * ask.ny / spacing), MIN_LINE_CENTRE), ask.ny))
    if ask.centre > ask.ny:
        raise ask.refuse(f"centre={ask.centre} is wider than the matrix", f"the nearest possible is centre={ask.ny}")
    return ask.centre
