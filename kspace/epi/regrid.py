"""From the samples of a readout to those of the Cartesian grid, by one matrix for each direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RIDGE = 1e-6  # of the interpolation, relative to the energy of a sample
MOST_GAIN = 6.0  # in noise variance of one point of the grid
# Width of the object's support, relative to what the widest gap between samples allows: less where the field of view fits in.
WIDEST, WIDE = 0.98, 0.9


@dataclass(frozen=True, eq=False)
class Readout:
    """What a readout of one direction goes through.

    Attributes
    ----------
    matrix
        Float64 or complex128 ``(n, n_samples)``: samples in the order of acquisition to the `n` points of the grid.
    noise_gain
        Variance of a point of the grid over that of a sample, mean over the grid.
    """

    matrix: NDArray[np.complex128]
    noise_gain: float


def regridding_matrix(k: NDArray[np.float64], n: int) -> Readout:
    """Interpolation from samples at `k` to the grid points ``-n // 2 ...``, least squares for an object of finite width.

    A function whose transform vanishes outside a width w is determined by samples less than 1 / w apart, and the
    interpolation of least norm through them is ``S(k_grid, k) S(k, k)^-1`` with ``S = sinc(w (k - k'))`` (Yen 1956,
    doi:10.1109/TCT.1956.1086325); a small ridge keeps the inverse bounded where samples are closer than that, and grows for
    points beyond the outermost samples until their noise is bounded. The width is what the widest gap allows, so that signal
    from beyond the encoded field of view does not disturb it.

    Parameters
    ----------
    k
        Position of each sample ``(n_samples,)`` in units of 1 / (encoded field of view).
    n
        Points of the encoded matrix.
    """
    gap = np.max(np.abs(np.diff(k)))
    width = max(WIDE / gap, min(1.0, WIDEST / gap))
    grid = np.arange(n) - n // 2
    gram = np.sinc(width * (k[:, None] - k[None, :]))
    cross = np.sinc(width * (grid[:, None] - k[None, :]))
    values, vectors = np.linalg.eigh(gram)
    projected = cross @ vectors
    ridge = np.full((n, 1), RIDGE)
    while (loud := np.sum((projected / (values + ridge)) ** 2, axis=1) > MOST_GAIN).any():
        ridge[loud] *= 2
    matrix = (projected / (values + ridge)) @ vectors.T
    return Readout(matrix.astype(np.complex128), float(np.sum(matrix**2) / n))


def shifting_matrix(first: float, n_samples: int, n: int, is_reversed: bool = False, kept: slice = slice(None)) -> Readout:
    """Evenly spaced samples: turned where reversed, moved so that k = 0 lies on the grid, cut to the field of view.

    Parameters
    ----------
    first
        Position of the first sample of a forward readout in units of the spacing of the samples, ``-n_samples / 2`` for one
        that is centred on the grid; the `n_samples` cover the `n` points of the encoded matrix.
    n_samples, n
        Samples of a readout, and points of the encoded matrix.
    is_reversed
        Whether the samples run from right to left.
    kept
        The samples, in the order of acquisition, that are not to be discarded.
    """
    x = np.arange(n) - n // 2
    k = first + np.arange(n_samples)
    # The sum over samples at their places gives the image, that over pixels its grid: exact for an object that is narrower
    # than the field of view of the samples.
    image = np.exp(2j * np.pi * np.outer(x, k) / n_samples) / n_samples
    grid = np.exp(-2j * np.pi * np.outer(np.arange(n) - n // 2, x) / n)
    matrix = grid @ image
    matrix = (matrix[:, ::-1] if is_reversed else matrix)[:, kept]
    return Readout(matrix, float(np.sum(np.abs(matrix) ** 2) / n))
