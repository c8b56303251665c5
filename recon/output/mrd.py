"""MRD out: the images of a run with ISMRMRD headers and attributes, for a file or for a client that streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kspace.io.mrd.images import make_image, write_images
from recon.output.series import NOTICE, RunRecord, Series, comments, is_generated, method_of, pixels

if TYPE_CHECKING:
    from kspace.container import Image


def write_mrd(
    path: Path, series: Sequence[Series], record: RunRecord, complex_images: bool = False, xml: str | bytes | None = None
) -> None:
    """Write all images of `series` into the new MRD file `path`, group ``dataset``, ``image_<series>``.

    Parameters
    ----------
    path
        File that must not exist.
    series
        What to write; the numbers are kept.
    record
        How the images came about.
    complex_images
        complex64 where an image is complex, instead of the float32 magnitude.
    xml
        ISMRMRD header of the raw file, copied along where given.
    """
    write_images(path, mrd_images(series, record, complex_images), xml)


def mrd_images(series: Sequence[Series], record: RunRecord, complex_images: bool = False) -> Iterator[Any]:
    """Yield the `ismrmrd.Image` of every image, in order; `image_index` counts from 1 within a series."""
    for one in series:
        for number, image in enumerate(one.images, start=1):
            values = pixels(image, complex_images)
            yield make_image(image, values, one.number, number, image_meta(one, image, record))


def image_meta(series: Series, image: Image, record: RunRecord) -> dict[str, str | list[str]]:
    """Attributes that clients and converters look for; the pixels are not rescaled, so the slope is 1."""
    low, high = series.window
    comment = comments(series, record)
    history = [*image.header.steps, method_of(series.role, record)]
    if is_generated(series.role, image, record):
        history.append("trained generator")
    return {
        "DataRole": "Image",
        "ImageProcessingHistory": history,
        "ImageType": "\\".join(series.image_type),
        # Converters disagree about the second name, so both stand there.
        "SeriesDescription": series.description,
        "SeriesDescriptionAdditional": f"{method_of(series.role, record)} {NOTICE}",
        "SequenceDescriptionAdditional": f"{method_of(series.role, record)} {NOTICE}",
        "ImageComment": comment,
        "ImageComments": comment,
        "WindowCenter": f"{(low + high) / 2:.9g}",
        "WindowWidth": f"{high - low:.9g}",
        "RescaleSlope": "1",
        "RescaleIntercept": "0",
        "Keep_image_geometry": "1",
        "SoftwareVersions": [f"{name} {value}" for name, value in record.versions.items()],
    }
