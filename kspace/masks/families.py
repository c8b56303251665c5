"""Table of mask families: drawing function and options of each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kspace.masks import dagan, lines, poisson, trajectories
from kspace.masks.fastmri_masks import fastmri_mask
from kspace.masks.files import from_file
from kspace.masks.request import Mask, Request


@dataclass(frozen=True)
class Option:
    """Option of a mask family: help text, default, and parser of its text (ValueError for invalid text)."""

    meaning: str
    default: Any
    read: Callable[[str], Any]


@dataclass(frozen=True)
class Family:
    """Mask family: drawing function (``(ny,)`` for lines, else ``(ny, nx)``), help text and accepted options.

    `readouts` makes one that samples off the Cartesian grid: kx and ky in cycles per pixel, float64 ``(readout sample 2)``;
    its `draw` refuses.
    """

    name: str
    draw: Callable[[Request], Mask]
    meaning: str
    options: dict[str, Option] = field(default_factory=dict)
    takes_amount: bool = True
    needs_amount: bool = True
    takes_centre: bool = True
    percent: bool = False  # AMOUNT is written as a percentage, not as R
    pure: bool = True  # the mask depends on the request alone, not on a file
    readouts: Callable[[Request], NDArray[np.float64]] | None = None


def _choice(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"'{text}' is not one of {', '.join(words)}")
        return text

    return read


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**9):
        raise ValueError(f"'{text}' is not a whole number above 0")
    return int(text)


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(f"'{text}' is not a finite number of at least 0")
    return value


def _positive(text: str) -> float:
    if (value := _not_negative(text)) == 0:
        raise ValueError(f"'{text}' is not above 0")
    return value


YES_NO = _choice("yes", "no")

_FAMILIES = (
    Family("random1d", lines.random1d, "calibration lines and uniformly random lines"),
    Family("equispaced1d", lines.equispaced1d, "calibration lines and evenly spaced lines"),
    Family(
        "uniform1d",
        lines.uniform1d,
        "every s-th line and a calibration block (GRAPPA)",
        {"spacing": Option("whole number of lines", None, _count)},
        needs_amount=False,
    ),
    Family("fastmri-random", fastmri_mask("random"), "fastMRI's random lines"),
    Family("fastmri-equispaced", fastmri_mask("equispaced"), "fastMRI's every R-th line plus calibration"),
    Family(
        "fastmri-equispaced-fraction",
        fastmri_mask("equispaced_fraction"),
        "fastMRI's equispaced lines, spaced to compensate for the calibration",
    ),
    Family(
        "fastmri-magic", fastmri_mask("magic"), "fastMRI's equispaced lines with different offsets on the two sides of k = 0"
    ),
    Family("poisson2d", poisson.poisson2d, "variable-density Poisson disc", {"corners": Option("yes or no", "no", YES_NO)}),
    Family("radial", trajectories.radial, "golden-angle spokes"),
    Family(
        "spiral",
        trajectories.spiral,
        "variable-density spiral",
        {
            "alpha": Option("exponent of the density, 4", 4.0, _positive),
            "interleaves": Option("number of interleaves, 1", 1, _count),
        },
    ),
    Family(
        "radial-nufft",
        trajectories.refuse_points,
        "spokes off the Cartesian grid, one for every R-th line",
        {"angles": Option("golden or uniform", "golden", _choice("golden", "uniform"))},
        takes_centre=False,
        readouts=trajectories.radial_readouts,
    ),
    Family(
        "spiral-nufft",
        trajectories.refuse_points,
        "spirals off the Cartesian grid, turns R points apart",
        {"interleaves": Option("number of interleaves, 16", 16, _count)},
        takes_centre=False,
        readouts=trajectories.spiral_readouts,
    ),
    Family("dagan-g1d", dagan.gaussian1d, "DAGAN's Gaussian lines, 1 to 50 %", takes_centre=False, percent=True),
    Family("dagan-g2d", dagan.gaussian2d, "DAGAN's Gaussian 2-D undersampling, 1 to 50 %", takes_centre=False, percent=True),
    Family("dagan-p2d", dagan.poisson2d, "DAGAN's Poisson disc, 1 to 50 %", takes_centre=False, percent=True),
    Family("gancs", lines.gancs, "polynomial line density (GANCS)", {"alpha": Option("exponent, 2", 2.0, _not_negative)}),
    Family("seitzer", lines.seitzer, "Gaussian line density plus a constant"),
    Family(
        "partial",
        lines.partial,
        "partial Fourier",
        {"keep": Option("high or low", "high", _choice("high", "low"))},
        takes_centre=False,
        percent=True,
    ),
    Family(
        "centre",
        trajectories.centre,
        "central block, for super-resolution",
        {"axes": Option("both or ky", "both", _choice("both", "ky"))},
        takes_centre=False,
    ),
    Family(
        "file",
        from_file,
        "a .npy, .mat, .png or .h5 file",
        {
            "path": Option("path", None, str),
            "dc": Option("auto, centre or corner", "auto", _choice("auto", "centre", "corner")),
            "name": Option("array in a .mat or .h5 file", None, str),
            "transpose": Option("yes or no", "no", YES_NO),
        },
        takes_amount=False,
        needs_amount=False,
        takes_centre=False,
        pure=False,
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}


def register(family: Family) -> None:
    """Add a family from outside this package.

    Raises
    ------
    ValueError
        If its name is taken or cannot stand in a specification.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", family.name):
        raise ValueError(f"mask family {family.name!r}: rule 'name': use lower-case letters, digits and hyphens")
    if family.name in FAMILIES:
        raise ValueError(f"mask family {family.name!r}: rule 'name': there is a family of that name; choose another")
    FAMILIES[family.name] = family
