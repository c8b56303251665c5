"""Recognition of fastMRI-style files, without the libraries that reading one needs."""

from __future__ import annotations

import os
from pathlib import Path

import h5py

from kspace.errors import InputError
from kspace.io.hdf5 import open_h5


def is_fastmri(path: str | os.PathLike[str]) -> bool:
    """Whether a file is laid out as fastMRI's: HDF5 with a data set ``kspace``. False for whatever cannot be opened."""
    try:
        with open_h5(Path(path)) as file:
            return isinstance(file.get("kspace"), h5py.Dataset)
    except InputError:
        return False
