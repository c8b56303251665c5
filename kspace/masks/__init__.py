"""Undersampling masks: reproducible families with an exact acceleration."""

from kspace.masks.families import FAMILIES
from kspace.masks.spec import MaskSpec, acceleration, digest

__all__ = ["FAMILIES", "MaskSpec", "acceleration", "digest"]
