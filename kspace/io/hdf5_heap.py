"""Validation of HDF5 global heaps, which hold variable-length data, before HDF5 reads them.

The HDF5 library loops forever on a heap object of size zero, as left by an interrupted copy, and cannot be stopped within the
process. Samples of ISMRMRD files and most XML headers are stored in such heaps.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import h5py
import numpy as np

from kspace.errors import InputError

# HDF5 descriptor of a variable-length list in a data set: its length, and heap address and index of its values.
LIST = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
_PAGE = 4096  # minimum size of a heap
_COLLECTION = struct.Struct("<4sB3xQ")  # signature, version, size of the collection (this header included)
_OBJECT = struct.Struct("<HHIQ")  # index, reference count, reserved, size; the object follows, padded to 8 bytes


def check_list(dataset: h5py.Dataset, path: Path) -> None:
    """Check the heap of a data set with a single variable-length text or list; other data sets are ignored.

    Raises
    ------
    InputError
        As `check_heaps`.
    """
    text = h5py.check_string_dtype(dataset.dtype)
    is_list = text.length is None if text is not None else dataset.id.get_type().get_class() == h5py.h5t.VLEN
    if dataset.size != 1 or not is_list:
        return
    stored = _stored(dataset, path)
    if len(stored) == LIST.itemsize:
        check_heaps(dataset.file, path, np.frombuffer(stored, LIST))


def _stored(dataset: h5py.Dataset, path: Path) -> bytes:
    """Raw bytes of the only element of a data set; empty if it is compressed or stored in the object header."""
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.CHUNKED and plist.get_nfilters() == 0:
        chunk: bytes = dataset.id.read_direct_chunk((0,) * dataset.ndim)[1]
        return chunk[: LIST.itemsize]
    offset = dataset.id.get_offset()
    if offset is None:
        return b""
    with path.open("rb") as file:
        return os.pread(file.fileno(), LIST.itemsize, offset)


def check_heaps(file: h5py.File, path: Path, lists: np.ndarray) -> None:
    """Check the heaps referenced by `lists`, descriptors of dtype `LIST` ``(n,)``.

    Raises
    ------
    InputError
        If one is not a heap, or its objects are not contiguous within it.
    """
    if file.id.get_create_plist().get_sizes() != (8, 8):
        return
    addresses = np.unique(lists["address"][lists["length"] > 0]).tolist()
    size = path.stat().st_size
    with path.open("rb") as stream:
        for address in addresses:
            start = file.userblock_size + address
            if not _is_whole(stream.fileno(), start, size):
                raise InputError(
                    f"the HDF5 file is damaged (expected a valid heap of samples or text at byte {start})",
                    path,
                    "copy it again from the scanner",
                )


def _is_whole(file: int, start: int, file_size: int) -> bool:
    """Whether a valid heap begins at `start`, with all objects inside it (the remainder may be shorter than a header).

    Reads object headers only, because a heap of one readout is large. (A memory map would count as used memory.)
    """
    begin = os.pread(file, _PAGE, start) if start < file_size else b""
    if len(begin) < _COLLECTION.size:
        return False
    signature, version, size = _COLLECTION.unpack_from(begin)
    if signature != b"GCOL" or version != 1 or start + size > file_size:
        return False
    place = _COLLECTION.size
    while place + _OBJECT.size <= size:
        near = place + _OBJECT.size <= len(begin)
        head = begin[place : place + _OBJECT.size] if near else os.pread(file, _OBJECT.size, start + place)
        index, _, _, length = _OBJECT.unpack(head)
        step = _OBJECT.size + (length + 7) // 8 * 8 if index else length  # the size of free space includes its header
        if step < _OBJECT.size or place + step > size:
            return False
        place += step
    return True
