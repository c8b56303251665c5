"""Density of samples: the area of k-space that each stands for, and the points of the grid that they visit."""

from __future__ import annotations

import torch
from torch import Tensor

from kspace.noncartesian.nufft import Repeated

ITERATIONS = 30


def visited(trajectory: Tensor, shape: tuple[int, int]) -> Tensor:
    """Points of the Cartesian grid nearest to a sample of `trajectory` ``(... 2)``: bool ``(ky kx)`` of `shape`."""
    ny, nx = shape
    points = (trajectory.reshape(-1, 2) * torch.tensor([nx, ny], device=trajectory.device)).round().long()
    x, y = points[:, 0] + nx // 2, points[:, 1] + ny // 2
    inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    found = torch.zeros(ny * nx, dtype=torch.bool, device=trajectory.device)
    found[y[inside] * nx + x[inside]] = True
    return found.reshape(ny, nx)


def pipe_density(trajectory: Tensor, shape: tuple[int, int], iterations: int = ITERATIONS) -> Tensor:
    """Density compensation by Pipe and Menon's iteration, ``w <- w / (C w)``, C a convolution in k-space.

    Pipe and Menon 1999, doi:10.1002/(SICI)1522-2594(199901)41:1<179::AID-MRM25>3.0.CO;2-V, with the kernel that the field of
    view asks for: the transform of its autocorrelation (Johnson and Pipe 2009, doi:10.1002/mrm.21817), which is not negative.

    Parameters
    ----------
    trajectory
        Real ``(readout sample 2)``, cycles per pixel.
    shape
        Matrix ``(y x)`` of the image.
    iterations
        Number of iterations.

    Returns
    -------
    Tensor
        Float64 ``(readout sample)``, in points of the grid: 1 for each sample of a Cartesian scan, at most 1 where samples lie
        farther apart than those of the grid.
    """
    wide = 2 * shape[0], 2 * shape[1]
    transforms = Repeated(trajectory, wide)
    tent = [(1 - (torch.arange(2 * n, dtype=torch.float64) - n).abs() / n) for n in shape]
    window = (tent[0][:, None] * tent[1] * 4).float()  # 4: two transforms, each orthonormal on the doubled grid
    w = torch.ones(trajectory.shape[:-1], dtype=torch.complex64)
    for _ in range(iterations):
        convolved = transforms.to_samples(window * transforms.to_image(w))
        w = (w.real / convolved.real.clamp(min=1e-12)).to(torch.complex64)
    return w.real.double()
