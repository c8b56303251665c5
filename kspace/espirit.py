"""ESPIRiT coil sensitivity maps of one plane (Uecker et al. 2014, doi:10.1002/mrm.24751)."""

from __future__ import annotations

import torch
from torch import Tensor

from kspace.fourier import ifft, resize


def espirit_maps(calibration: Tensor, shape: tuple[int, int], kernel_width: int, threshold: float, crop: float) -> Tensor:
    """ESPIRiT maps, complex ``(coil y x)`` of `shape` ``(y x)``, from a calibration block, complex ``(coil ky kx)``.

    The maps are the dominant eigenvectors of the image-space operator. That operator is a trigonometric polynomial of the
    kernels' lags, so it is computed on the smallest sufficient grid and interpolated exactly, row by row.
    """
    n_coils = len(calibration)
    small = _kernel_operator(calibration, kernel_width, threshold)
    rows = torch.einsum("yj,jicd->yicd", _dirichlet(shape[0], len(small), kernel_width, small), small)
    columns = _dirichlet(shape[1], len(small), kernel_width, small)
    maps = calibration.new_zeros((shape[0], shape[1], n_coils))
    for y, row in enumerate(rows):
        operator = (columns @ row.reshape(len(row), -1)).reshape(shape[1], n_coils, n_coils)
        vector, value = _dominant(operator, crop)
        maps[y] = vector * (value > crop)[:, None]
    return align_phase(maps.permute(2, 0, 1), calibration)


def align_phase(maps: Tensor, calibration: Tensor) -> Tensor:
    """Reference the phase of maps ``(coil y x)`` to the principal coil combination of the calibration ``(coil ky kx)``."""
    principal = torch.linalg.eigh(torch.einsum("cyx,dyx->cd", calibration, calibration.conj()))[1][:, -1]
    reference = torch.einsum("cyx,c->yx", maps, principal.conj())
    return maps * torch.where(reference == 0, 1, reference.conj() / reference.abs().clamp(min=1e-30))


def _kernel_operator(calibration: Tensor, kernel_width: int, threshold: float) -> Tensor:
    """Image-space ESPIRiT operator ``(grid grid coil coil)`` on a grid of ``2 * kernel_width`` points."""
    n_coils, w, grid = len(calibration), kernel_width, 2 * kernel_width
    blocks = calibration.unfold(1, w, 1).unfold(2, w, 1)  # (coil by bx w w)
    matrix = blocks.permute(1, 2, 0, 3, 4).reshape(-1, n_coils * w * w)
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    kernels = vectors[values > threshold * values[0]].reshape(-1, n_coils, w, w)
    images = ifft(resize(kernels, (grid, grid))) * (grid / w)
    return torch.einsum("kcyx,kdyx->yxcd", images, images.conj())


def _dirichlet(n: int, grid: int, kernel_width: int, like: Tensor) -> Tensor:
    """Matrix ``(n grid)`` that interpolates a trigonometric polynomial of lags below `kernel_width` to `n` points."""
    lags = torch.arange(1, kernel_width, dtype=torch.float64)
    r = (torch.arange(n, dtype=torch.float64) - n // 2) / n
    s = (torch.arange(grid, dtype=torch.float64) - grid // 2) / grid
    angle = 2 * torch.pi * (r[:, None] - s[None, :])
    matrix = (1 + 2 * torch.cos(angle[..., None] * lags).sum(-1)) / grid
    return matrix.to(dtype=like.dtype, device=like.device)


def _dominant(operator: Tensor, crop: float, tolerance: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Dominant eigenvector ``(n coil)`` and eigenvalue ``(n)`` of positive semi-definite matrices ``(n coil coil)``.

    Power iteration with the eighth power of the matrix, until the vectors have converged wherever the eigenvalue may exceed
    `crop`. The initial vector is the column with the largest diagonal element, which for a semi-definite matrix cannot be
    orthogonal to the solution, as a fixed vector could be.
    """
    power = operator
    for _ in range(3):
        power = power @ power
    column = torch.diagonal(power, dim1=-2, dim2=-1).real.argmax(-1)
    vector = _normalised(power.gather(-1, column[:, None, None].expand(-1, power.shape[-2], 1)))
    for _ in range(30):
        new = power @ vector
        # ||G^8 v|| approaches the eighth power of the eigenvalue from below, hence the margin.
        relevant = torch.linalg.vector_norm(new, dim=(-2, -1)) > (0.9 * crop) ** 8
        new = _normalised(new)
        change = torch.linalg.vector_norm(new - vector, dim=(-2, -1)) * relevant
        vector = new
        if change.max() < tolerance:
            break
    return vector[..., 0], torch.linalg.vector_norm(operator @ vector, dim=(-2, -1))


def _normalised(vector: Tensor) -> Tensor:
    return vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True).clamp(min=1e-30)
