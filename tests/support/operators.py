"""Random coil maps and masks for tests of operators."""

from __future__ import annotations

import torch
from torch import Tensor


def normalised_maps(*shape: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    maps = torch.randn(*shape, dtype=dtype)
    return maps / maps.abs().square().sum(-3, keepdim=True).sqrt()


def some_mask(kind: str, ny: int, nx: int) -> Tensor:
    mask = torch.rand(ny, 1 if kind == "lines" else nx) < 0.6
    mask[ny // 2] = True
    return mask
