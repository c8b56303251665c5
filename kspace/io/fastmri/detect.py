"""Detection of fastMRI files, without the imports that reading one needs."""

from __future__ import annotations

import os
from pathlib import Path

import h5py

from kspace.errors import InputError
from kspace.io.hdf5 import open_h5


def is_fastmri(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the fastMRI layout, HDF5 with a data set ``kspace``; False if it cannot be opened."""
    try:
        with open_h5(Path(path)) as file:
            return isinstance(file.get("kspace"), h5py.Dataset)
    except InputError:
        return False
