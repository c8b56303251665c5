"""Noise covariance of the receive coils."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Noise:
    """Noise covariance of the receive coils from a noise scan.

    Attributes
    ----------
    covariance
        Complex128 ``(coil coil)``, Hermitian: mean of ``n n^H`` over the samples of the *noise scan*. `covariance_at` scales
        it to imaging samples.
    dwell_s
        Dwell time of the noise scan, None if the file has none.
    n_samples
        Number of averaged samples per coil.
    relative_bandwidth
        ``relativeReceiverNoiseBandwidth``: equivalent noise bandwidth of the receiver over its nominal bandwidth (1 if the
        header has none).
    source
        Name of the file, for error messages.
    """

    covariance: np.ndarray
    dwell_s: float | None
    n_samples: int
    relative_bandwidth: float = 1.0
    source: str = ""

    def covariance_at(self, dwell_s: float | None) -> np.ndarray:
        """Noise covariance of imaging samples of dwell time `dwell_s`, complex128 ``(coil coil)``.

        Thermal noise is white, so its variance is proportional to the receiver bandwidth, the inverse of the dwell time; the
        equivalent bandwidth of the noise scan's receiver filter is smaller by `relative_bandwidth` (Kellman and McVeigh, Magn
        Reson Med 2005;54:1439, doi:10.1002/mrm.20713). Unknown dwell times are taken as equal.
        """
        ratio = self.dwell_s / dwell_s if self.dwell_s and dwell_s else 1.0
        return self.covariance * (ratio / self.relative_bandwidth)


def noise_covariance(readouts: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """Noise covariance, the mean of ``n n^H`` over all samples of noise readouts, and the number of samples.

    Noise has zero mean, so no estimated mean is subtracted and the divisor is the number of samples. Accumulated in double
    precision, one readout at a time.

    Parameters
    ----------
    readouts
        Complex arrays ``(coil sample)``.

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
