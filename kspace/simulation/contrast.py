"""Magnitudes of other contrasts and of no anatomy at all, from random intensity maps and dead leaves.

A network that has seen one contrast learns that contrast. A random map of intensities turns an image into one of another
contrast with the same edges; dead leaves, opaque shapes of all sizes one on top of the other, have the edges and the power-law
spectrum of natural images and nothing of a head (Lee, Mumford and Huang, Int J Comput Vis 2001;41:35,
doi:10.1023/A:1011109015675).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kspace.simulation.phase import power_law, uniform

KNOTS = (3, 7)  # fewest and most knots of an intensity map above its zero
LEAVES = (5, 1000)
SMALLEST_LEAF = 2.0  # pixels
RINDS = 0.5  # share of outlined objects that are darker inside
OUTLINE = (0.08, 0.48)  # semi-axes of the object, over the field of view
SHAPES = 3  # ellipses, rectangles, ellipses that are cut in half


def map_intensities(magnitude: Tensor, rng: torch.Generator) -> Tensor:
    """Another contrast: a random piecewise-linear function of magnitude, monotone in half of the cases; zero stays zero.

    Parameters
    ----------
    magnitude
        Real ``(y x)``, not negative.

    Returns
    -------
    Tensor
        Float32 ``(y x)``, between 0 and the 99.5th percentile of `magnitude` or above it in proportion.
    """
    flat = magnitude.flatten()[:: max(1, magnitude.numel() // 16384)].float()
    top = float(flat.kthvalue(max(1, math.ceil(0.995 * flat.numel()))).values) or float(magnitude.max())
    n_knots = int(torch.randint(KNOTS[0], KNOTS[1] + 1, (), generator=rng))
    values = torch.rand(n_knots, generator=rng) ** (0.5 + 1.5 * uniform(rng))
    if uniform(rng) < 0.5:
        values = values.sort().values
    floor = 0.9 * uniform(rng) ** 3  # homogeneous objects
    values = floor + (1 - floor) * values / values.max()
    # The first knot lies above the background, which is dark in any contrast.
    places = np.concatenate([[0.0], np.linspace(0.12, 1.0, n_knots)]) * top
    heights = np.concatenate([[0.0], values.numpy()]) * top
    mapped = np.interp(magnitude.float().numpy(), places, heights)
    return torch.from_numpy(mapped.astype(np.float32))


def dead_leaves(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Opaque shapes of random size, intensity, shading and texture, mostly in air: float32 ``(y x)``, 0 to 255.

    Radii follow ``r^-3`` between 2 pixels and a third of the shorter axis. Edges are sharp: crop k-space to a smaller matrix.
    """
    chance = np.random.default_rng(int(torch.randint(2**62, (), generator=rng)))
    n_y, n_x = shape
    image = np.full((n_y, n_x), chance.uniform(0.3, 1), dtype=np.float32)
    count = int(np.exp(chance.uniform(*np.log(LEAVES))))
    largest = min(n_y, n_x) / 3
    u = chance.random(count)
    radii = SMALLEST_LEAF / np.sqrt(1 - u * (1 - (SMALLEST_LEAF / largest) ** 2))  # inverse of the distribution function
    darkest = 0.05 + 0.92 * chance.random() ** 2
    for radius in radii:
        _paint(image, float(radius), darkest, chance)
    if chance.random() < 0.7:
        texture = power_law(shape, rng, 0.5 + uniform(rng)).numpy()
        image *= np.exp(chance.uniform(0, 0.15) * texture)
    if chance.random() < 0.8:
        distance = _distance(shape, chance)
        image *= distance < 1
        if chance.random() < RINDS:  # skull and scalp around a dark inside, or a peel
            image *= 1 - chance.uniform(0.4, 1) * (distance < chance.uniform(0.7, 0.95))
    return torch.from_numpy(np.clip(image, 0, None) * np.float32(255 / max(float(image.max()), 1e-6)))


def _paint(image: NDArray[np.float32], radius: float, darkest: float, chance: np.random.Generator) -> None:
    n_y, n_x = image.shape
    c_y, c_x, angle, ratio = chance.random() * n_y, chance.random() * n_x, chance.random() * math.pi, chance.uniform(0.3, 1)
    kind, value, shade = chance.integers(SHAPES), chance.uniform(darkest, 1), chance.uniform(-0.3, 0.3) * (1 - darkest)
    reach = radius * (1.5 if kind == 1 else 1.0)
    rows = slice(max(0, int(c_y - reach)), min(n_y, int(c_y + reach) + 2))
    columns = slice(max(0, int(c_x - reach)), min(n_x, int(c_x + reach) + 2))
    y = ((np.arange(rows.start, rows.stop) - c_y) / radius).astype(np.float32)[:, None]
    x = ((np.arange(columns.start, columns.stop) - c_x) / radius).astype(np.float32)
    along, across = y * math.cos(angle) + x * math.sin(angle), (x * math.cos(angle) - y * math.sin(angle)) / ratio
    if kind == 1:
        inside = np.maximum(np.abs(along), np.abs(across)) < 1
    else:
        inside = along**2 + across**2 < 1
        if kind == 2:
            inside &= across > 0
    patch = image[rows, columns]
    patch[inside] = (value * (1 + shade * along))[inside]


def _distance(shape: Sequence[int], chance: np.random.Generator) -> NDArray[np.float32]:
    """Distance from the centre of an ellipse with a wavy edge, 1 on its edge."""
    n_y, n_x = shape
    y = (np.arange(n_y) / n_y - 0.5 - chance.uniform(-0.04, 0.04))[:, None] / chance.uniform(*OUTLINE)
    x = (np.arange(n_x) / n_x - 0.5 - chance.uniform(-0.04, 0.04)) / chance.uniform(*OUTLINE)
    angle = np.arctan2(y, x)
    edge = 1 + sum(chance.uniform(0, 0.06) * np.cos(m * angle + chance.uniform(0, 2 * math.pi)) for m in range(2, 6))
    distance: NDArray[np.float32] = (np.hypot(y, x) / edge).astype(np.float32)
    return distance
