"""Coil compression by singular value decomposition."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kspace.container import KSpace
from kspace.errors import InputError


def compress(k: KSpace, n_virtual: int) -> KSpace:
    """Replace the coils by the `n_virtual` orthonormal combinations with the most signal.

    Singular value decomposition of the acquired samples (Huang et al. 2008, doi:10.1016/j.mri.2007.04.010). White noise stays
    white and `Header.noise_std` remains valid; whiten first. All planes share one matrix.

    Parameters
    ----------
    k
        k-space ``(*batch coil ky kx)``.
    n_virtual
        Number of virtual coils, at most the number of coils.

    Returns
    -------
    KSpace
        With `n_virtual` coils, strongest first, in the data and in the separate calibration.

    Raises
    ------
    InputError
        If `n_virtual` is not between 1 and the number of coils, or the coils were compressed before.
    """
    if not 1 <= n_virtual <= k.n_coils:
        raise InputError(
            f"{n_virtual} virtual coils requested, the data have {k.n_coils} coils",
            k.header.source or None,
            f"choose 1 to {k.n_coils}",
        )
    acquired = torch.where(k.mask, k.data, 0)
    samples = acquired.movedim(-3, 0).reshape(k.n_coils, -1)
    samples = (samples / samples.abs().max().clamp(min=torch.finfo(samples.real.dtype).tiny)).to(torch.complex128)
    _, vectors = torch.linalg.eigh(samples @ samples.mH)
    matrix = vectors.flip(-1)[:, :n_virtual].mH.to(k.data.dtype)

    def combine(data: Tensor) -> Tensor:
        return torch.einsum("vc,...cyx->...vyx", matrix, data)

    calibration = None if k.calibration is None else combine(k.calibration)
    # Kept because coil maps from files need the same compression.
    coils = replace(k.header.coils, compression=matrix)
    return k.after("compress", header={"coils": coils}, data=combine(acquired), calibration=calibration)


def to_virtual(maps: Tensor, k: KSpace) -> Tensor:
    """Apply the compression of `k` to maps ``(*batch coil y x)`` of the physical coils; unchanged without compression."""
    matrix = k.header.coils.compression
    return maps if matrix is None else torch.einsum("vc,...cyx->...vyx", matrix.to(maps.device), maps)
