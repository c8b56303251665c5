"""What tells simulated slices from scans: spectrum, phase, intensities, noise and coil maps, measured alike on both.

Everything is measured on fully sampled k-space with the operations that a reconstruction would use: maps by ESPIRiT from the
centre, coils combined with them. Phase is measured where the object is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kspace import coils
from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import fft, ifft

RING_EDGES = tuple(i / 20 for i in range(11))  # of max(|ky|, |kx|) / n
PASSES = (8, 16, 32)  # half widths of the low-pass, in samples
PERCENTILES = (10, 25, 50, 75, 90)
COVERED = (5.0, 95.0)  # percentiles of the simulation that scans shall lie between
BLOCK = 8  # pixels, for the noise of the background
_CALIBRATION = 24

Measured = dict[str, float]


def measure(k: KSpace) -> Measured:
    """Every quantity of one slice.

    Parameters
    ----------
    k
        Fully sampled, ``(coil ky kx)``, of any scale, whitened where the noise is known.

    Returns
    -------
    dict
        ``spectrum/0.20-0.25``: mean power in a ring of k-space over that of the innermost ring, noise subtracted, of the
        root-sum-of-squares combination; ``phase/residual_8`` ...: RMS of the phase that a low-pass of that half width leaves,
        in radians; ``phase/gradient``: RMS difference between neighbours, in radians per pixel; ``intensity/p10`` ...:
        percentiles of the magnitude in the object over its 99th; ``noise/snr``: mean magnitude in the object over the standard
        deviation of one component of the noise; ``maps/gradient``: RMS change of the coil maps over a tenth of the field of
        view.

    Raises
    ------
    InputError
        If the slice is empty.
    """
    maps = coils.estimate_maps(k, "espirit", _CALIBRATION)
    image = (maps.conj() * ifft(k.data)).sum(0)
    known = k.header.noise_std
    noise = _noise_power(k.data) if known is None else known**2
    magnitude = image.abs()
    inside = bright_object(magnitude)
    if not bool(inside.any()):
        raise InputError("an empty slice cannot be checked", k.header.source or None)
    return {
        **_spectrum(k.data, noise),
        **phase_statistics(image, inside),
        **intensity_statistics(magnitude[inside]),
        "noise/snr": float(magnitude[inside].mean()) / math.sqrt(max(noise, 1e-30) / 2),
        **({"maps/gradient": map_gradient(maps, inside)} if len(maps) > 1 else {}),
    }


def ranges(rows: Sequence[Measured]) -> dict[str, tuple[float, float]]:
    """Percentiles 5 and 95 of each quantity over slices that were measured; of those slices that have it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    found = {}
    for name in names:
        values = torch.tensor([row[name] for row in rows if name in row], dtype=torch.float64)
        low, high = torch.quantile(values, torch.tensor(COVERED, dtype=torch.float64) / 100).tolist()
        found[name] = (low, high)
    return found


def outside(row: Measured, limits: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the quantities of `row` that lie outside of `limits`."""
    return [name for name, value in row.items() if name in limits and not limits[name][0] <= value <= limits[name][1]]


def bright_object(magnitude: Tensor) -> Tensor:
    """Pixels above a fifth of the 99th percentile, bool ``(y x)``: their phase is more than noise."""
    flat = magnitude.flatten()
    top = flat.kthvalue(max(1, math.ceil(0.99 * flat.numel()))).values
    return magnitude > 0.2 * top


def _noise_power(y: Tensor) -> float:
    """Mean |n|^2 of a sample of one coil where nobody knows it, from the darkest tenth of the blocks of the coil images."""
    power = torch.view_as_real(ifft(y)).square().sum(-1).mean(0)
    blocks = torch.nn.functional.avg_pool2d(power[None], BLOCK)[0].flatten()
    positive = blocks[blocks > 0]
    if not len(positive):
        return 0.0
    return float(positive.sort().values[: max(1, len(positive) // 10)].double().mean())


def _spectrum(y: Tensor, noise: float) -> Measured:
    n_y, n_x = y.shape[-2:]
    ky, kx = ((torch.arange(n) - n // 2).abs() / n for n in (n_y, n_x))
    radius = torch.maximum(ky[:, None], kx)
    power = torch.view_as_real(y.resolve_conj()).square().sum(-1).mean(0).double()
    means = []
    for i in range(len(RING_EDGES) - 1):
        ring = (radius >= RING_EDGES[i]) & (radius < RING_EDGES[i + 1] + 1e-9 * (i == len(RING_EDGES) - 2))
        means.append(float(power[ring].mean()) - noise)
    return {
        f"spectrum/{RING_EDGES[i]:.2f}-{RING_EDGES[i + 1]:.2f}": max(means[i], 0.0) / max(means[0], 1e-30)
        for i in range(1, len(means))
    }


def phase_statistics(image: Tensor, inside: Tensor) -> Measured:
    """``phase/...`` of `measure`, of an image, complex ``(y x)``, at the pixels `inside`, bool ``(y x)``."""
    found = {}
    k = fft(image)
    for width in PASSES:
        if 2 * width >= min(image.shape):
            continue  # all of k-space passes
        windows = [((torch.arange(n) - n // 2).abs() <= width).to(k.dtype) for n in image.shape]
        smooth = ifft(k * windows[0][:, None] * windows[1])
        found[f"phase/residual_{width}"] = float((image * smooth.conj())[inside].angle().double().square().mean().sqrt())
    steps = []
    for axis in (0, 1):
        n = image.shape[axis] - 1
        here, there = image.narrow(axis, 0, n), image.narrow(axis, 1, n)
        both = inside.narrow(axis, 0, n) & inside.narrow(axis, 1, n)
        steps.append((there * here.conj())[both].angle())
    # The constant slope of an echo shift says nothing about roughness.
    centred = torch.cat([step - step.median() for step in steps if len(step)])
    found["phase/gradient"] = float(centred.double().square().mean().sqrt())
    return found


def intensity_statistics(values: Tensor) -> Measured:
    """``intensity/...`` of `measure`, of the magnitudes ``(pixel)`` of an object."""
    ordered = values.sort().values
    top = float(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))])
    return {f"intensity/p{p}": float(ordered[int(p / 100 * (len(ordered) - 1))]) / top for p in PERCENTILES}


def map_gradient(maps: Tensor, inside: Tensor) -> float:
    """RMS, over object and axes, of the change of unit maps ``(coil y x)`` over a tenth of the field of view."""
    powers, counts = 0.0, 0
    for axis in (0, 1):
        n = inside.shape[axis]
        step = max(1, n // 20)
        here, there = maps.narrow(axis + 1, 0, n - step), maps.narrow(axis + 1, step, n - step)
        valid = inside.narrow(axis, 0, n - step) & inside.narrow(axis, step, n - step)
        valid &= (here.abs().sum(0) > 0) & (there.abs().sum(0) > 0)
        change = torch.view_as_real(there - here).square().sum((0, -1))[valid] * (n / (10 * step)) ** 2
        powers, counts = powers + float(change.double().sum()), counts + int(valid.sum())
    return math.sqrt(powers / max(1, counts))
