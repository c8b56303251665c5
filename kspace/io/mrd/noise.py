"""Noise scans: readouts without excitation, from which the covariance between coils is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from kspace.errors import InputError
from kspace.io.mrd import file as mrd_file
from kspace.io.mrd.flags import NOISE


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


def read_noise_readouts(
    group: h5py.Group, path: Path, heads: np.ndarray, relative_bandwidth: float | None, warnings: list[str]
) -> Noise | None:
    """Noise from the readouts of an open file that are flagged as noise scan; None where there are none.

    Raises
    ------
    InputError
        If these readouts contradict each other in channels or dwell time.
    """
    numbers = np.flatnonzero(heads["flags"] & np.uint64(NOISE))
    numbers = numbers[heads["number_of_samples"][numbers] > 0]
    if not len(numbers):
        return None
    channels, dwells = np.unique(heads["active_channels"][numbers]), np.unique(heads["sample_time_us"][numbers])
    if len(channels) > 1:
        raise InputError(
            f"noise readouts have {' and '.join(map(str, channels))} channels, expected one number",
            path,
            "convert the scan again",
        )
    if len(dwells) > 1:
        shown = " and ".join(f"{dwell:g}" for dwell in dwells)
        raise InputError(
            f"noise readouts have dwell times of {shown} us, expected one", path, "convert the scan again, or give --no-whiten"
        )
    if relative_bandwidth is None:
        warnings.append("no relativeReceiverNoiseBandwidth in the header: taken as 1 (Siemens receivers have about 0.79)")
    covariance, n_samples = noise_covariance(_inner(group, path, heads, numbers))
    return Noise(covariance, _dwell(float(dwells[0])), n_samples, relative_bandwidth or 1.0, str(path))


def _inner(group: h5py.Group, path: Path, heads: np.ndarray, numbers: np.ndarray) -> Iterable[np.ndarray]:
    """The samples that the heads do not tell to discard."""
    for number, samples in mrd_file.read_samples(group, path, heads, numbers):
        pre, post = int(heads["discard_pre"][number]), int(heads["discard_post"][number])
        if pre + post >= samples.shape[1]:
            raise InputError(
                f"noise readout {number} discards {pre} + {post} of its {samples.shape[1]} samples",
                path,
                "convert the scan again",
            )
        yield samples[:, pre : samples.shape[1] - post]


def _dwell(sample_time_us: float) -> float | None:
    return sample_time_us * 1e-6 if 0 < sample_time_us < np.inf else None
