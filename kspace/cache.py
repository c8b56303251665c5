"""Coil maps kept on disk: they are made once for each set of calibration samples, whichever mask or run asks for them.

An entry is named by a hash of all that the maps depend on: the samples in the centre of k-space and which of them were
acquired, the matrix, the method with its options, and the program that estimates. Nothing is ever invalid by age; what has
changed has another name. Entries appear whole (written beside, then renamed), so that any number of processes may share a
folder, and each carries a checksum, so that a damaged one is made again.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import secrets
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kspace import coils
from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import resize

MAGIC = b"recon coil maps 1\n"
_HEAD_BYTES = 128
_LEFT_OVER_S = 86400


def cached_maps(
    k: KSpace,
    folder: Path | None,
    method: coils.Method = "espirit",
    calibration_width: int = 24,
) -> Tensor:
    """Coil maps of one plane from its acquired centre, read from `folder` where they were made before.

    Only the central `calibration_width` samples of each axis are looked at, so masks that share their centre share their maps.

    Parameters
    ----------
    k
        ``(coil ky kx)``.
    folder
        Where entries are kept; it is made where it is missing. None: no cache.
    method, calibration_width
        As for `kspace.coils.estimate_maps`.

    Returns
    -------
    Tensor
        complex64 ``(coil y x)``; the same numbers whether they were read or made.

    Warns
    -----
    RuntimeWarning
        If an entry cannot be kept (a full disk, no permission). The maps are returned all the same, and made again next time.
    """
    block = _central_block(k, method, calibration_width)
    if folder is None or k.n_coils == 1:  # the map of one coil is 1
        return _estimate(k, block, method, calibration_width)
    key = _key(k, block, method, calibration_width)
    path = folder / key[:2] / f"{key}.maps"
    maps = _read(path, key, tuple(k.data.shape))
    if maps is None:
        maps = _estimate(k, block, method, calibration_width)
        _keep(path, key, maps)
    return maps


def prepare_folder(folder: Path) -> None:
    """Make the folder of a cache, check that it can be written, and remove what interrupted runs left half-written.

    Raises
    ------
    InputError
        If it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(8)}.part"
        probe.touch()
        probe.unlink()
        for left in folder.rglob(".*.part"):
            if time.time() - left.stat().st_mtime > _LEFT_OVER_S:
                left.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"the cache of coil maps cannot be written ({error.strerror or error})", folder) from error


def _central_block(k: KSpace, method: coils.Method, width: int) -> tuple[Tensor, Tensor]:
    """What the maps are made of: the central samples ``(coil m n)``, zero where not acquired, and which were, ``(1 m n)``."""
    size = min(width, k.data.shape[-2]), min(width, k.data.shape[-1])
    if k.calibration is not None:
        samples = resize(k.calibration, size)
        return samples, (samples != 0).any(0, keepdim=True)
    acquired = resize(k.mask.expand(1, *k.data.shape[-2:]), size)
    if method == "espirit":  # looks at a block without gaps only: lines beyond it shall not matter to the key either
        region = coils.calibration_region(acquired)
        acquired = resize(resize(acquired, region), size) if 0 not in region else acquired
    return torch.where(acquired, resize(k.data, size), 0), acquired


def _estimate(k: KSpace, block: tuple[Tensor, Tensor], method: coils.Method, width: int) -> Tensor:
    """Maps from the central block alone, so that they depend on nothing that the key does not know."""
    matrix = k.data.shape[-2:]
    samples, acquired = (resize(x, matrix) for x in block)
    if k.calibration is not None:
        centre = KSpace(torch.zeros_like(samples), acquired, k.header, calibration=samples)
    else:
        centre = KSpace(samples, acquired, k.header)
    return coils.estimate_maps(centre, method, calibration_width=width)


def _key(k: KSpace, block: tuple[Tensor, Tensor], method: str, width: int) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([list(k.data.shape), k.calibration is not None, method, width, _program()]).encode())
    for part in block:
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def _program() -> str:
    """A hash of the code that estimates: maps of another version of it are other maps."""
    return hashlib.sha256(inspect.getsource(coils).encode()).hexdigest()[:16]


def _read(path: Path, key: str, shape: tuple[int, ...]) -> Tensor | None:
    """The maps of an entry; None where there is none, or where it is not what its name says."""
    size = int(np.prod(shape)) * np.dtype(np.complex64).itemsize
    try:
        if path.stat().st_size != _HEAD_BYTES + size:
            return None
        content = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    samples = content[_HEAD_BYTES:]
    if content[:_HEAD_BYTES].tobytes() != _head(key, samples):
        return None
    return torch.from_numpy(samples.view(np.complex64).reshape(shape))


def _keep(path: Path, key: str, maps: Tensor) -> None:
    samples = maps.cpu().contiguous().numpy().reshape(-1).view(np.uint8)
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(_head(key, samples))
            file.write(samples.data)
        os.replace(beside, path)
    except OSError as error:
        reason = f"coil maps cannot be kept in {path.parent.parent} ({error.strerror or error}): they are made again each time"
        warnings.warn(reason, RuntimeWarning, stacklevel=3)
    finally:
        beside.unlink(missing_ok=True)


def _head(key: str, samples: NDArray[np.uint8]) -> bytes:
    # Padded, so that the samples behind it lie at an address that complex numbers may have.
    return (MAGIC + key.encode() + b"%08x\n" % zlib.crc32(samples.data)).ljust(_HEAD_BYTES, b"\0")
