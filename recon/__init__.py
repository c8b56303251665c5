"""MRI reconstruction from raw k-space, from Python and from the command line.

::

    import recon

    with recon.open("scan.h5") as scan:
        images = scan.reconstruct(method="refinegan")
    images.save("out", formats=("dicom",))

The names below are loaded when they are first used, so that ``recon --help`` comes at once.
"""

from typing import TYPE_CHECKING

import lazy_loader

from kspace import __version__

__all__ = [
    "Image",
    "Images",
    "InputError",
    "KSpace",
    "ReconWarning",
    "Scan",
    "__version__",
    "example_scan",
    "method_names",
    "open",
    "upright",
]

if TYPE_CHECKING:
    from recon.api import Image, Images, InputError, KSpace, ReconWarning, Scan, example_scan, method_names, open, upright
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__, submod_attrs={"api": [name for name in __all__ if name != "__version__"]}
    )
