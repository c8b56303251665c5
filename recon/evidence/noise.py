"""Noise of a sample, from what is known of the scan."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kspace.operators import ForwardModel
from recon.evidence.record import NoiseSource
from recon.methods.held_out import noise_variance

LEAST = 1e-7  # of the root mean square of the samples: below the precision of the data


def noise_level(y: Tensor, op: ForwardModel, stated: float | None, residual: Tensor) -> tuple[float, NoiseSource]:
    """Square root of E|n|^2 of a sample measured once, and where it is from.

    Parameters
    ----------
    y, op
        Complex ``(*batch coil ky kx)``, zero where not acquired, and its forward model.
    stated
        That of the header, 1 after whitening with a noise scan; None: unknown.
    residual
        ``y - A x`` of the companion, like `y`: taken for noise where nothing else is known, so that its chi2 is 1.
    """
    count = n_samples(op, y)
    least = LEAST * math.sqrt(float(y.abs().square().sum()) / max(count, 1))
    if stated is not None:
        return max(stated, least), "noise scan"
    # Infinite, so that only samples can tell: the operator's own value is a placeholder here.
    variance = noise_variance(y, op, stated=math.inf)
    if variance is not None and variance > 0:
        return max(math.sqrt(variance), least), "outermost samples"
    return max(math.sqrt(float((op.weights * residual.abs().square()).sum()) / max(count, 1)), least), "companion's residual"


def n_samples(op: ForwardModel, y: Tensor) -> int:
    """Number of acquired complex samples of k-space ``(*batch coil ky kx)``, all coils."""
    return int(op.mask.expand(y.shape).sum())


def residual_of(image: Tensor, y: Tensor, op: ForwardModel) -> Tensor:
    """``y - A x`` at the acquired samples, 0 elsewhere: complex ``(*batch coil ky kx)`` for an image ``(*batch y x)``."""
    return torch.where(op.mask, y - op.forward(image), 0)
