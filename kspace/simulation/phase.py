"""Image phase as scans have it: far rougher than the few cosines of `smooth_phase`.

The phase of a scan is the sum of smooth offsets of receiver and shim, a linear ramp where the echo is not centred, blobs around
air and vessels, a field without a scale of its own, and what tissue adds that has an intensity of its own too (fat,
susceptibility). Each part has an amplitude that is drawn for each image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.fourier import ifft
from kspace.simulation.receiver import smooth_phase

QUIET = 0.03
KNOTS = 6  # of the phase as a function of magnitude


@dataclass(frozen=True)
class PhaseOptions:
    """Amplitudes of the parts of the phase; an amplitude of 0 leaves a part out.

    Parameters
    ----------
    smooth
        Largest standard deviation of the cosines of orders 0 to 4, in radians.
    ramp
        Largest slope of the linear ramp along each axis, in radians per pixel.
    ramp_probability
        Share of images with a ramp.
    blobs
        Largest number of blobs.
    blob_std
        Standard deviation of the phase at the centre of a blob, in radians.
    blob_sigma
        Smallest and largest width of a blob, in pixels.
    power_law
        Largest standard deviation of the power-law field, in radians.
    exponent
        Smallest and largest exponent of the power-law field: amplitudes fall off as ``|k|^-exponent``.
    tissue
        Largest standard deviation of the phase that is a function of magnitude, in radians.
    quiet
        Share of images, as of phantoms in a good shim, whose local phase (blobs, power-law field and tissue) is 3 %.
    """

    smooth: float = 1.5
    ramp: float = 0.13
    ramp_probability: float = 0.5
    blobs: int = 5
    blob_std: float = 1.5
    blob_sigma: tuple[float, float] = (3.0, 25.0)
    power_law: float = 0.5
    exponent: tuple[float, float] = (1.2, 2.5)
    tissue: float = 0.4
    quiet: float = 0.55

    def __post_init__(self) -> None:
        amplitudes = (self.smooth, self.ramp, self.blobs, self.blob_std, self.power_law, self.tissue, self.ramp_probability,
                      self.quiet)  # fmt: skip
        if not all(0 <= value < math.inf for value in amplitudes):
            raise InputError(f"an amplitude of the phase is negative or infinite: {self}", fix="give 0 or a positive number")
        if not 0 < self.blob_sigma[0] <= self.blob_sigma[1] or not 0 <= self.exponent[0] <= self.exponent[1]:
            raise InputError(f"a range of the phase is empty: {self}", fix="give the smaller number first")


def global_phase(shape: Sequence[int], rng: torch.Generator, options: PhaseOptions) -> Tensor:
    """What neighbouring slices share, smooth offsets and the ramp: float32 ``(y x)``, in radians."""
    smooth = smooth_phase(shape, rng, options.smooth * uniform(rng) ** 2)
    slopes = [options.ramp * (2 * uniform(rng) - 1) for _ in range(2)]
    if uniform(rng) >= options.ramp_probability:
        return smooth
    y, x = (torch.arange(n, dtype=torch.float32) - n // 2 for n in shape)
    return smooth + slopes[0] * y[:, None] + slopes[1] * x


def local_phase(magnitude: Tensor, rng: torch.Generator, options: PhaseOptions) -> Tensor:
    """What each slice has of its own, blobs, power-law field and tissue: float32 ``(y x)``, in radians."""
    shape = magnitude.shape[-2:]
    phase = blobs(shape, rng, options)
    low, high = options.exponent
    exponent, amplitude = low + (high - low) * uniform(rng), options.power_law * uniform(rng)
    phase = phase + amplitude * power_law(shape, rng, exponent)
    phase = phase + options.tissue * uniform(rng) * tissue_phase(magnitude, rng)
    return QUIET * phase if uniform(rng) < options.quiet else phase


def draw_phase(magnitude: Tensor, rng: torch.Generator, options: PhaseOptions) -> Tensor:
    """Phase of one image of this magnitude, real ``(y x)``: float32 ``(y x)``, in radians."""
    return global_phase(magnitude.shape[-2:], rng, options) + local_phase(magnitude, rng, options)


def blobs(shape: Sequence[int], rng: torch.Generator, options: PhaseOptions) -> Tensor:
    """Gaussian blobs, and blobs with the two-fold angular pattern of a dipole in its plane: float32 ``(y x)``, in radians."""
    phase = torch.zeros(*shape)
    count = int(torch.randint(options.blobs + 1, (), generator=rng))
    low, high = (math.log(value) for value in options.blob_sigma)
    for _ in range(count):
        sigma, amplitude = math.exp(low + (high - low) * uniform(rng)), options.blob_std * normal(rng)
        y, x = ((torch.arange(n, dtype=torch.float32) - n * (0.15 + 0.7 * uniform(rng))) / sigma for n in shape)
        radius2 = y[:, None].square() + x.square()
        blob = torch.exp(-0.5 * radius2)
        angle, dipole = math.pi * uniform(rng), uniform(rng) < 0.5
        if dipole:  # second derivative along and across a direction: cos(2 angle), zero at the centre
            twice = (y[:, None].square() - x.square()) * math.cos(2 * angle) + 2 * y[:, None] * x * math.sin(2 * angle)
            blob = blob * twice * (math.e / 2)  # 1 at its largest
        phase += amplitude * blob
    return phase


def power_law(shape: Sequence[int], rng: torch.Generator, exponent: float) -> Tensor:
    """A normal random field whose amplitudes fall off as ``|k|^-exponent``: float32 ``(y x)``, mean 0, standard deviation 1.

    ``|k|`` counts periods over the longer axis; the field is periodic over twice the shape, so that its edges do not meet.
    """
    n_y, n_x = (2 * n for n in shape)
    longest = max(n_y, n_x)
    ky, kx = ((torch.arange(n, dtype=torch.float32) - n // 2) * (longest / n) for n in (n_y, n_x))
    radius = (ky[:, None].square() + kx.square()).sqrt()
    radius[n_y // 2, n_x // 2] = math.inf
    spectrum = torch.randn(n_y, n_x, generator=rng, dtype=torch.complex64) * radius.pow(-exponent)
    field = ifft(spectrum).real[: shape[0], : shape[1]]
    field = field - field.mean()
    return field / field.std().clamp_min(torch.finfo(field.dtype).tiny)


def tissue_phase(magnitude: Tensor, rng: torch.Generator) -> Tensor:
    """A random piecewise-linear function of magnitude with normal values at its knots: float32 ``(y x)``."""
    values = torch.randn(KNOTS, generator=rng)
    top = magnitude.amax()
    place = magnitude.float() * ((KNOTS - 1) / top if top > 0 else 0.0)
    below = place.floor().clamp(0, KNOTS - 2)
    return torch.lerp(values[below.long()], values[below.long() + 1], place - below)


def uniform(rng: torch.Generator) -> float:
    """A number between 0 and 1."""
    return float(torch.rand((), generator=rng))


def normal(rng: torch.Generator) -> float:
    """A standard normal number."""
    return float(torch.randn((), generator=rng))
