"""Coil sensitivity maps from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kspace.compression import to_virtual
from kspace.container import KSpace
from kspace.errors import InputError
from kspace.noise import Noise
from kspace.preprocess import match_channels


def load_maps(path: Path, k: KSpace, noise: Noise | None = None) -> Tensor:
    """Read coil maps that were made elsewhere, of the channels of the raw file, and treat them as its samples were.

    Parameters
    ----------
    path
        ``.npy``, or HDF5 with a dataset ``maps``: complex ``(coil y x)``, or ``(slice coil y x)`` from which the slice of `k`
        is taken; for a 3-D scan or a stack ``(coil z y x)``. The channels are all those of the raw file, not whitened.
    k
        The k-space they are for, ``(*batch coil ky kx)``, or ``(*batch coil readout sample)`` off the grid. Where its dead
        coils were dropped, its channels whitened or compressed, the maps are.
    noise
        What `k` was whitened with, None where it was not.

    Returns
    -------
    Tensor
        complex64 ``(*batch coil y x)``, of a volume off the grid ``(coil z y x)``, scaled so that the squared magnitudes sum to
        1 over the channels of the raw file (whitened ones, where `k` is) where any is non-zero.

    Raises
    ------
    InputError
        If the file cannot be read, or its maps do not fit `k`.
    """
    maps = _placed(torch.from_numpy(_read_array(path)).to(torch.complex64), k, path)
    if not bool(torch.isfinite(torch.view_as_real(maps)).all()):
        raise InputError("maps with values that are not finite", path, "set them to zero where they are not known")
    maps = maps / maps.abs().max().clamp(min=1e-30)
    maps = match_channels(maps.to(k.data.device), k, noise)
    total = torch.linalg.vector_norm(maps, dim=-3, keepdim=True)
    maps = torch.where(total > 1e-6 * total.max(), maps / total.clamp(min=1e-30), 0)
    maps = to_virtual(maps, k)
    return maps.transpose(0, 1).contiguous() if k.is_volume else maps.expand(*k.data.shape[:-2], *_shape(k))


def _placed(maps: Tensor, k: KSpace, path: Path) -> Tensor:
    """Maps of all raw channels ``(*batch coil y x)`` on the planes of `k`, from the shape that a file has."""
    virtual = k.header.coils.compression
    kept = k.n_coils if virtual is None else virtual.shape[-1]
    n_coils = kept + len(k.header.coils.dropped)
    axes, wanted = "coil y x", [n_coils, *_shape(k)]
    if "decouple" in k.header.steps:
        axes, wanted = "coil z y x", [*wanted, len(k.data)]
    elif k.is_volume or (k.trajectory is not None and k.data.ndim == 4):  # or a stack
        axes, wanted = "coil z y x", [n_coils, k.header.encoded_matrix[2], *_shape(k)]
    elif maps.ndim == 4 and k.data.ndim == 3:
        index = k.header.index.slice
        if index >= len(maps):
            raise InputError(f"maps of {len(maps)} slices, slice {index} is asked for", path, "give maps of every slice")
        maps = maps[index]
    if list(maps.shape) != wanted:
        raise InputError(
            f"maps of shape {tuple(maps.shape)}, the data need ({axes}) = {tuple(wanted)}",
            path,
            "make them on the grid of the data after oversampling was removed, for all channels of the raw file",
        )
    if maps.ndim == 3:
        return maps
    return maps.permute(3, 0, 1, 2) if "decouple" in k.header.steps else maps.transpose(0, 1)


def _shape(k: KSpace) -> tuple[int, int]:
    """``(y x)`` of a plane, before a 3-D scan is turned."""
    x, y, _ = k.header.encoded_matrix
    return (k.data.shape[-2], k.data.shape[-1]) if k.trajectory is None else (y, x)


def _read_array(path: Path) -> np.ndarray:
    import h5py

    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with h5py.File(path, "r") as f:
                array = f["maps"][()]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"unreadable coil maps ({error})", path, "give .npy, or HDF5 with a dataset 'maps'") from error
    if array.ndim not in (3, 4) or not np.issubdtype(array.dtype, np.number):
        raise InputError(f"{array.dtype} of shape {array.shape} where complex ([slice,] coil, y, x) belongs", path)
    return np.asarray(array)
