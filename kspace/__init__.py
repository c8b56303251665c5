"""What was measured, and the physics: containers, operators, masks, raw data. Imports neither `models` nor `recon`.

The names below are loaded when they are first used, so that importing the package takes no time.
"""

from typing import TYPE_CHECKING

import lazy_loader

__version__ = "0.1.0"

__all__ = [
    "Geometry",
    "Header",
    "Image",
    "ImageIndex",
    "InputError",
    "KSpace",
    "LinearOperator",
    "MaskSpec",
    "Noise",
    "Sense",
    "estimate_maps",
    "fft",
    "ifft",
    "open_scan",
    "open_volume",
    "read_noise",
    "remove_oversampling",
    "whiten",
]

if TYPE_CHECKING:
    from kspace.coils import estimate_maps
    from kspace.container import Geometry, Header, Image, ImageIndex, KSpace
    from kspace.errors import InputError
    from kspace.fourier import fft, ifft
    from kspace.io.fastmri import open_volume
    from kspace.io.mrd import open_scan, read_noise
    from kspace.masks import MaskSpec
    from kspace.noise import Noise
    from kspace.operators import LinearOperator, Sense
    from kspace.preprocess import remove_oversampling, whiten
else:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "coils": ["estimate_maps"],
            "container": ["Geometry", "Header", "Image", "ImageIndex", "KSpace"],
            "errors": ["InputError"],
            "fourier": ["fft", "ifft"],
            "io.fastmri": ["open_volume"],
            "io.mrd": ["open_scan", "read_noise"],
            "masks": ["MaskSpec"],
            "noise": ["Noise"],
            "operators": ["LinearOperator", "Sense"],
            "preprocess": ["remove_oversampling", "whiten"],
        },
    )
