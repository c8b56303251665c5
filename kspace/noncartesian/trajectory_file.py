"""Trajectories that the user gives in place of those of the readouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError
from kspace.noncartesian.pulseq import read_trajectory


def load_trajectory(file: Path, n_readouts: int, n_samples: int) -> NDArray[np.float64]:
    """kx and ky ``(readout sample 2)`` as stated, or with kz ``(readout sample 3)``, of the readouts of a scan.

    `file` is a NumPy array (.npy) or a Pulseq sequence (.seq, in 1/m), which the scan may have played several times.

    Raises
    ------
    InputError
        If it cannot be read, has another shape than the readouts, or is not finite or zero everywhere.
    """
    where = f"--trajectory {file}"
    expected = n_readouts, n_samples
    if file.suffix == ".seq":
        return _repeated(read_trajectory(file), expected, where)
    if file.suffix != ".npy":
        raise InputError(f"'{file.suffix}' files are not read", where, "give a NumPy file (.npy) or a Pulseq sequence (.seq)")
    try:
        k = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({str(error).splitlines()[0]})", where, "give a NumPy file (.npy)") from error
    if k.ndim != 3 or k.shape[-1] not in (2, 3) or k.shape[:2] != expected or not np.issubdtype(k.dtype, np.floating):
        what = f"{k.dtype} of shape {k.shape}, the readouts need real numbers of shape {(*expected, 2)}"
        raise InputError(what, where, "give kx and ky (and kz) of each sample of each imaging readout")
    if not np.isfinite(k).all():
        raise InputError(f"{int(np.count_nonzero(~np.isfinite(k)))} values are NaN or infinite", where, "correct the file")
    if not k.any():
        raise InputError("the trajectory is zero everywhere", where, "correct the file")
    return np.asarray(k, np.float64)


def _repeated(k: NDArray[np.float64], expected: tuple[int, int], where: str) -> NDArray[np.float64]:
    """The trajectory of a sequence for all readouts of a scan, which may have played it several times."""
    if k.shape[1] != expected[1] or expected[0] % len(k):
        what = f"the sequence has {len(k)} readouts of {k.shape[1]} samples, the scan {expected[0]} of {expected[1]}"
        raise InputError(what, where, "give the .seq file of this scan, or its trajectory as .npy")
    return np.tile(k, (expected[0] // len(k), 1, 1))
