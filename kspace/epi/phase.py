"""The phase between forward and reversed readouts, which makes the Nyquist ghost of echo-planar images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPEN = 0.1  # radians


@dataclass(frozen=True)
class OddEvenPhase:
    """Phase of the forward readouts minus that of the reversed ones, along the readout in image space.

    Attributes
    ----------
    constant_rad
        At the centre of the image.
    linear_rad
        Change per pixel of the encoded matrix. It comes from a delay between gradient and receiver: a delay of d samples
        of k-space makes 4 pi d / n.
    higher
        Coefficients of the second and higher powers of ``2 x / n``, x in pixels from the centre.
    """

    constant_rad: float = 0.0
    linear_rad: float = 0.0
    higher: tuple[float, ...] = ()

    def at(self, n: int) -> NDArray[np.float64]:
        """The phase at the `n` pixels of the readout, float64 ``(n,)``."""
        x = np.arange(n) - n // 2
        phase: NDArray[np.float64] = self.constant_rad + self.linear_rad * x.astype(np.float64)
        for power, coefficient in enumerate(self.higher, start=2):
            phase = phase + coefficient * (2 * x / n) ** power
        return phase

    def correction(self, n: int, is_reversed: bool) -> NDArray[np.complex128]:
        """Factor ``(n,)`` in image space that takes half of the phase off forward readouts and adds half to reversed ones."""
        return np.exp((0.5j if is_reversed else -0.5j) * self.at(n))

    def is_clear(self, n: int) -> bool:
        """Whether it is more, within half of a field of view of `n` pixels, than the entropy of an image leaves open."""
        return abs(self.constant_rad) > OPEN or abs(self.linear_rad) * n / 4 > OPEN

    def __str__(self) -> str:
        text = f"{self.constant_rad:.3f} rad, {self.linear_rad:.4f} rad per pixel"
        return f"{text}, order {1 + len(self.higher)}" if self.higher else text


def fit_line(cross: NDArray[np.complex128]) -> tuple[float, float]:
    """Constant (at pixel ``n // 2``) and slope per pixel of the phase of `cross` ``(n,)``, weighted by its magnitude.

    The slope is the angle of the autocorrelation at a lag of one pixel, so that no phase needs unwrapping; the constant is the
    angle of the sum without the slope (Ahn and Cho 1987, doi:10.1109/TMI.1987.4307795).
    """
    slope = float(np.angle(np.sum(np.conj(cross[:-1]) * cross[1:])))
    x = np.arange(len(cross)) - len(cross) // 2
    return float(np.angle(np.sum(cross * np.exp(-1j * slope * x)))), slope


def line_errors(cross: NDArray[np.complex128], line: tuple[float, float]) -> tuple[float, float]:
    """Standard errors of a `line` from `fit_line`: of its value at the weighted centre, radians, and of its slope per pixel.

    From what the line leaves of the phase of `cross` ``(n,)``, without a model of the noise (White 1980, doi:10.2307/1912934).
    """
    x = np.arange(len(cross)) - len(cross) // 2
    w = np.abs(cross)
    total = float(w.sum())
    if total == 0:
        return np.inf, np.inf
    rest = w * np.angle(cross * np.exp(-1j * (line[0] + line[1] * x)))
    from_centre = x - float(np.sum(w * x)) / total
    spread = float(np.sum(w * from_centre**2))
    slope = float(np.sqrt(np.sum((rest * from_centre) ** 2))) / spread if spread > 0 else np.inf
    return float(np.sqrt(np.sum(rest**2))) / total, slope


def fit_polynomial(cross: NDArray[np.complex128], order: int) -> OddEvenPhase:
    """Polynomial of `order` for the phase of `cross` ``(n,)``: a line, and a weighted least-squares fit of what it leaves."""
    constant, slope = fit_line(cross)
    if order < 2:
        return OddEvenPhase(constant, slope if order else 0.0)
    n = len(cross)
    x = np.arange(n) - n // 2
    rest = np.angle(cross * np.exp(-1j * (constant + slope * x)))
    weights = np.abs(cross)
    powers = (2 * x / n)[:, None] ** np.arange(order + 1)
    fit = np.linalg.lstsq(powers * weights[:, None], rest * weights, rcond=None)[0]
    return OddEvenPhase(constant + float(fit[0]), slope + float(fit[1]) * 2 / n, tuple(float(c) for c in fit[2:]))
