"""On-disk cache of coil sensitivity maps, keyed by calibration data and settings.

The key is a hash of all that the maps depend on: central k-space samples and their mask, matrix size, method, options, and the
code of the estimation. Entries never expire; changed inputs have other keys. Writes are atomic, so that any number of processes
can share a folder, and checksums detect damaged entries, which are recomputed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import math
import os
import secrets
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kspace import coils, espirit
from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import resize

MAGIC = b"recon coil maps 2\n"
_HEAD_BYTES = 128
_LEFT_OVER_S = 86400

_verified: set[tuple[str, int, int, bytes]] = set()

Layout = tuple[tuple[tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True)
class Entry:
    """Cache entry: path, expected key, and shapes and dtypes of its arrays."""

    path: Path
    key: str
    layout: Layout

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(shape) * dtype.itemsize for shape, dtype in self.layout]

    def open(self) -> int | None:
        """Open the entry for `read`; None if it does not exist."""
        try:
            return os.open(self.path, os.O_RDONLY)
        except OSError:
            return None

    def read(self, descriptor: int) -> tuple[Tensor, ...] | None:
        """Read the arrays of a file descriptor and close it; None for a damaged entry."""
        try:
            with open(descriptor, "rb", buffering=0) as file:
                status = os.fstat(descriptor)
                if status.st_size != _HEAD_BYTES + sum(self._sizes):
                    return None
                file.seek(0)
                head, content = file.read(_HEAD_BYTES), torch.empty(sum(self._sizes), dtype=torch.uint8)
                n_read = file.readinto(content.numpy().data)
        except OSError:
            return None
        if n_read != len(content) or not head.startswith(MAGIC + self.key.encode()):
            return None
        state = (self.key, status.st_ino, status.st_mtime_ns, head)
        if state not in _verified:  # once in each process for each state of the file
            if head != _head(self.key, zlib.crc32(content.numpy().data)):
                return None
            _verified.add(state)
        parts = content.split(self._sizes)
        return tuple(part.view(dtype).reshape(shape) for part, (shape, dtype) in zip(parts, self.layout, strict=True))


def cached_maps(
    k: KSpace,
    folder: Path | None,
    method: str = "espirit",
    calibration_width: int = 24,
) -> Tensor:
    """Coil maps of one plane from its calibration samples, cached in `folder`.

    Only the central `calibration_width` samples of each axis are used, so masks with the same centre share their maps.

    Parameters
    ----------
    k
        k-space ``(coil ky kx)``.
    folder
        Folder of the cache, created if missing; None for no cache.
    method, calibration_width
        As for `kspace.coils.estimate_maps`.

    Returns
    -------
    Tensor
        complex64 ``(coil y x)``, identical whether cached or computed.

    Warns
    -----
    RuntimeWarning
        If an entry cannot be written (full disk, no permission). The maps are returned regardless.
    """
    block = _central_block(k, method, calibration_width)
    if folder is None or k.n_coils == 1:  # the map of one coil is 1
        return _estimate(k, block, method, calibration_width)
    key = _key(k, block, method, calibration_width)
    layout = ((tuple(k.data.shape), torch.complex64),)
    return _get(folder, key, layout, lambda: (_estimate(k, block, method, calibration_width),))[0][0]


def cached_references(
    k: KSpace,
    full: Tensor,
    combine: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    folder: Path,
    method: str = "espirit",
    calibration_width: int = 24,
) -> tuple[Tensor, Tensor, Tensor, Entry]:
    """Coil maps as from `cached_maps`, cached with the references computed from them and the fully sampled data.

    Parameters
    ----------
    k
        The acquired samples ``(coil ky kx)``, which the maps are made of.
    full
        All samples, complex64 ``(coil ky kx)``.
    combine
        ``(data, maps) -> (target, truth)``, complex64 and float32 ``(y x)``: a function of these arguments alone.
    folder, method, calibration_width
        As for `cached_maps`.

    Returns
    -------
    tuple
        Maps, target and truth, and the entry that holds them, unless it could not be kept.
    """
    block = _central_block(k, method, calibration_width)
    # The centre is in the key by its hash. What remains needs a checksum only, and a fast one, for every example takes it:
    # two states of one file must be told apart, and any that differ in a sample do.
    words = full.contiguous().view(torch.float32).view(torch.int32).numpy().reshape(-1).view(np.uint64)
    checksum = f"{int(np.add.reduce(words)):016x}{int(np.bitwise_xor.reduce(words)):016x}"
    text = f"{_key(k, block, method, calibration_width)} {checksum} {combine.__module__}.{combine.__qualname__}"
    key = hashlib.sha256(text.encode()).hexdigest()
    plane = tuple(k.data.shape[-2:])
    layout = ((tuple(k.data.shape), torch.complex64), (plane, torch.complex64), (plane, torch.float32))

    def make() -> tuple[Tensor, ...]:
        maps = _estimate(k, block, method, calibration_width)
        return maps, *combine(full, maps)

    (maps, target, truth), entry = _get(folder, key, layout, make)
    return maps, target, truth, entry


def prepare_folder(folder: Path) -> None:
    """Create the cache folder, check write permission, and remove partial files of interrupted runs.

    Raises
    ------
    InputError
        If it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(8)}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"the cache of coil maps cannot be written ({error.strerror or error})", folder) from error
    for left in folder.rglob(".*.part"):
        with contextlib.suppress(OSError):  # another process may have finished it, or removed it first
            if time.time() - left.stat().st_mtime > _LEFT_OVER_S:
                left.unlink()


