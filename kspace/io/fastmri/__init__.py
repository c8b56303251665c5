"""fastMRI HDF5: reading of volumes, writing of volumes and submissions."""

from typing import TYPE_CHECKING

import lazy_loader

from kspace.io.fastmri.detect import is_fastmri

__all__ = ["FastmriVolume", "is_fastmri", "open_volume", "root_sum_of_squares", "write_reconstruction", "write_volume"]

if TYPE_CHECKING:
    from kspace.io.fastmri.volume import FastmriVolume, open_volume
    from kspace.io.fastmri.write import root_sum_of_squares, write_reconstruction, write_volume
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "volume": ["FastmriVolume", "open_volume"],
            "write": ["root_sum_of_squares", "write_reconstruction", "write_volume"],
        },
    )
