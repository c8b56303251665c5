"""Images as a submission to the fastMRI challenges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kspace.container import Image
from kspace.errors import InputError
from kspace.io.fastmri import write_reconstruction
from recon.output.series import RunRecord


def write_submission(path: Path, images: Sequence[Image], record: RunRecord) -> Path:
    """Write the magnitudes of one volume as data set ``reconstruction``, float32 ``(slice, readout, phase)``.

    Zbontar et al., fastMRI: an open dataset and benchmarks for accelerated MRI. https://doi.org/10.48550/arXiv.1811.08839

    Parameters
    ----------
    path
        File to write.
    images
        Images ``(z y x)`` of one size, the slices of one volume in any order.
    record
        How they came about; the file gets its method.

    Raises
    ------
    InputError
        If the images belong to several volumes: the layout has no contrasts and no repetitions.
    """
    volumes = {replace(image.header.index, slice=0) for image in images}
    if len(volumes) > 1:
        names = " and ".join(sorted(index.name for index in volumes)[:2])
        raise InputError(
            f"a fastMRI submission holds one volume, these are {len(volumes)} (such as {names})",
            "--format fastmri",
            "choose one with --repetitions, or another format",
        )
    ordered = sorted(images, key=lambda image: image.header.index.slice)
    return write_reconstruction(path, [image.data for image in ordered], attributes={"method": record.method})
