"""Noise of the receive coils: covariance from noise samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Noise:
    """Noise of the receive coils, as the noise scan measured it.

    Attributes
    ----------
    covariance
        Complex128 ``(coil coil)``, mean of ``n n^H`` over the samples of the *noise scan*; the imaging samples' follows from
        the dwell times (`covariance_at`). Hermitian.
    dwell_s
        Time between samples of the noise scan, None where the file does not say.
    n_samples
        Number of samples per coil that the covariance is the mean of.
    relative_bandwidth
        ``relativeReceiverNoiseBandwidth``: the receiver's equivalent noise bandwidth over its nominal one (1 where the header
        does not say).
    source
        Name of the file, for messages.
    """

    covariance: np.ndarray
    dwell_s: float | None
    n_samples: int
    relative_bandwidth: float = 1.0
    source: str = ""

    def covariance_at(self, dwell_s: float | None) -> np.ndarray:
        """Covariance of imaging samples: complex128 ``(coil coil)``.

        Thermal noise is white, so the variance of a sample grows with the receiver's bandwidth, the inverse of the dwell
        time; the noise scan sees it through the receiver's filter, whose equivalent bandwidth is smaller by
        `relative_bandwidth` (Kellman and McVeigh,
        Magn Reson Med 2005;54:1439, doi:10.1002/mrm.20713). Where a dwell time is unknown the two are taken as equal.
        """
        ratio = self.dwell_s / dwell_s if self.dwell_s and dwell_s else 1.0
        return self.covariance * (ratio / self.relative_bandwidth)


def noise_covariance(readouts: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """Mean of ``n n^H`` over all samples of noise readouts, and their number.

    The mean of the noise is known to be zero, so none is estimated and subtracted; the sum is divided by the number of
    samples. Double precision, one readout at a time.

    Parameters
    ----------
    readouts
        Complex arrays ``(coil, sample)``.

    Returns
    -------
    tuple
        Complex128 ``(coil coil)`` and the number of samples per coil.
    """
    total, n_samples = None, 0
    for samples in readouts:
        wide = samples.astype(np.complex128)
        product = wide @ wide.conj().T
        total = product if total is None else total + product
        n_samples += samples.shape[1]
    if total is None or n_samples == 0:
        raise ValueError("noise_covariance needs at least one sample")
    covariance = total / n_samples
    return (covariance + covariance.conj().T) / 2, n_samples
