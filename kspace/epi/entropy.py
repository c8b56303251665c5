"""Odd-even phase from the image itself, for scans without navigators."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kspace.epi.phase import OddEvenPhase

MOST_SHIFT = 2.0  # samples of k-space between forward and reversed readouts, either way
N_CONSTANT, N_LINEAR = 24, 33
N_ROUNDS = 6
CENTRED = 0.05  # length of the circular mean of the energy along y, from which on it tells where the object is


def estimate_phase(forward: NDArray[np.complex64], backward: NDArray[np.complex64]) -> OddEvenPhase:
    """The constant and linear phase for which the image has the least entropy.

    A ghost spreads the energy of an image over more pixels, so that the entropy of its magnitude rises (Atkinson et al. 1997,
    doi:10.1109/42.650886, for motion). A phase of pi moves the whole image by half of the field of view and leaves the entropy:
    of the two, the one with the object in the middle is taken; where the image does not say, the smaller phase.

    Parameters
    ----------
    forward, backward
        Images of the forward and of the reversed lines alone, complex ``(coil y x)``; their sum is the image with its ghost.
    """
    power: NDArray[np.float64] = np.sum(np.abs(forward) ** 2 + np.abs(backward) ** 2, axis=0, dtype=np.float64)
    cross: NDArray[np.complex128] = np.sum(forward * np.conj(backward), axis=0, dtype=np.complex128)
    if not power.any() or not np.any(cross):
        return OddEvenPhase()
    n = power.shape[-1]
    x = np.arange(n) - n // 2

    def entropy(constant: float, linear: float) -> float:
        return _entropy(_energy(power, cross, constant + linear * x))

    span = 2 * np.pi * MOST_SHIFT / n
    steps = np.array([np.pi / N_CONSTANT, 2 * span / (N_LINEAR - 1)])
    # Half a turn is enough: the other half gives the same images, shifted.
    grid = [(c, s) for s in np.linspace(-span, span, N_LINEAR) for c in np.arange(N_CONSTANT) * steps[0] - np.pi / 2]
    best = np.array(min(grid, key=lambda p: entropy(*p)))
    for _ in range(N_ROUNDS):
        steps = steps / 2.5
        around = [best + steps * (i, j) for i in (-2, -1, 0, 1, 2) for j in (-2, -1, 0, 1, 2)]
        best = min(around, key=lambda p: entropy(*p))
    constant, linear = float(best[0]), float(best[1])
    constant = (constant + np.pi / 2) % np.pi - np.pi / 2
    if _is_shifted(_energy(power, cross, constant + linear * x)):
        constant += np.pi if constant < 0 else -np.pi
    return OddEvenPhase(constant, linear)


def _energy(power: NDArray[np.float64], cross: NDArray[np.complex128], phase: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over coils of |forward e^(-i phase/2) + backward e^(i phase/2)|^2, ``(y x)``."""
    return np.maximum(power + 2 * (cross * np.exp(-1j * phase)).real, 0)


def _entropy(energy: NDArray[np.float64]) -> float:
    """``-sum p ln p`` of the magnitudes p over the root of the whole energy."""
    p = np.sqrt(energy / energy.sum()).ravel()
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)))


def _is_shifted(energy: NDArray[np.float64]) -> bool:
    """Whether the object lies nearer to the edge of the field of view, along y, than to its middle."""
    rows = energy.sum(axis=1)
    y = np.arange(len(rows)) - len(rows) // 2
    mean = np.sum(rows * np.exp(2j * np.pi * y / len(rows))) / rows.sum()
    return bool(abs(mean) > CENTRED and mean.real < 0)