def _central_block(k: KSpace, method: str, width: int) -> tuple[Tensor, Tensor]:
    """Central calibration samples ``(coil m n)``, zero where not acquired, and their mask ``(1 m n)``."""
    size = min(width, k.data.shape[-2]), min(width, k.data.shape[-1])
    if k.calibration is not None:
        samples = resize(k.calibration, size)
        return samples, (samples != 0).any(0, keepdim=True)
    acquired = resize(k.mask.expand(1, *k.data.shape[-2:]), size).contiguous()
    if method == "espirit":  # looks at a block without gaps only: lines beyond it shall not matter to the key either
        region = _calibration_region(acquired.numpy().tobytes(), size)
        acquired = resize(resize(acquired, region), size) if 0 not in region else acquired
    return torch.where(acquired, resize(k.data, size), 0), acquired


@functools.lru_cache(maxsize=1024)
def _calibration_region(acquired: bytes, size: tuple[int, int]) -> tuple[int, int]:
    return coils.calibration_region(torch.frombuffer(bytearray(acquired), dtype=torch.bool).reshape(size))


def _estimate(k: KSpace, block: tuple[Tensor, Tensor], method: str, width: int) -> Tensor:
    """Maps from the central block alone, so that they depend only on what the key contains."""
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
    """Hash of the estimation code, so that another version has other keys."""
    return hashlib.sha256("".join(map(inspect.getsource, (coils, espirit))).encode()).hexdigest()[:16]


def _get(folder: Path, key: str, layout: Layout, make: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Entry]:
    """Arrays of an entry, read or else computed and stored, and the entry."""
    entry = Entry(folder / key[:2] / f"{key}.maps", key, layout)
    descriptor = entry.open()
    arrays = None if descriptor is None else entry.read(descriptor)
    if arrays is None:
        arrays = make()
        _keep(entry.path, key, arrays)
    return arrays, entry


def _keep(path: Path, key: str, arrays: tuple[Tensor, ...]) -> None:
    parts = [array.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data for array in arrays]
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(_head(key, functools.reduce(lambda crc, part: zlib.crc32(part, crc), parts, 0)))
            for part in parts:
                file.write(part)
        os.replace(beside, path)
    except OSError as error:
        reason = f"coil maps cannot be kept in {path.parent.parent} ({error.strerror or error}): they are made again each time"
        warnings.warn(reason, RuntimeWarning, stacklevel=4)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _head(key: str, checksum: int) -> bytes:
    # Padded, so that the samples behind it lie at an address that complex numbers may have.
    return (MAGIC + key.encode() + b"%08x\n" % checksum).ljust(_HEAD_BYTES, b"\0")
