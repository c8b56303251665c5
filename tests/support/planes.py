"""One plane of samples with a known object, for methods and their evidence."""

from __future__ import annotations

import torch
from torch import Tensor

from kspace.masks import MaskSpec
from kspace.operators import Sense
from kspace.simulation.from_images import complex_noise


def plane(
    n_coils: int = 4, spec: str = "random1d:3", noise: float = 0.05, n: int = 64, seed: int = 1, size: float = 0.4
) -> tuple[Tensor, Sense, Tensor]:
    """Samples of a smooth object with edges, their operator and the object."""
    rng = torch.Generator().manual_seed(seed)
    grid = (torch.arange(n) - n // 2) / n
    r = torch.hypot(grid[:, None], grid)
    x = ((r < size).float() + 0.5 * (r < size / 2).float()).to(torch.complex64) * torch.exp(1j * grid)
    angles = 2 * torch.pi * torch.arange(n_coils) / n_coils
    maps = torch.stack(
        [torch.exp(-4 * ((grid[:, None] - 0.5 * a.sin()) ** 2 + (grid - 0.5 * a.cos()) ** 2) + 0.5j * a) for a in angles]
    )
    maps = maps / maps.abs().square().sum(0).sqrt()
    op = Sense(maps.to(torch.complex64), MaskSpec.parse(spec).draw((n, n), "test"))
    y = op.forward(x) + noise * complex_noise((n_coils, n, n), rng)
    return torch.where(op.mask, y, 0), op, x
