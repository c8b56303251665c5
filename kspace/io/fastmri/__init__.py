"""fastMRI-style HDF5: volumes in, volumes and submissions out."""

from kspace.io.fastmri.volume import FastmriVolume, is_fastmri, open_volume
from kspace.io.fastmri.write import root_sum_of_squares, write_reconstruction, write_volume

__all__ = ["FastmriVolume", "is_fastmri", "open_volume", "root_sum_of_squares", "write_reconstruction", "write_volume"]
