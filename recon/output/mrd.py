"""MRD export: images with ISMRMRD headers and attributes, to a file or a streaming client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kspace.io.mrd.images import make_image, write_images
from recon.output.series import NOTICE, RunRecord, Series, comments, is_generated, method_of, origin, pixels, replacement

if TYPE_CHECKING:
    from kspace.container import Image


MrdPixels = Literal["float32", "uint16"]
PER_IMAGE = 8192  # bytes of header and attributes, generously
BITS = 12  # default of scanners, if the raw header has no BitsStored


@dataclass(frozen=True)
class IntegerScale:
    """Rescaling of a series to integers: ``value = stored * slope + intercept`` with `stored` from 0 to `most`."""

    slope: float
    intercept: float
    most: int

    def store(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        """Round real `values` of any shape to stored integers, uint16."""
        stored = np.rint((values.astype(np.float64) - self.intercept) / self.slope)
        return stored.clip(0, self.most).astype(np.uint16)


def integer_scale(series: Series) -> IntegerScale:
    """Common scale of all images of a series, which keeps their relative intensities and, without negative values, zero.

    The maximum maps to the largest integer of ``BitsStored`` bits (a ``userParameterLong`` of the raw header; 12 if missing,
    as on scanners).
    """
    low = min(0.0, *(float(pixels(image).min()) for image in series.images))
    high = max(float(pixels(image).max()) for image in series.images)
    bits = (series.images[0].header.study.get("userParameters") or {}).get("BitsStored", BITS)
    bits = int(bits) if str(bits).isdecimal() and 1 <= int(bits) <= 16 else BITS
    most = 2**bits - 1
    return IntegerScale((high - low) / most if high > low else 1.0, low, most)


def write_mrd(
    path: Path,
    series: Sequence[Series],
    record: RunRecord,
    complex_images: bool = False,
    xml: str | bytes | None = None,
    stored_as: MrdPixels = "float32",
) -> None:
    """Write all images of `series` to the new MRD file `path`, group ``dataset``, ``image_<series>``.

    Parameters
    ----------
    path
        New file.
    series
        Series to write, with their numbers.
    record
        Run record.
    complex_images
        Write complex64 instead of float32 magnitudes of complex images.
    xml
        ISMRMRD header of the raw file to copy, if any.
    stored_as
        ``float32``, or ``uint16`` for scanners that need it: magnitudes scaled by `integer_scale`.
    """
    n_bytes = sum(8 * image.data.numel() + PER_IMAGE for one in series for image in one.images)
    write_images(path, mrd_images(series, record, complex_images, stored_as), xml, n_bytes)


def mrd_images(
    series: Sequence[Series], record: RunRecord, complex_images: bool = False, stored_as: MrdPixels = "float32"
) -> Iterator[Any]:
    """Yield the `ismrmrd.Image` of each image in order; `image_index` counts from 1 within a series."""
    for one in series:
        scale = integer_scale(one) if stored_as == "uint16" else None
        for number, image in enumerate(one.images, start=1):
            values = pixels(image, complex_images) if scale is None else scale.store(pixels(image))
            yield make_image(image, values, one.number, number, image_meta(one, image, record, scale))


def image_meta(
    series: Series, image: Image, record: RunRecord, scale: IntegerScale | None = None
) -> dict[str, str | list[str]]:
    """MRD meta attributes that clients and converters expect. With a `scale`, slope and intercept are added and the window is
    given in stored integers, as scanners read it."""
    low, high = series.window
    window = f"{(low + high) / 2:.9g}", f"{high - low:.9g}"
    if scale is not None:
        first, last = (int(v) for v in scale.store(np.array([low, high])))
        window = str((first + last) // 2), str(max(last - first, 1))
    note = replacement(image)
    comment = comments(series, record) if note is None else f"{NOTICE}; {note}"
    history = [*image.header.steps, *([method_of(series.role, record)] if note is None else [])]
    if is_generated(series.role, image, record):
        history.append("trained generator")
    return {
        "DataRole": "Image",
        "ImageProcessingHistory": history,
        "ImageType": "\\".join(series.image_type),
        # Converters disagree about the second name, so both are written.
        "SeriesDescription": series.description,
        "SeriesDescriptionAdditional": f"{method_of(series.role, record)} {NOTICE}",
        "SequenceDescriptionAdditional": f"{method_of(series.role, record)} {NOTICE}",
        "ImageComment": comment,
        "ImageComments": comment,
        "WindowCenter": window[0],
        "WindowWidth": window[1],
        "RescaleSlope": "1" if scale is None else repr(scale.slope),
        "RescaleIntercept": "0" if scale is None else repr(scale.intercept),
        "Keep_image_geometry": "1",
        "SoftwareVersions": [f"{name} {value}" for name, value in record.versions.items()],
        **({"Provenance": [f"{name} {value}" for name, value in known.items()]} if (known := origin(record)) else {}),
    }
