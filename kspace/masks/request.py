"""Mask request, and the rules that all families share: number of samples and size of the calibration region."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError
from kspace.seeds import RandomGenerator

Mask = NDArray[np.bool_]

LINE_CENTRE = 0.32  # share of calibration lines among *sampled* lines: fastMRI's 0.08 n at R = 4 and 0.04 n at R = 8
MIN_LINE_CENTRE = 8  # fewest lines for coil-map calibration
POINT_CENTRE = 24  # SigPy's default calibration width for ESPIRiT


@dataclass(frozen=True)
class Request:
    """Parameters of one mask to draw.

    Attributes
    ----------
    text
        The mask specification as text, for messages.
    ny, nx
        Matrix size of k-space along ky and kx.
    acceleration
        Nominal undersampling factor R, at least 1; None where the family does not need it.
    centre
        Number of calibration lines, or side of the calibration square; None for the family's default.
    seed, key
        Seed and key (usually the name of the volume) of the random generator.
    options
        Values of all options of the family, defaults included.
    random
        Random generator of this mask.
    """

    text: str
    ny: int
    nx: int
    acceleration: float | None
    centre: int | None
    seed: int
    key: str
    options: dict[str, Any]
    random: RandomGenerator

    @property
    def fraction(self) -> float:
        """Nominal sampled fraction, 1 / R."""
        return 1.0 / self.required_acceleration

    @property
    def required_acceleration(self) -> float:
        """Acceleration R of a family that needs one (InputError if none was given)."""
        if self.acceleration is None:
            raise InputError("the mask has no acceleration", self.text, "write it as FAMILY:4 or FAMILY:25%")
        return self.acceleration

    def refuse(self, what: str, fix: str) -> InputError:
        """Error to raise for an impossible request: `what` is wrong, and the nearest possible `fix`."""
        return InputError(f"{what} (k-space of {self.ny} x {self.nx})", f"mask '{self.text}'", fix)

    def n_lines(self) -> int:
        """Number of lines to sample, ``round(ny / R)``."""
        return self._count(self.ny, "line")

    def n_points(self) -> int:
        """Number of points to sample, ``round(ny * nx / R)``."""
        return self._count(self.ny * self.nx, "point")

    def _count(self, n: int, unit: str) -> int:
        if (count := round(n / self.required_acceleration)) < 1:
            raise self.refuse(
                f"acceleration {self.required_acceleration:g} leaves no {unit} of {n}",
                f"the nearest possible acceleration is {n}, which keeps one {unit}",
            )
        return count

    def centre_lines(self, n_lines: int, default: int | None = None) -> int:
        """Number of calibration lines: `centre`, or a default of at most half of the sampled lines."""
        if self.centre is None:
            wanted = max(round(LINE_CENTRE * n_lines), MIN_LINE_CENTRE) if default is None else default
            return max(1, min(wanted, n_lines // 2))
        if self.centre > n_lines:
            raise self.refuse(
                f"centre={self.centre} exceeds the {n_lines} lines that acceleration {self.acceleration:g} allows",
                f"the nearest possible is centre={n_lines}, or acceleration {_below(self.ny / self.centre)}"
                if self.centre <= self.ny
                else f"the nearest possible is centre={n_lines}",
            )
        return self.centre

    def centre_side(self, n_points: int, default: int = POINT_CENTRE) -> int:
        """Side of the calibration square: `centre`, or a default of at most a quarter of the sampled points."""
        most = min(math.isqrt(n_points), self.ny, self.nx)
        if self.centre is None:
            return max(1, min(default, math.isqrt(n_points // 4), most))
        if self.centre > most:
            possible = self.centre <= min(self.ny, self.nx)
            raise self.refuse(
                f"centre={self.centre} needs {self.centre}x{self.centre} points, more than acceleration "
                f"{self.acceleration:g} ({n_points} points) or the matrix allows",
                f"the nearest possible is centre={most}"
                + (f", or acceleration {_below(self.ny * self.nx / self.centre**2)}" if possible else ""),
            )
        return self.centre


def distance(n: int) -> NDArray[np.float64]:
    """Distance of each index from the zero frequency in samples, float64 ``(n,)``."""
    return np.abs(np.arange(n, dtype=np.float64) - n // 2)


def _below(value: float) -> str:
    """`value` rounded down to two decimals."""
    return f"{math.floor(value * 100) / 100:g}"
