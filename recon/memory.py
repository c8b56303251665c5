"""What becomes of memory that is free again, and of images that would fill it."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from kspace.container import Image
from kspace.errors import InputError

MOST_BYTES = 64 << 20  # of finished images in memory
SEGMENT_BYTES = 64 << 20  # of the file of the others, mapped together
ALIGNMENT = 64


def release() -> None:
    """Hand freed memory back to the system, where the C library can (glibc).

    What is kept of every image lies scattered over the heap and holds all of it in place: memory would grow with the number of
    images, though only one is worked on at a time.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


class FinishedImages:
    """Finished images until all of them are written: the first ones in memory, the others in a file without a name.

    The file vanishes with the last image that lies in it, or with the process.

    Parameters
    ----------
    folder
        Place of the file, the nearest existing parent counts; None: all images stay in memory.
    most_bytes
        Bytes of images in memory.
    """

    def __init__(self, folder: Path | None, most_bytes: int = MOST_BYTES) -> None:
        self._folder = None if folder is None else next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
        self._left = most_bytes
        self._file: IO[bytes] | None = None
        self._segment: mmap.mmap | None = None
        self._start = self._end = self._used = 0

    def keep(self, image: Image) -> Image:
        """The same image; its pixels ``(z y x)`` lie in memory or in the file.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        values = image.data.detach().resolve_conj().resolve_neg().cpu().contiguous().numpy()
        self._left -= values.nbytes
        if self._folder is None or self._left >= 0:
            return image
        import torch

        try:
            segment, offset = self._write(values)
        except OSError as error:
            what = f"cannot keep finished images until they are written ({error.strerror})"
            raise InputError(
                what, self._folder, "free space there, choose another -o, or take a part with --repetitions"
            ) from error
        data = np.frombuffer(segment, values.dtype, values.size, offset).reshape(values.shape)
        # Read pages count as memory of the process until they are given back.
        give_back = partial(segment.madvise, mmap.MADV_DONTNEED) if hasattr(segment, "madvise") else None
        return replace(image, data=torch.from_numpy(data), release=give_back)

    def _write(self, values: np.ndarray) -> tuple[mmap.mmap, int]:
        """The segment of the file that now holds `values`, and the offset there."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - lives as long as its images
            weakref.finalize(self, self._file.close)  # the mappings hold the file
        if self._segment is None or self._used + values.nbytes > len(self._segment):
            size = max(SEGMENT_BYTES, -(-values.nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY)
            self._start, self._end, self._used = self._end, self._end + size, 0
            self._file.truncate(self._end)
            # A private mapping, which PyTorch takes for writable; nothing is written to it.
            self._segment = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY, offset=self._start)
        segment, offset = self._segment, self._used
        self._file.seek(self._start + offset)
        self._file.write(values.data)
        self._file.flush()
        self._used += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
        return segment, offset
