"""Small simulated scans for the tests of the networks: analytic object, coil maps and mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kspace.operators import Sense


def ellipses(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """A few soft ellipses with a smooth phase: complex ``(y x)``, largest magnitude 1."""
    g = torch.Generator().manual_seed(seed)
    y, x = (torch.linspace(-1, 1, n) for n in shape)
    image = torch.zeros(shape)
    low, span = torch.tensor([-0.4, -0.4, 0.1, 0.1]), torch.tensor([0.8, 0.8, 0.5, 0.5])
    for k in range(6):
        cy, cx, ry, rx = (low + span * torch.rand(4, generator=g)).tolist() if k else (0.0, 0.0, 0.9, 0.8)
        r = ((y[:, None] - cy) / ry) ** 2 + ((x[None, :] - cx) / rx) ** 2
        image = image + (0.5 + 0.5 * torch.rand(1, generator=g).item()) * torch.sigmoid(20 * (1 - r))
    phase = 0.7 * torch.sin(2 * y)[:, None] + 0.5 * x[None, :]
    return torch.polar(image / image.max(), phase.expand(shape))


def coil_maps(n_coils: int, shape: tuple[int, int]) -> Tensor:
    """Smooth maps ``(coil y x)`` whose squared magnitudes add up to 1; one coil: ones."""
    if n_coils == 1:
        return torch.ones(1, *shape, dtype=torch.complex64)
    y, x = (torch.linspace(-1, 1, n) for n in shape)
    maps = []
    for k in range(n_coils):
        angle = 2 * math.pi * k / n_coils
        d = (y[:, None] - 1.2 * math.sin(angle)) ** 2 + (x[None, :] - 1.2 * math.cos(angle)) ** 2
        maps.append(torch.polar(torch.exp(-d / 1.5), angle + 0.5 * x[None, :] * math.sin(angle) + 0 * d))
    stack = torch.stack(maps)
    return stack / stack.abs().square().sum(0).sqrt()


def mask_of(shape: tuple[int, int], lines: bool, seed: int = 0) -> Tensor:
    """Two in five lines ``(ky 1)``, or points ``(ky kx)``, and the centre."""
    g = torch.Generator().manual_seed(seed)
    size = (shape[0], 1) if lines else shape
    mask = torch.rand(size, generator=g) < 0.4
    middle = slice(shape[0] // 2 - 3, shape[0] // 2 + 3), slice(None) if lines else slice(shape[1] // 2 - 3, shape[1] // 2 + 3)
    mask[middle] = True
    return mask


def scan(
    shape: tuple[int, int] = (32, 24), n_coils: int = 3, batch: Sequence[int] = (2,), lines: bool = True, noise: float = 0.0
) -> tuple[Tensor, Sense, Tensor]:
    """k-space ``(*batch coil ky kx)``, operator and target ``(*batch y x)``."""
    n = math.prod(batch)
    target = torch.stack([ellipses(shape, seed) for seed in range(n)]).reshape(*batch, *shape)
    maps = coil_maps(n_coils, shape).expand(*batch, n_coils, *shape)
    op = Sense(maps, mask_of(shape, lines))
    y = op.forward(target)
    return y + noise * op.mask * torch.randn_like(y), op, target
