"""Gradient delays of radial scans, from spokes that run in opposite directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPPOSITE = math.radians(8)  # by which two directions may miss 180 degrees
FEWEST = 6  # pairs
LONGEST = 6.0  # samples: the range of the search
STEP = 0.02  # samples
SCATTER = 0.5  # samples of root mean square deviation from the model, above which it does not hold


@dataclass(frozen=True)
class GradientDelay:
    """Shift of k-space samples, ``dk = S n`` with n the direction of the spoke.

    Moussavi et al. 2014, doi:10.1002/mrm.24730.

    Attributes
    ----------
    xx, yy, xy
        Elements of the symmetric matrix S, in samples along a spoke.
    scatter
        Root mean square deviation of the pairs from it, in samples.
    n_pairs
        Number of pairs of spokes.
    """

    xx: float
    yy: float
    xy: float
    scatter: float
    n_pairs: int

    @property
    def says(self) -> str:
        """In words."""
        return f"x {self.xx:+.2f}, y {self.yy:+.2f}, xy {self.xy:+.2f} samples ({self.n_pairs} pairs of opposite spokes)"


def estimate_delay(y: NDArray[np.complex64], trajectory: NDArray[np.float64]) -> GradientDelay | str:
    """Delays of radial spokes from the shift between opposite ones.

    Block and Uecker 2011, Proc. ISMRM 19:2816: the phase between the transforms of a spoke and of its reversed opposite is
    linear, with twice the shift as slope; here found as the maximum of their correlation over all coils.

    Parameters
    ----------
    y
        ``(coil spoke sample)``.
    trajectory
        ``(spoke sample 2)``; spokes through the centre, equally spaced samples.

    Returns
    -------
    GradientDelay or str
        The delay, or why there is none.
    """
    step = trajectory[:, 1:] - trajectory[:, :-1]
    if not np.allclose(step, step[:, :1], atol=0.02 * np.abs(step).max()):
        return "the samples are not equally spaced on straight lines"
    angles = np.arctan2(step[:, 0, 1], step[:, 0, 0])
    spacing = np.linalg.norm(step[:, 0], axis=-1)
    centres = -np.einsum("rd,rd->r", trajectory[:, 0], step[:, 0]) / spacing**2  # index of k = 0
    if np.any(np.minimum(centres, y.shape[-1] - 1 - centres) < 8):
        return "the spokes do not run through the centre"
    pairs = _opposite(angles)
    if len(pairs) < FEWEST:
        return f"{len(pairs)} pairs of opposite spokes, {FEWEST} are needed"
    shifts = np.array([_shift(y[:, i], y[:, j], centres[i], centres[j]) for i, j in pairs])
    mean = np.array([_between(angles[i], angles[j]) for i, j in pairs])
    model = np.stack([np.cos(mean) ** 2, np.sin(mean) ** 2, np.sin(2 * mean)], -1)
    if np.linalg.cond(model) > 100:
        return "the opposite spokes cover too few directions"
    used = np.ones(len(pairs), bool)
    for _ in range(3):  # a pair that correlates elsewhere must not bend the others
        found = np.linalg.lstsq(model[used], shifts[used], rcond=None)[0]
        rest = np.abs(model @ found - shifts)
        used = rest <= max(3 * float(np.median(rest)), 0.05)
    scatter = float(np.sqrt(np.mean((model[used] @ found - shifts[used]) ** 2)))
    if scatter > SCATTER:
        return f"the shifts of opposite spokes scatter by {scatter:.2f} samples"
    return GradientDelay(float(found[0]), float(found[1]), float(found[2]), scatter, len(pairs))


def corrected(trajectory: NDArray[np.float64], delay: GradientDelay) -> NDArray[np.float64]:
    """`trajectory` ``(spoke sample 2)`` where the samples really lie."""
    step = trajectory[:, 1] - trajectory[:, 0]
    matrix = np.array([[delay.xx, delay.xy], [delay.xy, delay.yy]])
    return trajectory + (step @ matrix)[:, None]


def _opposite(angles: NDArray[np.float64]) -> list[tuple[int, int]]:
    found = []
    for i, angle in enumerate(angles):
        off = np.abs((angles - angle) % (2 * math.pi) - math.pi)
        j = int(np.argmin(off))
        if off[j] < OPPOSITE and i < j:
            found.append((i, j))
    return found


def _between(a: float, b: float) -> float:
    """Direction halfway between a and the reverse of b."""
    return a + ((b - math.pi - a + math.pi) % (2 * math.pi) - math.pi) / 2


def _shift(a: NDArray[np.complex64], b: NDArray[np.complex64], centre_a: float, centre_b: float) -> float:
    """Samples by which the spoke a ``(coil sample)`` is shifted along its direction, given its opposite b."""
    import torch  # here: `recon info` reads scans without it

    from kspace.fourier import fft_corner

    n = a.shape[-1]
    x = ((np.arange(n) + n // 2) % n - n // 2) / n  # positions in the order of the corner transform
    of_a, of_b = (fft_corner(torch.from_numpy(np.ascontiguousarray(one)), (-1,)) for one in (a, b[:, ::-1]))
    product = (of_a * of_b.conj()).sum(0).numpy()
    # Both centres to the same index first: that of the reversed spoke is at n - 1 - centre_b.
    product = product * np.exp(2j * math.pi * x * (centre_a - (n - 1 - centre_b)))
    trial = np.arange(-2 * LONGEST, 2 * LONGEST + STEP, STEP)
    correlation = np.abs(np.exp(2j * math.pi * trial[:, None] * x) @ product)
    # a was sampled at k + d, the reversed b at k - d: a lags behind b by -2 d.
    return float(-trial[np.argmax(correlation)] / 2)
