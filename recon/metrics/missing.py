"""Errors at the samples that a mask left out of a full scan, without the noise that nobody can predict.

The fully sampled reference is noisy itself. Errors against it reward images that keep its noise where it was acquired, and grow
by sigma^2 for each sample that was not ("hidden noise": Wang, An and Haldar 2024, doi:10.1002/mrm.30100)::

    error = (sum |A x - y|^2 - sigma^2 N) / (sum |y|^2 - sigma^2 N)

with the sums over the N samples of all coils that the full scan has and the mask left out (off the Cartesian grid, those
that are nearest to no sample). 0 is a perfect prediction, 1 that of a black image. What the coil maps cannot explain is the
same error for every method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kspace.container import KSpace
from kspace.fourier import fft
from kspace.operators import ForwardModel

METRIC = "nmse_missing"


@dataclass(frozen=True)
class MissingEnergies:
    """Sums over the samples that the mask left out of one slice.

    Attributes
    ----------
    error
        Of ``|A x - y|^2``.
    signal
        Of ``|y|^2``.
    noise
        Expectation of the noise in either; None where it is not known.
    """

    error: float
    signal: float
    noise: float | None


def missing_energies(image: Tensor, op: ForwardModel, full: KSpace, variance: Tensor | None) -> MissingEnergies:
    """Energies of one slice.

    Parameters
    ----------
    image, op
        Complex ``(y x)`` and the operator that it was made with.
    full
        The full scan, ``(coil ky kx)``.
    variance
        E|n|^2 of the samples of each coil of `full` measured once, float64 ``(coil)``; None where it is not known.
    """
    left_out = (full.mask & ~op.grid_mask).expand(full.data.shape)
    error = torch.where(left_out, fft(image * op.maps) - full.data, 0)
    signal = torch.where(left_out, full.data, 0)
    expected = None
    if variance is not None:
        counts = torch.ones_like(full.mask, dtype=torch.float64) if full.n_averages is None else full.n_averages.double()
        share = torch.where(left_out, 1 / counts.clamp(min=1), 0).sum((-2, -1))
        expected = float((share * variance).sum())
    return MissingEnergies(_energy(error), _energy(signal), expected)


def missing_error(slices: Sequence[MissingEnergies]) -> float | None:
    """The error of a volume, from the sums over its slices; None where the noise is not known, or is all that there is."""
    if not slices or any(s.noise is None for s in slices):
        return None
    noise = sum(s.noise or 0.0 for s in slices)
    signal = sum(s.signal for s in slices) - noise
    return (sum(s.error for s in slices) - noise) / signal if signal > 0 else None


def _energy(y: Tensor) -> float:
    return float(y.abs().double().square().sum())
