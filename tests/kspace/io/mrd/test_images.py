"""MRD images: every field comes back, from our reader and from the ISMRMRD library's."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest
import torch

from kspace.container import Geometry, Header, Image, ImageIndex
from kspace.errors import InputError
from kspace.io.mrd.images import make_image, read_images, write_images

CENTRAL = {
    "flags": (1 << 0) | (1 << 6) | (1 << 7) | (1 << 21) | (1 << 60),
    "measurement_uid": 4711,
    "acquisition_time_stamp": 4294967295,
    "physiology_time_stamp": (1, 22, 333),
    "user_int": tuple(range(-3, 5)),
    "user_float": tuple(0.5 * i for i in range(8)),
    "average": 2,
    "position": (15.0, -40.0, 60.0),
}
S = np.sqrt(0.5)
GEOMETRY = Geometry((0.015, -0.04, 0.06), (S, S, 0), (0, 0, -1), (-S, S, 0), (0.24, 0.2, 0.03), (0, 0, -1.25))
INDEX = ImageIndex(contrast=1, set=2, phase=3, repetition=4, slice=5)
META = {"SeriesDescription": "grün & <schnell>", "ImageProcessingHistory": ["whiten", "sense"], "DataRole": "Image"}


def image(dtype: torch.dtype = torch.complex64, shape: tuple[int, int, int] = (3, 4, 5)) -> Image:
    generator = torch.Generator().manual_seed(1)
    return Image(torch.randn(shape, dtype=dtype, generator=generator), Header(index=INDEX, geometry=GEOMETRY, central=CENTRAL))


def write(path: Path, *images: Any, **options: Any) -> Path:
    write_images(path, images, **options)
    return path


def test_many_images_go_into_blocks_that_were_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kspace.io.hdf5.MOST_IN_MEMORY", 1)
    made = [make_image(image(), image().data.numpy(), 1, number, META) for number in range(1, 5)]
    found = read_images(write(tmp_path / "a.mrd.h5", *made, n_bytes=10**6))
    assert [one.number for one in found] == [1, 2, 3, 4]
    assert all(torch.equal(one.image.data, image().data) for one in found)
    assert (tmp_path / "a.mrd.h5").stat().st_size < 10**5

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "b.mrd.h5", *made, n_bytes=10**6)
    assert not (tmp_path / "b.mrd.h5").exists()


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.int16, np.uint16])
def test_pixels_and_geometry_come_back(tmp_path: Path, dtype: type) -> None:
    source = image()
    pixels = source.data.numpy() if dtype == np.complex64 else (100 * source.data.abs()).numpy().astype(dtype)
    path = write(tmp_path / "a.mrd.h5", make_image(source, pixels, 3, 7, META))
    (found,) = read_images(path)
    np.testing.assert_array_equal(found.image.data.numpy(), pixels)
    assert found.image.data.is_complex() == (dtype == np.complex64)
    assert (found.series, found.number, found.image_type) == (3, 7, 5 if dtype == np.complex64 else 1)
    header = found.image.header
    assert header.index == INDEX
    assert header.recon_matrix == (5, 4, 3)
    for name in ("position_m", "read_dir", "phase_dir", "slice_dir", "fov_m", "table_position_m"):
        assert getattr(header.geometry, name) == pytest.approx(getattr(GEOMETRY, name), abs=1e-7), name
    assert header.recon_fov_m == header.geometry.fov_m


def test_the_ismrmrd_library_reads_every_field(tmp_path: Path) -> None:
    pixels = image().data.numpy()
    path = write(tmp_path / "a.mrd.h5", make_image(image(), pixels, 1, 9, META), xml="<ismrmrdHeader/>")
    with ismrmrd.Dataset(str(path), mode="r") as file:
        assert file.read_xml_header() == b"<ismrmrdHeader/>"
        found = file.read_image("image_1", 0)
    np.testing.assert_array_equal(found.data[0], pixels)
    assert found.matrix_size == (5, 4, 3)
    for name in ("measurement_uid", "acquisition_time_stamp", "average"):
        assert getattr(found, name) == CENTRAL[name], name
    for name in ("physiology_time_stamp", "user_int", "user_float", "position"):
        assert tuple(getattr(found, name)) == pytest.approx(CENTRAL[name]), name
    for name in ("contrast", "set", "phase", "repetition", "slice"):
        assert getattr(found, name) == getattr(INDEX, name), name
    assert tuple(found.field_of_view) == pytest.approx((240, 200, 30))
    assert tuple(found.read_dir) == pytest.approx(GEOMETRY.read_dir)
    assert tuple(found.patient_table_position) == pytest.approx((0, 0, -1250))
    assert (found.image_index, found.image_series_index, found.version) == (9, 1, 1)
    assert found.meta["SeriesDescription"] == META["SeriesDescription"]
    assert found.meta["ImageProcessingHistory"] == META["ImageProcessingHistory"]
    assert [float(v) for v in found.meta["ImageColumnDir"]] == [0, 0, -1]
    assert [float(v) for v in found.meta["ImageRowDir"]] == pytest.approx(GEOMETRY.read_dir)


def test_only_flags_that_mean_the_same_on_images_are_copied() -> None:
    made = make_image(image(), image().data.numpy(), 1, 1, {})
    # First and last in slice (7, 8) and user 5 (61); not "first in encoding step 1", which on an image says "navigator".
    assert made.flags == (1 << 6) | (1 << 7) | (1 << 60)
    assert not made.is_flag_set(ismrmrd.IMAGE_IS_NAVIGATION_DATA)


def test_attributes_are_ascii_for_the_library_reader_that_wants_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mrd.h5", make_image(image(), image().data.abs().numpy(), 1, 1, META))
    with h5py.File(path, "r") as file:
        text = file["dataset/image_1/attributes"][0]
        assert text.decode("ascii").startswith("<?xml")
        assert file["dataset/image_1/header"]["attribute_string_len"][0] == len(text)
        assert file["dataset/image_1/data"].shape == (1, 1, 3, 4, 5)
    with ismrmrd.File(str(path), "r") as file:
        (found,) = file["dataset/image_1"].images
    assert found.meta["SeriesDescription"] == META["SeriesDescription"]


def test_series_are_kept_apart_and_in_order(tmp_path: Path) -> None:
    small = Image(torch.ones(1, 2, 2), Header())
    made = [
        make_image(small, np.full((1, 2, 2), n, np.float32), series, n, {}) for series, n in ((2, 1), (10, 1), (2, 2), (1, 1))
    ]
    found = read_images(write(tmp_path / "a.mrd.h5", *made))
    assert [(f.series, f.number) for f in found] == [(1, 1), (2, 1), (2, 2), (10, 1)]
    assert [float(f.image.data.mean()) for f in found] == [1, 1, 2, 1]


def test_negative_values_are_real_not_magnitude() -> None:
    assert make_image(image(), -image().data.abs().numpy(), 1, 1, {}).image_type == ismrmrd.IMTYPE_REAL


def test_misfits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pixels float64 .* do not fit"):
        make_image(image(), image().data.abs().numpy().astype(float), 1, 1, {})
    with pytest.raises(ValueError, match=r"\(1, 4, 5\) do not fit"):
        make_image(image(), np.zeros((1, 4, 5), np.float32), 1, 1, {})
    mixed = [make_image(image(), p, 1, 1, {}) for p in (image().data.numpy(), image().data.abs().numpy())]
    with pytest.raises(InputError, match=r"share matrix and number type; got .*real.* and float32"):
        write_images(tmp_path / "a.mrd.h5", mixed)


def test_files_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(InputError, match="cannot read images"):
        read_images(tmp_path / "text.h5")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_group("dataset")
    with pytest.raises(InputError, match="no images in group 'dataset'"):
        read_images(tmp_path / "raw.h5")
    with h5py.File(tmp_path / "raw.h5", "a") as file:
        file.create_dataset("dataset/image_1/data", data=np.zeros(3))
    with pytest.raises(InputError, match="lacks attributes, header"):
        read_images(tmp_path / "raw.h5")
