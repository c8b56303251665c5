"""Statistics of a scan for the domain guard: of acquired samples and the classical image, as `kspace.simulation.check` measures
them on complete ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kspace.operators import ForwardModel
from kspace.simulation.check import RING_EDGES, bright_object, intensity_statistics, map_gradient, phase_statistics

LEAST_POWER = 1e-8  # relative to the innermost ring
LEAST_SCALE = 0.02  # of any statistic
LARGEST = 10.0  # standardised value beyond which one statistic says no more
GROUPS = {"spectrum": "radial spectrum", "phase": "phase", "intensity": "intensities", "maps": "coil maps"}


def image_statistics(y: Tensor, op: ForwardModel, image: Tensor, noise_std: float) -> dict[str, float]:
    """Logarithms of radial spectrum, phase residuals and map gradient, and intensity percentiles; empty without signal.

    Parameters
    ----------
    y, op
        Complex ``(*batch coil ky kx)``, zero where not acquired; of a batch the plane of the largest energy counts.
    image
        Of the companion, complex ``(*batch y x)``.
    noise_std
        Square root of E|n|^2 of a sample measured once.
    """
    planes, images = y.reshape(-1, *y.shape[-3:]), image.reshape(-1, *image.shape[-2:])
    i = int(images.abs().square().sum((-2, -1)).argmax())
    flat = op.flattened(y.shape[:-3])
    maps = flat.maps[i if len(flat.maps) > 1 else 0]
    weights = flat.weights[i if len(flat.weights) > 1 else 0]
    inside = bright_object(images[i].abs())
    if not bool(inside.any()) or not bool(torch.isfinite(images[i].abs()).all()):
        return {}
    ky, kx = flat.planes(slice(i, i + 1)).frequencies
    radius = torch.maximum(ky.abs(), kx.abs()).reshape(-1, *y.shape[-2:])[0]
    found = spectrum(planes[i], weights, noise_std**2, radius)
    found |= {name: math.log(max(value, 1e-4)) for name, value in phase_statistics(images[i], inside).items()}
    found |= intensity_statistics(images[i].abs()[inside])
    if len(maps) > 1:
        found["maps/gradient"] = math.log(max(map_gradient(maps, inside), 1e-4))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def snr(image: Tensor, noise_std: float) -> float | None:
    """Mean magnitude of an image, complex ``(*batch y x)``, in its bright object over that of one component of the noise of a
    complete scan, as simulations define it."""
    magnitude = image.reshape(-1, *image.shape[-2:]).abs()
    plane = magnitude[int(magnitude.square().sum((-2, -1)).argmax())]
    inside = bright_object(plane)
    return float(plane[inside].mean()) / (noise_std / math.sqrt(2)) if bool(inside.any()) and noise_std > 0 else None


def spectrum(y: Tensor, weights: Tensor, variance: float, radius: Tensor | None = None) -> dict[str, float]:
    """Logarithm of the mean power of acquired samples in rings of k-space over that of the innermost, noise subtracted.

    Parameters
    ----------
    y, weights
        Complex ``(coil ky kx)``, and how often each sample was measured, broadcastable to it.
    variance
        E|n|^2 of a sample measured once.
    radius
        The larger of ``abs(ky)`` and ``abs(kx)`` of each sample in cycles per pixel, ``(ky kx)``; None: those of a grid.
    """
    if radius is None:
        at_y, at_x = ((torch.arange(n) - n // 2).abs() / n for n in y.shape[-2:])
        radius = torch.maximum(at_y[:, None], at_x).to(y.device)
    counts = weights.expand(y.shape).double()
    acquired = counts > 0
    excess = y.abs().double().square() - variance / counts.clamp(min=1)
    means: list[float | None] = []
    for low, high in itertools.pairwise(RING_EDGES):
        ring = acquired & (radius >= low) & (radius < high + 1e-9 * (high == RING_EDGES[-1]))
        means.append(float(excess[ring].mean()) if int(ring.sum()) >= 32 else None)
    first = means[0]
    if first is None or first <= 0:
        return {}
    return {
        f"spectrum/{RING_EDGES[i]:.2f}-{RING_EDGES[i + 1]:.2f}": math.log(max(mean / first, LEAST_POWER))
        for i, mean in enumerate(means)
        if i and mean is not None
    }


def centres(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Median and scale (half of the range between the percentiles 16 and 84) of each statistic that all rows have."""
    names = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    found = {}
    for name in names:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        low, middle, high = torch.quantile(values, torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64)).tolist()
        found[name] = (middle, max((high - low) / 2, LEAST_SCALE))
    return found


def standardised(row: Mapping[str, float], known: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Each statistic in scales from its median, at most `LARGEST`."""
    found = {name: (row[name] - centre) / scale for name, (centre, scale) in known.items() if name in row}
    return {name: max(-LARGEST, min(LARGEST, z)) for name, z in found.items()}


def distance(row: Mapping[str, float], known: Mapping[str, tuple[float, float]]) -> tuple[float, tuple[str, ...]] | None:
    """Root mean square of the standardised statistics, and the groups that make most of it, in words; None: nothing known.

    Each group of statistics counts alike, however many it has.
    """
    z = standardised(row, known)
    groups = {g: [v**2 for name, v in z.items() if name.startswith(g)] for g in GROUPS}
    means = {g: sum(v) / len(v) for g, v in groups.items() if v}
    if not means:
        return None
    total = sum(means.values()) / len(means)
    named = tuple(GROUPS[g] for g, v in sorted(means.items(), key=lambda item: -item[1]) if v >= total)
    return math.sqrt(total), named
