"""MRD (ISMRMRD) images: made for a file or a stream, written in bulk, read back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import ismrmrd
import numpy as np
import torch
from ismrmrd.hdf5 import image_header_dtype
from numpy.typing import NDArray

from kspace.container import Geometry, Header, Image, ImageIndex, Vector
from kspace.errors import InputError
from kspace.io.hdf5 import create_h5
from kspace.io.mrd.image_file import GROUP, MrdImageFile

DTYPES = (np.dtype(np.uint16), np.dtype(np.int16), np.dtype(np.float32), np.dtype(np.complex64))

# Image flags share the numbers of acquisition flags where both exist (first and last in average ... set, user 1 to 8). Others
# must not be copied: number 1 is "first in encoding step 1" on a readout and "navigator" on an image.
SHARED_FLAGS = sum(1 << (number - 1) for number in (*range(5, 17), *range(57, 65)))

Meta = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image as read from an MRD file.

    Attributes
    ----------
    image
        Real or complex ``(z y x)`` with position, directions, field of view, index and the counters in ``header.central``.
    meta
        The attributes of the image, text or lists of text.
    series, number
        ``image_series_index`` and ``image_index``: DICOM's SeriesNumber and InstanceNumber.
    image_type
        ISMRMRD's: 1 magnitude, 2 phase, 3 real, 4 imaginary, 5 complex.
    """

    image: Image
    meta: dict[str, Any]
    series: int
    number: int
    image_type: int


def make_image(image: Image, pixels: NDArray[Any], series: int, number: int, meta: Meta) -> ismrmrd.Image:
    """An MRD image, as it goes into a file or over a stream.

    Position, directions, counters, time stamps and user fields are those of the central readout of the image.

    Parameters
    ----------
    image
        Gives header and geometry.
    pixels
        What to store, uint16, int16, float32 or complex64 ``(z y x)``: `image`'s data or its magnitude, scaled or not.
    series, number
        ``image_series_index`` and ``image_index`` (DICOM's SeriesNumber and InstanceNumber), from 1.
    meta
        Attributes; `ImageRowDir` and `ImageColumnDir` are added from the geometry.

    Raises
    ------
    ValueError
        If `pixels` has another shape or dtype.
    """
    if pixels.shape != tuple(image.data.shape) or pixels.dtype not in DTYPES:
        raise ValueError(f"pixels {pixels.dtype} {pixels.shape} do not fit the image {tuple(image.data.shape)}")
    # `transpose` has had two defaults; ours is (channel z y x), x the readout.
    made = ismrmrd.Image.from_array(np.ascontiguousarray(pixels)[None], transpose=False, **_fields(image))
    made.image_type = _image_type(pixels)
    made.image_series_index, made.image_index = series, number
    geometry = image.header.geometry
    attributes: dict[str, Any] = {
        "ImageRowDir": [f"{value:.18f}" for value in geometry.read_dir],
        "ImageColumnDir": [f"{value:.18f}" for value in geometry.phase_dir],
    }
    attributes |= {key: value if isinstance(value, str) else list(value) for key, value in meta.items()}
    made.meta = ismrmrd.Meta(attributes)
    return made


def write_images(
    path: str | os.PathLike[str], images: Iterable[ismrmrd.Image], xml: str | bytes | None = None, n_bytes: int = 0
) -> None:
    """Write MRD images into a new file: group ``dataset``, one ``image_<series>`` per series, in the order given.

    Parameters
    ----------
    path
        File that must not exist.
    images
        From `make_image`; a generator keeps only one in memory. Images of one series share matrix and number type.
    xml
        ISMRMRD header of the scan, stored as ``dataset/xml``, where tools that convert images look for it.
    n_bytes
        Of all images, an upper limit; many are written to the disk one by one.

    Raises
    ------
    InputError
        If images of one series differ in matrix or number type.
    OSError
        If the file cannot be written.
    """
    with create_h5(path, n_bytes) as file:
        stored = MrdImageFile(file, path, xml)
        for image in images:
            head = np.frombuffer(image.getHead(), image_header_dtype)[0]
            stored.append(head, image.attribute_string, image.data)


