"""Noise scans: readouts without excitation, from which the covariance between coils is measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from kspace.errors import InputError
from kspace.io.mrd import file as mrd_file
from kspace.io.mrd.flags import NOISE
from kspace.noise import Noise, noise_covariance


def read_noise_readouts(
    group: h5py.Group, path: Path, headers: np.ndarray, relative_bandwidth: float | None, warnings: list[str]
) -> Noise | None:
    """Noise from the readouts of an open file that are flagged as noise scan; None where there are none.

    `headers` are the acquisition headers ``(readout,)`` of the file.

    Raises
    ------
    InputError
        If these readouts contradict each other in channels or dwell time.
    """
    numbers = np.flatnonzero(headers["flags"] & NOISE)
    numbers = numbers[headers["number_of_samples"][numbers] > 0]
    if not len(numbers):
        return None
    channels, dwells = np.unique(headers["active_channels"][numbers]), np.unique(headers["sample_time_us"][numbers])
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
    covariance, n_samples = noise_covariance(_inner(group, path, headers, numbers))
    return Noise(covariance, _dwell(float(dwells[0])), n_samples, relative_bandwidth or 1.0, str(path))


def _inner(group: h5py.Group, path: Path, headers: np.ndarray, numbers: np.ndarray) -> Iterable[np.ndarray]:
    """The samples that the acquisition headers do not tell to discard."""
    for number, samples in mrd_file.read_samples(group, path, headers, numbers):
        pre, post = int(headers["discard_pre"][number]), int(headers["discard_post"][number])
        if pre + post >= samples.shape[1]:
            raise InputError(
                f"noise readout {number} discards {pre} + {post} of its {samples.shape[1]} samples",
                path,
                "convert the scan again",
            )
        yield samples[:, pre : samples.shape[1] - post]


def _dwell(sample_time_us: float) -> float | None:
    return sample_time_us * 1e-6 if 0 < sample_time_us < np.inf else None
