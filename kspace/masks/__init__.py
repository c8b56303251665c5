"""Which samples of k-space are taken: mask families, exact in acceleration, drawn the same everywhere."""

from kspace.masks.families import FAMILIES
from kspace.masks.spec import MaskSpec, acceleration, digest

__all__ = ["FAMILIES", "MaskSpec", "acceleration", "digest"]