def read_images(path: str | os.PathLike[str], group: str = GROUP) -> list[StoredImage]:
    """Read every image series of an MRD file, series by number, images as stored.

    Raises
    ------
    InputError
        If the file is not HDF5, holds no images, or holds images of several channels.
    """
    try:
        with h5py.File(path, "r") as file:
            root = file.get(group)
            names = [] if not isinstance(root, h5py.Group) else [n for n in root if n.startswith("image_")]
            found = []
            for name in sorted(names, key=lambda n: (len(n), n)):
                found += _read_series(root[name], path)
    except OSError as error:
        raise InputError(f"cannot read images ({error})", path, "give an MRD file") from error
    if not found:
        raise InputError(f"no images in group '{group}'", path, "give an MRD file with images")
    return found


def _fields(image: Image) -> dict[str, Any]:
    """Fields of the image header, from the header of the central readout."""
    header, central, geometry = image.header, image.header.central, image.header.geometry
    return {
        "flags": int(central.get("flags", 0)) & SHARED_FLAGS,
        "measurement_uid": int(central.get("measurement_uid", 0)),
        "field_of_view": _mm(geometry.fov_m),
        "position": _mm(geometry.position_m),
        "read_dir": _floats(geometry.read_dir),
        "phase_dir": _floats(geometry.phase_dir),
        "slice_dir": _floats(geometry.slice_dir),
        "patient_table_position": _mm(geometry.table_position_m),
        "average": int(central.get("average", 0)),
        **{name: int(value) for name, value in vars(header.index).items()},
        "acquisition_time_stamp": int(central.get("acquisition_time_stamp", 0)),
        "physiology_time_stamp": tuple(int(v) for v in central.get("physiology_time_stamp", (0, 0, 0))),
        "user_int": tuple(int(v) for v in central.get("user_int", (0,) * 8)),
        "user_float": _floats(central.get("user_float", (0.0,) * 8)),
    }


def _image_type(pixels: NDArray[Any]) -> int:
    if np.iscomplexobj(pixels):
        return int(ismrmrd.IMTYPE_COMPLEX)
    return int(ismrmrd.IMTYPE_REAL if pixels.size and pixels.min() < 0 else ismrmrd.IMTYPE_MAGNITUDE)


def _read_series(group: h5py.Group, path: str | os.PathLike[str]) -> list[StoredImage]:
    missing = {"header", "data", "attributes"} - set(group)
    if missing:
        raise InputError(f"{group.name} lacks {', '.join(sorted(missing))}", path, "write the file again")
    headers, data, attributes = group["header"][:], group["data"], group["attributes"][:]
    if data.ndim != 5 or data.shape[1] != 1:
        raise InputError(f"{group.name} has data of shape {data.shape}, expected (image, channel 1, z, y, x)", path)
    found = []
    for head, text, i in zip(headers, attributes, range(len(data)), strict=True):
        values = data[i, 0]
        if values.dtype.names is not None:
            values = np.ascontiguousarray(values).view(np.complex64)
        found.append(
            StoredImage(
                image=Image(torch.from_numpy(np.array(_native(values))), _header(head, str(path)), role="main"),
                meta=dict(ismrmrd.Meta.deserialize(text)),
                series=int(head["image_series_index"]),
                number=int(head["image_index"]),
                image_type=int(head["image_type"]),
            )
        )
    return found


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.int32) if values.dtype == np.uint16 else values


def _header(head: NDArray[Any], source: str) -> Header:
    matrix = tuple(int(n) for n in head["matrix_size"])
    geometry = Geometry(
        position_m=_metres(head["position"]),
        read_dir=_vector(head["read_dir"]),
        phase_dir=_vector(head["phase_dir"]),
        slice_dir=_vector(head["slice_dir"]),
        fov_m=_metres(head["field_of_view"]),
        table_position_m=_metres(head["patient_table_position"]),
    )
    central = {name: head[name].item() for name in ("measurement_uid", "acquisition_time_stamp", "average", "flags")}
    central |= {name: tuple(head[name].tolist()) for name in ("physiology_time_stamp", "user_int", "user_float", "position")}
    return Header(
        source=source,
        index=ImageIndex(**{name: int(head[name]) for name in ("contrast", "set", "phase", "repetition", "slice")}),
        recon_matrix=(matrix[0], matrix[1], matrix[2]),
        recon_fov_m=geometry.fov_m,
        geometry=geometry,
        central=central,
    )


def _mm(metres: Sequence[float]) -> tuple[float, ...]:
    return tuple(1e3 * float(value) for value in metres)


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _vector(values: NDArray[Any]) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _metres(mm: NDArray[Any]) -> Vector:
    x, y, z = (1e-3 * float(value) for value in mm)
    return x, y, z
