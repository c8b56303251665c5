"""Groups of images in MRD files: ``image_<series>`` with ``header``, ``data`` and ``attributes``, appended one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ismrmrd.hdf5 import image_header_dtype
from numpy.typing import NDArray

from kspace.errors import InputError
from kspace.io.atomic import atomic_write

GROUP = "dataset"
# As the ISMRMRD library stores complex; h5py's own names differ.
COMPLEX = np.dtype([("real", "<f4"), ("imag", "<f4")])
STORED = {np.dtype(np.complex64): COMPLEX, np.dtype(np.complex128): np.dtype([("real", "<f8"), ("imag", "<f8")])}
ROWS = 32  # of headers and attributes in a chunk


class MrdImageFile:
    """Appends images to the group ``dataset`` of an open MRD file.

    Parameters
    ----------
    file
        Open for writing, without that group.
    path
        Its name, for errors.
    xml
        ISMRMRD header of the scan, stored as ``dataset/xml``, where tools that convert images look for it.
    split
        Store images whose matrix or number type differs from their series' in groups of their own, ``image_<series>_2``, ...,
        instead of refusing them.
    """

    def __init__(
        self, file: h5py.File, path: str | os.PathLike[str], xml: str | bytes | None = None, split: bool = False
    ) -> None:
        self._root, self._path, self._split = file.create_group(GROUP), path, split
        if xml is not None:
            stored = self._root.create_dataset("xml", shape=(1,), dtype=h5py.special_dtype(vlen=bytes))
            stored[0] = xml if isinstance(xml, bytes) else xml.encode()

    def append(self, head: NDArray[np.void] | np.void, attributes: str, pixels: NDArray[Any]) -> None:
        """Append an image.

        Parameters
        ----------
        head
            Scalar of ``ismrmrd.hdf5.image_header_dtype``; the length of the attributes is set.
        attributes
            XML document, which may be empty.
        pixels
            ``(channel z y x)``.

        Raises
        ------
        InputError
            If the matrix or the number type is not that of the series.
        """
        values = np.ascontiguousarray(pixels)
        stored = STORED.get(values.dtype, values.dtype)
        group = self._group(int(head["image_series_index"]), values.shape, stored)
        # `ismrmrd.File` decodes attributes as ASCII; XML can say every other character in ASCII.
        text = attributes.encode("ascii", "xmlcharrefreplace").decode("ascii")
        row = np.zeros(1, image_header_dtype)
        row[0] = head
        row["attribute_string_len"] = len(text)
        for name, value in (("header", row[0]), ("data", values.view(stored)), ("attributes", text)):
            dataset = group[name]
            dataset.resize(len(dataset) + 1, axis=0)
            dataset[-1] = value

    def _group(self, series: int, shape: tuple[int, ...], stored: np.dtype[Any]) -> h5py.Group:
        """The group of a series that takes images of this `shape`; a new one where there is none."""
        n = 1
        while (name := f"image_{series}" + (f"_{n}" if n > 1 else "")) in self._root:
            data = self._root[name]["data"]
            if data.shape[1:] == shape and data.dtype == stored:
                return self._root[name]
            if not self._split:
                raise InputError(
                    f"images of one series must share matrix and number type; got {data.dtype} {data.shape[1:]} "
                    f"and {stored} {shape}",
                    self._path,
                )
            n += 1
        group = self._root.create_group(name)
        group.create_dataset("header", (0,), image_header_dtype, maxshape=(None,), chunks=(ROWS,))
        group.create_dataset("data", (0, *shape), stored, maxshape=(None, *shape), chunks=(1, *shape) if all(shape) else None)
        group.create_dataset("attributes", (0,), h5py.special_dtype(vlen=str), maxshape=(None,), chunks=(ROWS,))
        return group


@contextmanager
def new_image_file(path: str | os.PathLike[str], xml: str | bytes | None = None) -> Iterator[MrdImageFile]:
    """A new MRD file for images of any origin, which takes its name when the block ends without an exception.

    Images go to the disk one by one. Within a series they may differ: see `MrdImageFile`, `split`.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    with atomic_write(Path(path), "cannot write the images") as beside, h5py.File(beside, "w") as file:
        yield MrdImageFile(file, path, xml, split=True)
