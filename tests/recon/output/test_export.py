"""What is written is complete, refused where it must be, and never half there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import torch

import recon.output.dicom
import recon.output.png
from kspace.container import Image, ImageIndex
from kspace.errors import InputError
from kspace.io.mrd.images import read_images
from recon.output.export import check_outputs, export
from recon.output.series import window
from recon.run.options import RunOptions
from tests.support.exports import make_image, make_record

MAIN = ["scan.json", "scan.mrd.h5", "scan.nii.gz", "scan.png", "scan_dicom"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_set_is_written_and_returned_with_the_record_last(tmp_path: Path) -> None:
    written = export([make_image()], make_record(), tmp_path / "a" / "out", "scan")
    assert names(tmp_path / "a" / "out") == MAIN
    assert sorted(path.name for path in written) == MAIN
    assert written[-1].name == "scan.json"
    assert all(path.exists() for path in written)


def test_formats_choose_and_the_record_is_always_there(tmp_path: Path) -> None:
    export([make_image()], make_record(), tmp_path, "scan", ("nifti",))
    assert names(tmp_path) == ["scan.json", "scan.nii.gz"]
    export([make_image()], make_record(), tmp_path, "only", ())
    assert "only.json" in names(tmp_path)


def test_other_roles_have_their_own_files(tmp_path: Path) -> None:
    images = [make_image(), make_image(role="sense"), make_image(role="coil maps")]
    export(images, make_record(method="refinegan", generated=True), tmp_path, "scan")
    extra = {f"scan_{role}{s}" for role in ("sense", "coil-maps") for s in (".mrd.h5", ".nii.gz", ".png", "_dicom")}
    assert set(names(tmp_path)) == set(MAIN) | extra
    roles = [entry["role"] for entry in json.loads((tmp_path / "scan.json").read_text())["series"]]
    assert roles == ["main", "coil maps", "sense"]


def test_the_record_says_all_there_is_to_say(tmp_path: Path) -> None:
    record = make_record(
        parameters={"lamda": np.float32(0.5), "path": Path("maps.npy"), "list": (1, 2), "nan": float("nan")},
        mask={"digest": "d1", "acceleration": 3.0},
        seconds={"read": 0.25},
        warnings=["no noise scan"],
        extra={"coils": np.arange(3)},
    )
    images = [make_image(index=ImageIndex(contrast=c, repetition=r)) for c in range(2) for r in range(2)]
    export(images, record, tmp_path, "scan")
    found = json.loads((tmp_path / "scan.json").read_text())
    for key in ("method", "generated", "description", "versions", "source", "source_sha256", "mask", "warnings"):
        assert found[key] == getattr(record, key), key
    assert found["parameters"] == {"lamda": 0.5, "path": "maps.npy", "list": [1, 2], "nan": "nan"}
    assert found["extra"] == {"coils": [0, 1, 2]}
    assert found["notice"] == "NOT FOR DIAGNOSTIC USE"
    assert found["seconds"]["read"] == 0.25
    assert found["seconds"]["export"] > 0
    assert found["volumes"]["main"][1] == {"contrast": 0, "set": 0, "phase": 0, "repetition": 1}
    assert [entry["n_images"] for entry in found["series"]] == [2, 2]
    assert found["files"] == [name for name in MAIN if name != "scan.json"]


def test_volumes_are_ordered_repetition_phase_set_contrast(tmp_path: Path) -> None:
    keys = [(c, s, p, r) for c in range(2) for s in range(2) for p in range(2) for r in range(3)]
    images = [make_image((1, 4, 4), gain=10 + n, index=ImageIndex(*key)) for n, key in enumerate(keys)]
    export(images[::-1], make_record(), tmp_path, "scan", ("nifti",))
    values = nibabel.load(tmp_path / "scan.nii.gz").get_fdata()
    assert values.shape == (4, 4, 1, 24)
    centre = values[2, 2, 0]
    np.testing.assert_allclose(centre / centre[0], (10 + np.arange(24)) / 10, rtol=1e-5)
    volumes = json.loads((tmp_path / "scan.json").read_text())["volumes"]["main"]
    assert [tuple(v[k] for k in ("contrast", "set", "phase", "repetition")) for v in volumes] == keys


def test_nifti_states_repetition_time_units_and_marks(tmp_path: Path) -> None:
    export([make_image(study={"TR": (2500.0,)})], make_record(), tmp_path, "scan", ("nifti",))
    header = nibabel.load(tmp_path / "scan.nii.gz").header
    assert header["pixdim"][4] == pytest.approx(2.5)
    assert header.get_xyzt_units() == ("mm", "sec")
    assert header.get_dim_info() == (0, 1, 2)
    assert b"sense; NOT FOR DIAGNOSTIC USE" in header["descrip"].tobytes()


def test_complex_values_are_kept_where_asked_for(tmp_path: Path) -> None:
    image = make_image(gain=1 - 2j)
    export([image], make_record(), tmp_path, "c", ("nifti",), complex_images=True)
    export([image], make_record(), tmp_path, "m", ("nifti",))
    truth = image.data.numpy()[0].T
    np.testing.assert_allclose(np.asarray(nibabel.load(tmp_path / "c.nii.gz").dataobj)[:, :, 0, 0], truth, rtol=1e-6)
    magnitude = nibabel.load(tmp_path / "m.nii.gz")
    assert magnitude.get_data_dtype() == np.float32
    np.testing.assert_allclose(magnitude.get_fdata()[:, :, 0, 0], np.abs(truth), rtol=1e-6)


def test_a_missing_slice_is_zero_and_named(tmp_path: Path) -> None:
    images = [
        make_image(position_mm=(0, 0, 5 * s), index=ImageIndex(slice=s, repetition=r), gain=1)
        for r in range(2)
        for s in range(3)
        if (s, r) != (1, 1)
    ]
    export(images, make_record(), tmp_path, "scan")
    values = nibabel.load(tmp_path / "scan.nii.gz").get_fdata()
    assert (values[:, :, 1, 1] == 0).all()
    assert values[:, :, 2, 1].max() > 0
    warnings = json.loads((tmp_path / "scan.json").read_text())["warnings"]
    assert warnings == ["slice 1 of contrast 0, set 0, phase 0, repetition 1 is missing: NIfTI holds zeros there"]


def test_slices_that_moved_between_volumes_are_named(tmp_path: Path) -> None:
    images = [make_image(position_mm=(2 * r, 0, 0), index=ImageIndex(repetition=r)) for r in range(2)]
    export(images, make_record(), tmp_path, "scan", ("nifti",))
    assert "moved between volumes" in json.loads((tmp_path / "scan.json").read_text())["warnings"][0]


def test_unknown_slice_thickness_is_said(tmp_path: Path) -> None:
    export([make_image(fov_mm=(120, 120, 0))], make_record(), tmp_path, "scan")
    assert nibabel.load(tmp_path / "scan.nii.gz").header["pixdim"][3] == 1
    assert "thickness is unknown" in json.loads((tmp_path / "scan.json").read_text())["warnings"][0]


# --- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (lambda: [], "no images to write"),
        (lambda: [make_image(), make_image()], "two main images have the index"),
        (lambda: [make_image(), make_image((1, 8, 8), index=ImageIndex(slice=1))], r"differ: real \(1, 40, 48\) and .*8, 8"),
        (lambda: [make_image(), make_image(gain=1j, index=ImageIndex(slice=1))], "differ: real .* and complex"),
        (lambda: [make_image(fov_mm=(0, 120, 5))], "field of view .* is not positive"),
        (lambda: [_with_geometry(make_image(), fov_m=(0.1, 0.1, float("nan")))], "field of view .* is not positive"),
        (lambda: [make_image((4, 8, 8), fov_mm=(120, 120, 0))], "field of view .* is not positive"),
        (lambda: [make_image(axes=np.zeros((3, 3)))], "not perpendicular unit vectors"),
        (lambda: [make_image(axes=np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1]]))], "not perpendicular unit vectors"),
        (lambda: [_with_geometry(make_image(), position_m=(0, float("inf"), 0))], "position .* is not finite"),
        (lambda: [_with_value(float("nan"))], r"\(slice 0\).*not finite.*; the samples may be damaged"),
        (lambda: [_with_value(complex(0, float("inf")))], "not finite"),
    ],
)
def test_images_that_cannot_be_written_are_refused(tmp_path: Path, images: Callable[[], list[Image]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(images(), make_record(), tmp_path, "scan")
    assert names(tmp_path) == []


def test_existing_outputs_are_refused_without_force(tmp_path: Path) -> None:
    export([make_image()], make_record(), tmp_path, "scan", ("nifti", "png"))
    before = (tmp_path / "scan.nii.gz").read_bytes()
    with pytest.raises(InputError, match=r"scan\.json exists already; give --force"):
        check_outputs(tmp_path, "scan", ("mrd",))
    with pytest.raises(InputError, match="exists already"):
        export([make_image(gain=3)], make_record(), tmp_path, "scan", ("nifti",))
    assert (tmp_path / "scan.nii.gz").read_bytes() == before
    assert names(tmp_path) == ["scan.json", "scan.nii.gz", "scan.png"]
    check_outputs(tmp_path, "other")


def test_force_replaces_what_was_there_numbered_stacks_included(tmp_path: Path) -> None:
    images = [make_image(index=ImageIndex(slice=s), position_mm=(9 * s, 0, 0)) for s in range(2)]
    export(images, make_record(), tmp_path, "scan", ("nifti", "dicom"))
    (tmp_path / "scan_stacked.nii.gz").write_text("another's")
    assert "scan_stack2.nii.gz" in names(tmp_path)
    export([make_image()], make_record(), tmp_path, "scan", ("nifti", "dicom"), force=True)
    assert names(tmp_path) == ["scan.json", "scan.nii.gz", "scan_dicom", "scan_stacked.nii.gz"]
    assert names(tmp_path / "scan_dicom") == ["001_00001.dcm"]


def test_outputs_that_can_never_be_written_are_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown format 'tiff'"):
        check_outputs(tmp_path, "scan", ("tiff",))
    for stem in ("", ".hidden", "a/b", "new\nline"):
        with pytest.raises(InputError, match="cannot be the name of an output"):
            check_outputs(tmp_path, stem)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is not a directory"):
            check_outputs(folder, "scan")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="no permission to write"):
        check_outputs(tmp_path / "new" / "deep", "scan")
    assert names(tmp_path) == ["file"]


# --- whole or not at all --------------------------------------------------------------------------------------------------


def _fail(error: BaseException) -> Callable[..., None]:
    def stop(*_: Any, **__: Any) -> None:
        raise error

    return stop


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    monkeypatch.setattr(recon.output.png, "write_montage", _fail(error))
    expected, message = (InputError, "No space left") if isinstance(error, OSError) else (type(error), None)
    with pytest.raises(expected, match=message):
        export([make_image()], make_record(), tmp_path / "new" / "out", "scan")
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
@pytest.mark.parametrize("moves", range(10))
def test_a_failure_while_moving_into_place_restores_the_old_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int, error: BaseException
) -> None:
    export([make_image()], make_record(description="old"), tmp_path, "scan")
    before = {name: (tmp_path / name).read_bytes() for name in MAIN if name != "scan_dicom"}
    rename, count = os.rename, 0

    def stop(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == moves + 1:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", stop)
    with pytest.raises((KeyboardInterrupt, InputError)):
        export([make_image(gain=2)], make_record(description="new"), tmp_path, "scan", force=True)
    monkeypatch.undo()
    assert names(tmp_path) == MAIN
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_failure_of_the_dicom_writer_keeps_the_old_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export([make_image()], make_record(description="old"), tmp_path, "scan")
    monkeypatch.setattr(recon.output.dicom, "_set_pixels", _fail(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        export([make_image()], make_record(), tmp_path, "scan", force=True)
    assert names(tmp_path) == MAIN
    assert json.loads((tmp_path / "scan.json").read_text())["description"] == "old"


def test_the_window_spans_the_series_and_survives_emptiness() -> None:
    bright, dark = make_image(gain=2), make_image(gain=1)
    values = np.concatenate([bright.data.numpy().ravel(), dark.data.numpy().ravel()])
    assert window([bright, dark]) == (0.0, pytest.approx(np.percentile(values, 99.5)))
    assert window([make_image(gain=0)]) == (0.0, 1.0)
    assert window([make_image(gain=-1)])[0] < 0
    spark = make_image(gain=0)
    spark.data[0, 3, 4] = 5.0
    assert window([spark]) == (0.0, 5.0)


def _with_geometry(image: Image, **changes: Any) -> Image:
    return replace(image, header=replace(image.header, geometry=replace(image.header.geometry, **changes)))


def _with_value(value: complex) -> Image:
    data = torch.zeros(1, 4, 4, dtype=torch.complex64 if isinstance(value, complex) else torch.float32)
    data[0, 1, 2] = value
    return Image(data, make_image((1, 4, 4)).header)


# ------------------------------------------------------------------------------------------------ MRD images for scanners


def slices(*gains: float, **header: Any) -> list[Image]:
    return [
        make_image(index=ImageIndex(slice=i), position_mm=(0, 0, 6.0 * i), gain=gain, **header) for i, gain in enumerate(gains)
    ]


@pytest.mark.parametrize(("bits", "most"), [(None, 4095), ("16", 65535), ("a dozen", 4095)])
def test_unsigned_integers_come_back_by_slope_and_intercept(tmp_path: Path, bits: str | None, most: int) -> None:
    images = slices(1e-6, 4e-6, study={} if bits is None else {"userParameters": {"BitsStored": bits}})
    export(images, make_record(), tmp_path, "scan", ("mrd",), mrd_pixels="uint16")
    with h5py.File(tmp_path / "scan.mrd.h5", "r") as file:
        assert file["dataset/image_1/data"].dtype == np.uint16
        assert file["dataset/image_1/data"][()].max() == most
    stored = read_images(tmp_path / "scan.mrd.h5")
    scales = {(s.meta["RescaleSlope"], s.meta["RescaleIntercept"]) for s in stored}
    assert len(scales) == 1, "one scale for the series: intensities of slices can be compared"
    slope, intercept = (float(text) for text in scales.pop())
    assert intercept == 0
    for found, image in zip(stored, images, strict=True):
        back = found.image.data.double() * slope + intercept
        assert (back - image.data.abs()).abs().max() <= 0.5001 * slope
    low, high = window(images)
    centre, width = (stored[0].meta[f"Window{name}"] for name in ("Center", "Width"))
    assert centre.isdecimal()
    assert width.isdecimal()
    assert (int(centre) * slope, int(width) * slope) == pytest.approx(((low + high) / 2, high - low), abs=slope)


def test_negative_values_of_a_map_come_back_from_unsigned_integers(tmp_path: Path) -> None:
    image = make_image()
    signed = replace(image, data=image.data.real - 0.25)
    export([signed, make_image(role="nothing", gain=0.0)], make_record(), tmp_path, "scan", ("mrd",), mrd_pixels="uint16")
    (found,) = read_images(tmp_path / "scan.mrd.h5")
    back = found.image.data.double() * float(found.meta["RescaleSlope"]) + float(found.meta["RescaleIntercept"])
    assert (back - signed.data).abs().max() <= 0.5001 * float(found.meta["RescaleSlope"])
    assert read_images(tmp_path / "scan_nothing.mrd.h5")[0].image.data.abs().max() == 0


def test_unsigned_integers_of_complex_images_are_refused() -> None:
    with pytest.raises(InputError, match="--mrd-pixels uint16: integers hold no complex images"):
        RunOptions(mrd_pixels="uint16", complex=True)
    with pytest.raises(InputError, match="no MRD file is asked for"):
        RunOptions(mrd_pixels="uint16", format="png")


def test_a_submission_holds_the_magnitudes_of_one_volume(tmp_path: Path) -> None:
    slices = [make_image(index=ImageIndex(slice=s), gain=1 + s) for s in (1, 0)]
    beside = [replace(image, role="sense") for image in slices]
    export([*slices, *beside], make_record(), tmp_path, "scan", ("fastmri",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.h5", "scan.json"]
    with h5py.File(tmp_path / "scan.h5") as file:
        assert file.attrs["method"] == make_record().method
        expected = torch.cat([slices[1].data, slices[0].data]).abs().mT
        assert np.array_equal(file["reconstruction"][()], expected.numpy())
    two = [make_image(index=ImageIndex(repetition=r)) for r in range(2)]
    with pytest.raises(InputError, match=r"--format fastmri: a fastMRI submission holds one volume, these are 2"):
        export(two, make_record(), tmp_path / "b", "scan", ("mrd", "fastmri"))
    assert not (tmp_path / "b").exists()
    record = make_record(source=str(tmp_path / "scan.h5"))
    with pytest.raises(InputError, match="would overwrite its own input"):
        export(slices, record, tmp_path, "scan", ("fastmri",), force=True)
