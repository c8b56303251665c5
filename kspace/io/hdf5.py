"""Opening HDF5 files that other people wrote: read-only, and every failure one sentence."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError

# What h5py raises on damaged files, depending on where the damage is.
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)
GZIP = b"\x1f\x8b"
MOST_IN_MEMORY = 64 << 20  # bytes of a file under construction


@contextlib.contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file, read-only, the whole block under `guard`; errors as `open_unguarded`."""
    with guard(path), open_unguarded(path) as file:
        yield file


def open_unguarded(path: Path) -> h5py.File:
    """Open an HDF5 file, read-only; calls that may meet damage are put under `guard` by the caller, one by one.

    Raises
    ------
    InputError
        If the path does not exist, is a folder, is empty, may not be read, is not HDF5, or is truncated or damaged.
    """
    try:
        return h5py.File(path, "r")
    except _DAMAGE:
        _check_path(path)  # says it better, where it is not HDF5 at all
        with guard(path):
            return h5py.File(path, "r")


@contextlib.contextmanager
def guard(path: Path) -> Iterator[None]:
    """Turn what h5py raises for damaged files into an `InputError`; a mistake of ours must not stand under it."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        # HDF5 cannot tell a file that asks for too much from a machine that has too little. H5MM is its memory manager.
        if isinstance(error, MemoryError) or "llocat" in text or "H5MM_" in text:
            raise InputError(
                f"no memory to read the HDF5 file, or it is damaged ({text})",
                path,
                "use a machine with more memory; where there is plenty, copy the file again",
            ) from error
        if "truncated" in str(error):
            raise InputError("the HDF5 file is truncated", path, "copy it again") from error
        raise InputError(f"the HDF5 file is damaged, or is being written ({text})", path, "copy it again") from error


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise InputError("this is a folder, expected a file", path, "give a file in it")
    try:
        with path.open("rb") as file:
            first = file.read(len(GZIP))
    except FileNotFoundError as error:
        raise InputError("no such file", path, "check the path") from error
    except OSError as error:
        raise InputError(f"the file cannot be read ({error.strerror})", path, "check its permissions") from error
    if not first:
        raise InputError("the file is empty", path, "copy it again")
    if first == GZIP:
        raise InputError("the file is compressed with gzip", path, f"unpack it first: gunzip -k {path.name}")
    if not h5py.is_hdf5(path):
        raise InputError("not an HDF5 file", path, "give an HDF5 file (siemens_to_ismrmrd and ge_to_ismrmrd write them)")


@contextlib.contextmanager
def create_h5(path: str | os.PathLike[str], n_bytes: int = 0) -> Iterator[h5py.File]:
    """A new HDF5 file for images, which a full disk does not make crash.

    HDF5 that runs into a full disk fails again at every clean-up, and then crashes the interpreter. So the file is built in
    memory and written by Python, which fails with an `OSError`, once. One of more than `MOST_IN_MEMORY` is written in place,
    into blocks that were allocated before.

    Parameters
    ----------
    path
        File that must not exist.
    n_bytes
        Upper limit of its size, as far as it is known.
    """
    if n_bytes > MOST_IN_MEMORY and hasattr(os, "posix_fallocate"):
        with _allocated(path, n_bytes), h5py.File(str(path), "r+") as file:
            yield file
        return
    with h5py.File(str(path), "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        content = file.id.get_file_image()
    with open(path, "xb") as stream:
        stream.write(content)


@contextlib.contextmanager
def _allocated(path: str | os.PathLike[str], n_bytes: int) -> Iterator[None]:
    """An empty HDF5 file whose next `n_bytes` have their blocks on the disk; HDF5 cuts off what it did not use."""
    h5py.File(str(path), "x").close()
    try:
        with open(path, "r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, n_bytes)
        yield
    except BaseException:
        os.unlink(path)
        raise


def check_self_contained(file: h5py.File, path: Path) -> None:
    """Refuse a file whose values lie in other files: no checksum covers those, and they may be anything on this machine.

    Links within the file are fine.

    Raises
    ------
    InputError
        Naming the external links, external storage and virtual data sets with sources in other files.
    """
    found = list(_elsewhere(file, "", set()))
    if found:
        raise InputError(
            f"parts of the file are in others: {'; '.join(found[:4])}",
            path,
            "copy them into one file (h5repack, or h5py's copy)",
        )


def _elsewhere(group: h5py.Group, prefix: str, seen: set[int]) -> Iterator[str]:
    """What below a group lies in other files. (h5py's own visitor dies of a damaged name with a `SystemError`.)"""
    for name in group:
        link, full = group.get(name, getlink=True), f"{prefix}{name}"
        if isinstance(link, h5py.ExternalLink):
            yield f"'{full}' is a link to {link.filename}"
        if not isinstance(link, h5py.HardLink):
            continue
        one = group[name]
        address = h5py.h5o.get_info(one.id).addr
        if address in seen:
            continue
        seen.add(address)
        if isinstance(one, h5py.Group):
            yield from _elsewhere(one, f"{full}/", seen)
        elif isinstance(one, h5py.Dataset):
            others = [source for source, _, _ in one.external or ()]
            if one.is_virtual:
                others += [source.file_name for source in one.virtual_sources() if source.file_name != "."]
            if others:
                yield f"the values of '{full}' are stored in {', '.join(dict.fromkeys(others))}"


def find_dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """The data set `name`; `InputError` that says what the file is instead."""
    found = file.get(name)
    if isinstance(found, h5py.Dataset):
        return found
    if isinstance(file.get("dataset"), h5py.Group):
        raise InputError("this is an ISMRMRD file, expected a fastMRI-style one", path, "convert it with `recon convert`")
    names = ", ".join(sorted(file)[:8]) or "nothing"
    raise InputError(
        f"there is no data set '{name}' (found: {names}): not a fastMRI-style file", path, "give a fastMRI-style file"
    )


def read_images(path: str | os.PathLike[str], names: Sequence[str]) -> tuple[str, NDArray[np.float32]]:
    """Read a volume of images: the first of the data sets `names` that the file has.

    Parameters
    ----------
    path
        A fastMRI-style volume (``reconstruction_rss``, ``reconstruction_esc``) or a submission (``reconstruction``).
    names
        Data sets to look for, in this order.

    Returns
    -------
    tuple
        The name found, and float32 ``(slice y x)``: the readout is last, as everywhere here, not first as in the file.

    Raises
    ------
    InputError
        If the file cannot be read, has none of them, or it holds something other than finite real images.
    """
    path = Path(path)
    with open_h5(path) as file:
        name = next((name for name in names if name in file), names[0])
        dataset = find_dataset(file, name, path)
        if dataset.ndim != 3 or 0 in dataset.shape or dataset.dtype.kind not in "fiu":
            raise InputError(
                f"{name} is {dataset.dtype} {dataset.shape}, expected real (slice, height, width)", path, "make it again"
            )
        images = np.ascontiguousarray(np.asarray(dataset[()], dtype=np.float32).swapaxes(-1, -2))
    if not np.isfinite(images).all():
        raise InputError(f"{name} holds NaN or infinite values", path, "make it again")
    return name, images


def read_attributes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The attributes of a file as plain values; `InputError` where it cannot be read."""
    with open_h5(Path(path)) as file:
        return plain_attributes(file)


def plain_attributes(file: h5py.File) -> dict[str, Any]:
    """The attributes of an open file as numbers and text instead of NumPy scalars and bytes."""
    return {key: _plain(value) for key, value in file.attrs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and value.size == 1 else value
