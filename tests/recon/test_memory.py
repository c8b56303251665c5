"""A scan is reconstructed repetition by repetition: its length costs time, not memory."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from benchmarks.pipeline import peak_bytes, write_repetitions
from kspace.container import Header, Image
from kspace.errors import InputError
from kspace.io.mrd.images import read_images
from recon.memory import FinishedImages
from recon.output.series import pixels
from recon.run.pipeline import RunOptions, reconstruct_file

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/self/status")


@pytest.mark.parametrize(
    ("method", "matrix"),
    [("rss", 128), pytest.param("rss", 256, marks=pytest.mark.slow), pytest.param("sense", 256, marks=pytest.mark.slow)],
)
def test_twenty_repetitions_take_little_more_memory_than_two(method: str, matrix: int, tmp_path: Path) -> None:
    peaks = {}
    for n in (2, 20):
        write_repetitions(tmp_path / f"{n}.h5", n, matrix)
        peaks[n] = peak_bytes(tmp_path / f"{n}.h5", method)
    assert peaks[20] < 1.5 * peaks[2]
    assert peaks[20] < (tmp_path / "20.h5").stat().st_size


def test_images_beyond_the_limit_lie_in_a_file_without_a_name(tmp_path: Path) -> None:
    made = [Image(torch.randn(2, 5, 7, dtype=kind), Header()) for kind in (torch.complex64, torch.float32, torch.complex64)]
    finished = FinishedImages(tmp_path / "out" / "of" / "the" / "run", most_bytes=made[0].data.nbytes)
    kept = [finished.keep(image) for image in made]
    assert [image.release is None for image in kept] == [True, False, False]
    assert not list(tmp_path.iterdir())
    for _ in range(2):  # what was given back is read again
        for image, other in zip(made, kept, strict=True):
            assert np.array_equal(pixels(image, complex_images=True), pixels(other, complex_images=True))


def test_images_that_no_longer_fit_on_the_disk_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(InputError, match="cannot keep finished images until they are written"):
        FinishedImages(tmp_path, most_bytes=0).keep(Image(torch.zeros(1, 2, 2), Header()))


def test_a_long_series_has_the_outputs_of_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_repetitions(tmp_path / "scan.h5", 3, 32)
    options = RunOptions(method="zero-filled", format="mrd,nifti", mrd_pixels="uint16")
    reconstruct_file(tmp_path / "scan.h5", tmp_path / "short", options)
    monkeypatch.setattr("recon.run.pipeline.FinishedImages", partial(FinishedImages, most_bytes=0))
    monkeypatch.setattr("kspace.io.hdf5.MOST_IN_MEMORY", 0)
    reconstruct_file(tmp_path / "scan.h5", tmp_path / "long", options)
    short, long = (json.loads((tmp_path / name / "scan.json").read_text()) for name in ("short", "long"))
    assert short["provenance"]["pixels"] == long["provenance"]["pixels"]
    volumes = [nibabel.load(tmp_path / name / "scan.nii.gz").get_fdata() for name in ("short", "long")]
    assert np.array_equal(*volumes)
    images = [read_images(tmp_path / name / "scan.mrd.h5") for name in ("short", "long")]
    assert len(images[0]) == 3
    assert all(torch.equal(a.image.data, b.image.data) for a, b in zip(*images, strict=True))
