"""Global heaps of HDF5 files, where lists of variable length are kept: looked through before HDF5 reads them.

HDF5's own reader goes round for ever where the size of a heap object is zero, as after a copy that broke off and left zeros;
nothing inside the process can end it. Samples of ISMRMRD files and most XML headers lie in such heaps.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import h5py
import numpy as np

from kspace.errors import InputError

# How HDF5 stores a list of variable length in a data set: its length, and where its values are.
LIST = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
_PAGE = 4096  # the least size of a heap
_COLLECTION = struct.Struct("<4sB3xQ")  # signature, version, size of the collection (this header included)
_OBJECT = struct.Struct("<HHIQ")  # index, reference count, reserved, size; the object follows, filled up to 8 bytes


def check_list(dataset: h5py.Dataset, path: Path) -> None:
    """Check the heap of a data set that holds one text or list of variable length; others are passed over.

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
    """The one element of a data set as it lies in the file; empty where it is compressed or kept in the object's header."""
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
    """Walk the heaps that `lists`, descriptors of dtype `LIST`, point to.

    Raises
    ------
    InputError
        If one is not a heap, or its objects do not lie one behind the other within it.
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
                    f"the HDF5 file is damaged (no list of samples or text at byte {start}, or a broken one)",
                    path,
                    "copy it again from the scanner",
                )


def _is_whole(file: int, start: int, file_size: int) -> bool:
    """Whether a heap begins at `start` whose objects end within it (a rest may be shorter than an object's header).

    Only the objects' headers are read: a heap of one readout is large. (A map of the file would count as memory in use.)
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
        step = _OBJECT.size + (length + 7) // 8 * 8 if index else length  # free space counts its own header
        if step < _OBJECT.size or place + step > size:
            return False
        place += step
    return True
