"""Trajectories of Pulseq sequence files (``.seq``, Layton et al. 2017, doi:10.1002/mrm.26235) by pypulseq, an extra."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError

MOST_KZ = 1e-3  # of the largest |k|: how much kz may change along a readout


def read_trajectory(path: Path) -> NDArray[np.float64]:
    """kx and ky of every sample of every readout of a sequence, float64 ``(readout sample 2)`` in 1/m; with kz, ``(readout
    sample 3)``, where it changes along the readouts.

    Raises
    ------
    InputError
        If pypulseq is not installed, or the file is no sequence with readouts of one length.
    """
    where = f"--trajectory {path}"
    try:
        import pypulseq
    except ImportError as error:
        raise InputError("needs the package pypulseq", where, "pip install 'mri-gan-recon[pulseq]'") from error
    sequence = pypulseq.Sequence()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions of the format
            sequence.read(str(path))
            k = np.asarray(sequence.calculate_kspace()[0], np.float64)
        lengths = [int(adc.num_samples) for i in sequence.block_events if (adc := sequence.get_block(i).adc) is not None]
    except Exception as error:  # whatever a parser does with a file that is something else
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot be read as a Pulseq sequence ({reason})", where, "give the .seq file of the scan") from error
    if not lengths or len(set(lengths)) > 1:
        found = f"readouts of {min(lengths)} to {max(lengths)} samples" if lengths else "no readouts"
        raise InputError(f"the sequence has {found}, expected one length", where, "give the trajectory as .npy")
    k = k.T.reshape(len(lengths), lengths[0], 3)
    if np.ptp(k[..., 2], axis=1).max() > MOST_KZ * np.abs(k[..., :2]).max():
        return k
    return k[..., :2]
