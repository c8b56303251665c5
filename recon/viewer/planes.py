"""Images in the page: whole numbers of a stated step, stored without further loss, decoded by the browser when looked at.

A plane becomes codes of 10 to 12 bits: ``value = code * step``. The highest code means "no number", the one below it "above
the range". Codes are predicted from their neighbours (the median edge detector of JPEG-LS, Weinberger et al. 2000,
doi:10.1109/83.855427), the differences folded to 0, 1, 2, ... for 0, -1, 1, ..., their low bytes and then their high bytes
deflated (zlib), and the result written in base64.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HEADROOM = 1.25
"""The range of the codes, relative to the largest value of the truth: methods may overshoot by this much before they clip."""


@dataclass(frozen=True)
class Quantisation:
    """How the planes of one volume become codes.

    Attributes
    ----------
    reference
        Largest value of the truth (of the images, where there is no truth): what the page gives percentages of.
    bits
        Bits of a code.
    signed
        Whether values may be negative: then the code of 0 is `zero`, in the middle of the range.
    """

    reference: float
    bits: int
    signed: bool = False

    @property
    def step(self) -> float:
        """Difference of two neighbouring codes, in the unit of the images; values are off by half of it at most."""
        return HEADROOM * self.reference * (2 if self.signed else 1) / (self.above - 1)

    @property
    def zero(self) -> int:
        """The code of 0."""
        return self.above // 2 if self.signed else 0

    @property
    def for_page(self) -> dict[str, float]:
        """Step and zero: ``value = (code - zero) * step``."""
        return {"step": self.step, "zero": self.zero}

    @property
    def above(self) -> int:
        """The code of values above the range."""
        return 2**self.bits - 2

    @property
    def invalid(self) -> int:
        """The code of NaN and infinity."""
        return 2**self.bits - 1

    def codes(self, plane: NDArray[np.float32]) -> NDArray[np.int32]:
        """Codes of a plane ``(y x)``; values below the range count as its lower end, 0 for magnitudes."""
        finite = np.isfinite(plane)
        whole = np.rint(np.where(finite, plane, 0).astype(np.float64) / self.step)
        codes = np.clip(whole + self.zero, 0, self.above).astype(np.int32)
        codes[~finite] = self.invalid
        return codes


def encode(codes: NDArray[np.int32]) -> bytes:
    """Store codes ``(y x)`` without loss."""
    residual = codes - predict(codes)
    folded = np.where(residual >= 0, 2 * residual, -2 * residual - 1).astype(np.uint16)
    return zlib.compress((folded & 255).astype(np.uint8).tobytes() + (folded >> 8).astype(np.uint8).tobytes(), 9)


def predict(codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Prediction of each code of a plane ``(y x)`` from its left and upper neighbours, as far as there are any."""
    expected = np.zeros_like(codes)
    expected[0, 1:], expected[1:, 0] = codes[0, :-1], codes[:-1, 0]
    left, up, corner = codes[1:, :-1], codes[:-1, 1:], codes[:-1, :-1]
    low, high = np.minimum(left, up), np.maximum(left, up)
    expected[1:, 1:] = np.clip(left + up - corner, low, high)
    return expected


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """Store a mask ``(ky kx)``: one bit per point, row by row, the first in the highest bit, deflated."""
    return zlib.compress(np.packbits(mask).tobytes(), 9)


def text(block: bytes) -> str:
    """A block as it stands in the page."""
    return base64.b64encode(block).decode("ascii")
