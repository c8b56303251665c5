"""Whether a noise scan can be that of an image: a wrong one bends the weighting of the coils without leaving a trace."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kspace.container import KSpace
from kspace.noise import Noise
from kspace.preprocess import dead_coils

OUTERMOST = 0.02  # of the samples
PER_COIL = 60, 10  # outermost samples that are wanted, and that are needed
MOST_SAMPLES = 20_000
QUIET = 0.5  # of the stated noise: the image cannot hold less
LOUD = 1e8  # times the stated noise: no signal leaves that in the outermost samples, another unit does
ALIKE, CORRELATED, SIGNAL = 0.95, 0.25, 10.0


@dataclass(frozen=True)
class NoiseFit:
    """The outermost samples of an image, whitened by its noise scan.

    Attributes
    ----------
    level
        The least eigenvalue of their covariance between coils, without its bias from few samples: the power of the quietest
        combination of coils, 1 where nothing but the stated noise is in it. Signal adds to it; nothing can take away from it.
    likeness
        Of the noise's correlation between coils and the image's (that of all samples, less the noise): the cosine of the
        angle between their off-diagonal entries. 1 where the noise scan holds signal, 0 for one coil.
    correlation
        Root mean square of the off-diagonal entries of the noise's correlation.
    signal
        Mean power of all samples after whitening, 1 for pure noise.
    """

    level: float
    likeness: float
    correlation: float
    signal: float

    @property
    def is_plausible(self) -> bool:
        """Whether this can be the noise of the image."""
        holds_signal = self.likeness > ALIKE and self.correlation > CORRELATED and self.signal > SIGNAL
        return QUIET <= self.level <= LOUD and not holds_signal

    def __str__(self) -> str:
        return (
            f"in the outermost samples the quietest combination of coils has {self.level:.2g} times the power of the noise "
            "scan (expected 1, or more by signal), and the coil correlation of the noise is like the image's by "
            f"{self.likeness:.2f} (0 to 1)"
        )


def fit_noise(k: KSpace, noise: Noise) -> NoiseFit | None:
    """Compare the noise scan with the samples of an image; None where there are too few, or whitening is impossible anyway.

    Parameters
    ----------
    k
        k-space as it was read, ``(coil ky kx)`` or ``(kz coil ky kx)``, all channels of the noise.
    noise
        The noise scan.
    """
    dead = set(dead_coils(noise))
    coils = [c for c in range(k.n_coils) if c not in dead]
    if k.n_coils != noise.covariance.shape[0] or not coils:
        return None
    dwell_us = k.header.central.get("sample_time_us", 0.0)
    covariance = noise.covariance_at(dwell_us * 1e-6 if dwell_us > 0 else None)[np.ix_(coils, coils)]
    y = k.data.movedim(-3, 0)[coils].reshape(len(coils), -1).cpu()
    counts = k.n_averages if k.n_averages is not None else k.mask.int()
    counts = torch.broadcast_to(counts, (*k.data.shape[:-3], 1, *k.data.shape[-2:])).squeeze(-3)
    chosen = _outermost(counts, len(coils))
    outer = (y[:, chosen] * counts.reshape(-1)[chosen].sqrt()).to(torch.complex128).numpy()
    outer = outer[:, np.any(outer != 0, 0)]  # zeros that were filled in are no measurement
    n = outer.shape[1]
    try:
        whitener = np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        return None
    if n < PER_COIL[1] * len(coils) or not np.isfinite(whitener).all():
        return None
    white = whitener @ outer
    least = float(np.linalg.eigvalsh(white @ white.conj().T / n)[0])
    image = _covariance(y, int((counts > 0).sum()))
    powers = np.linalg.eigvalsh(whitener @ image @ whitener.conj().T)
    signal = float(powers.mean())
    # A noise scan that is too loud has more than the image holds to be taken from it.
    a, b = _off_diagonal(covariance), _off_diagonal(image - min(1.0, float(powers[0])) * covariance)
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    # The least eigenvalue of n samples of white noise (Marchenko and Pastur 1967, doi:10.1070/SM1967v001n04ABEH001994).
    bias = (1 - math.sqrt(len(coils) / n)) ** 2
    likeness = abs(np.vdot(a, b)) / size if size > 0 else 0.0
    return NoiseFit(least / bias, float(likeness), float(np.sqrt(np.mean(np.abs(a) ** 2))) if len(a) else 0.0, signal)


def _outermost(counts: Tensor, n_coils: int) -> Tensor:
    """Flat indices of the acquired samples that are farthest out along all axes at once; `counts` is ``(*batch ky kx)``."""
    reach = torch.full(counts.shape, torch.inf)
    for axis, n in enumerate(counts.shape):
        lines = (counts > 0).movedim(axis, 0).flatten(1).any(1)
        distance = (torch.arange(n) - n // 2).abs().float()
        most = float((distance * lines.cpu()).max())
        if most > 0:
            reach = torch.minimum(reach, (distance / most).reshape(-1, *(1,) * (counts.ndim - 1 - axis)))
    sampled = (counts > 0).cpu().flatten()
    n_sampled = int(sampled.sum())
    wanted = min(n_sampled, max(PER_COIL[0] * n_coils, min(int(OUTERMOST * n_sampled), MOST_SAMPLES)))
    return torch.where(sampled, reach.flatten(), -1.0).topk(wanted).indices


def _covariance(y: Tensor, n: int) -> np.ndarray:
    """Mean of ``y y^H`` over `n` samples, complex128 ``(coil coil)``; `y` is complex64 ``(coil, sample)`` of whatever size."""
    scale = float(y.abs().max()) or 1.0
    scaled = y / scale
    return np.asarray((scaled @ scaled.mH).to(torch.complex128).numpy() * (scale**2 / max(n, 1)))


def _off_diagonal(covariance: np.ndarray) -> np.ndarray:
    """Correlations between different coils, flat."""
    std = np.sqrt(np.maximum(np.real(np.diag(covariance)), np.finfo(float).tiny))
    return np.asarray((covariance / np.outer(std, std))[~np.eye(len(std), dtype=bool)])
