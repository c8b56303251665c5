"""Blobs come back at the same patient coordinates from MRD, NIfTI and DICOM, read by the libraries of others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import ismrmrd
import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from kspace.container import ImageIndex
from recon.output.export import export
from recon.output.geometry import slice_stacks
from tests.support.exports import BLOBS, make_image, make_record, make_scan, rotation

Grid = tuple[NDArray[np.float64], NDArray[np.float64]]  # values (z y x), patient coordinates (z y x 3) in mm LPS
CENTRE = (15.0, -40.0, 60.0)
ORIENTATIONS = {"axial": rotation(20, -15, 30), "coronal": rotation(75, 20, -10), "sagittal": rotation(15, 80, 100)}


def read_mrd(path: Path) -> Grid:
    values, places = [], []
    with ismrmrd.Dataset(str(path), mode="r") as file:
        for number in range(file.number_of_images("image_1")):
            image = file.read_image("image_1", number)
            data = image.data[0]
            axes = np.array([image.slice_dir, image.phase_dir, image.read_dir])
            steps = np.array(image.field_of_view)[::-1] / data.shape
            index = np.moveaxis(np.indices(data.shape), 0, -1) - np.array(data.shape) // 2
            values.append(data)
            places.append((index * steps) @ axes + np.array(image.position))
    return np.concatenate(values), np.concatenate(places)


def read_nifti(path: Path) -> Grid:
    file = nibabel.load(path)
    index = np.moveaxis(np.indices(file.shape[:3]), 0, -1)
    ras = nibabel.affines.apply_affine(file.affine, index)
    return file.get_fdata()[..., 0].T, (ras * (-1, -1, 1)).transpose(2, 1, 0, 3)


def read_dicom(folder: Path) -> Grid:
    values, places = [], []
    for ds in sorted((pydicom.dcmread(p) for p in folder.iterdir()), key=lambda d: d.InstanceNumber):
        row_step, column_step = ds.PixelSpacing  # between rows, then between columns: PS3.3 C.7.6.2.1.1
        along_row, along_column = np.reshape(np.array(ds.ImageOrientationPatient, float), (2, 3))
        rows, columns = np.indices((ds.Rows, ds.Columns))
        corner = np.array(ds.ImagePositionPatient, float)
        places.append(
            corner + columns[..., None] * float(column_step) * along_row + rows[..., None] * float(row_step) * along_column
        )
        values.append(ds.pixel_array * float(ds.RescaleSlope))
    return np.stack(values), np.stack(places)


def find_blobs(grid: Grid) -> NDArray[np.float64]:
    """Centres of mass of the blobs ``(blob 3)``, brightest first."""
    values, places = grid
    labels, count = ndimage.label(values > 0.15 * values.max())
    assert count == len(BLOBS)
    found = []
    for label in range(1, count + 1):
        inside = labels == label
        found.append((values[inside].max(), (values[inside, None] * places[inside]).sum(0) / values[inside].sum()))
    return np.array([place for _, place in sorted(found, key=lambda pair: -pair[0])])


@pytest.mark.parametrize("kind", ["3d", "ascending", "descending"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_blobs_come_back_at_their_patient_coordinates(tmp_path: Path, orientation: str, kind: str) -> None:
    export(make_scan(ORIENTATIONS[orientation], kind, CENTRE), make_record(), tmp_path, "scan", ("mrd", "dicom", "nifti"))
    truth = np.array([BLOBS[amplitude] for amplitude in sorted(BLOBS, reverse=True)]) + CENTRE
    for grid in (
        read_mrd(tmp_path / "scan.mrd.h5"),
        read_nifti(tmp_path / "scan.nii.gz"),
        read_dicom(tmp_path / "scan_dicom"),
    ):
        # Voxels are 2 to 3 mm; the centre of mass above a threshold is exact to a tenth of one.
        np.testing.assert_allclose(find_blobs(grid), truth, atol=0.25)


@pytest.mark.parametrize("kind", ["3d", "descending"])
def test_every_voxel_has_the_same_place_and_value_in_all_three(tmp_path: Path, kind: str) -> None:
    export(make_scan(ORIENTATIONS["sagittal"], kind), make_record(), tmp_path, "scan", ("mrd", "dicom", "nifti"))
    mrd, nifti = read_mrd(tmp_path / "scan.mrd.h5"), read_nifti(tmp_path / "scan.nii.gz")
    dicom = read_dicom(tmp_path / "scan_dicom")
    for other in (nifti, dicom):
        np.testing.assert_allclose(other[1], mrd[1], atol=1e-3)
        np.testing.assert_allclose(other[0], mrd[0], atol=1e-4 * mrd[0].max())


def test_dicom_converted_by_others_is_our_nifti(tmp_path: Path) -> None:
    if shutil.which("dcm2niix") is None:
        pytest.skip("needs the program dcm2niix")
    axes = ORIENTATIONS["axial"]
    study = {"systemVendor": "SIEMENS", "patientPosition": "HFS", "TR": (500.0,)}
    images = [
        make_image(
            position_mm=-7.0 * s * axes[:, 2], axes=axes, index=ImageIndex(slice=s, repetition=r), gain=1 + r, study=study
        )
        for s in range(6)
        for r in range(3)
    ]
    export(images, make_record(), tmp_path, "scan", ("dicom", "nifti"))
    command = ["dcm2niix", "-f", "theirs", "-o", str(tmp_path), str(tmp_path / "scan_dicom")]
    subprocess.run(command, check=True, capture_output=True)
    ours, theirs = (nibabel.as_closest_canonical(nibabel.load(tmp_path / n)) for n in ("scan.nii.gz", "theirs.nii"))
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-3)
    np.testing.assert_allclose(theirs.get_fdata(), ours.get_fdata(), atol=1e-3)


def test_slices_of_three_directions_get_a_nifti_file_each(tmp_path: Path) -> None:
    axes = [np.eye(3), rotation(90, 0, 0), rotation(0, 90, 0)]
    images = [make_image(axes=a, index=ImageIndex(slice=s), position_mm=(s, 0, 0)) for s, a in enumerate(axes)]
    told: list[str] = []
    export(images, make_record(), tmp_path, "scan", ("nifti", "png"), tell=told.append)
    for number, image in enumerate(images, start=1):
        file = nibabel.load(tmp_path / f"scan_stack{number}.nii.gz")
        np.testing.assert_allclose(file.get_fdata()[:, :, 0, 0].T, image.data[0], atol=1e-6)
        centre = file.affine @ (24, 20, 0, 1)
        np.testing.assert_allclose(centre[:3], (-(number - 1), 0, 0), atol=1e-4)
    assert "different grids" in (tmp_path / "scan.json").read_text()
    assert any("the slices lie on 3 different grids" in line for line in told)


def test_slices_that_were_left_out_are_not_closed_up() -> None:
    heights = {0: 0.0, 3: 9.0, 4: 12.0, 5: 15.0, 9: 27.0}
    images = [make_image(position_mm=(0, 0, h), index=ImageIndex(slice=s)) for s, h in heights.items()]
    stacks = slice_stacks(images)
    assert [stack.slices for stack in stacks] == [(0,), (3, 4, 5), (9,)]
    assert [stack.spacing_m for stack in stacks] == pytest.approx([0.005, 0.003, 0.005])


def test_slices_shifted_in_their_plane_or_on_one_place_are_not_stacked() -> None:
    places = [(0, 0, 0), (0, 0, 4), (9, 0, 8), (0, 0, 4)]
    images = [make_image(position_mm=place, index=ImageIndex(slice=s)) for s, place in enumerate(places)]
    assert [stack.slices for stack in slice_stacks(images)] == [(0, 1), (2,), (3,)]


def test_gaps_between_slices_are_spacing_not_thickness(tmp_path: Path) -> None:
    images = [make_image(position_mm=(0, 0, 7.5 * s), index=ImageIndex(slice=s)) for s in range(3)]
    export(images, make_record(), tmp_path, "scan", ("dicom", "nifti"))
    ds = pydicom.dcmread(tmp_path / "scan_dicom" / "001_00001.dcm")
    assert (ds.SliceThickness, ds.SpacingBetweenSlices) == (5.0, 7.5)
    np.testing.assert_allclose(nibabel.load(tmp_path / "scan.nii.gz").header["pixdim"][1:4], (2.5, 3.0, 7.5))


def test_nominal_directions_are_no_scanner_coordinates(tmp_path: Path) -> None:
    export([make_image(nominal=True)], make_record(), tmp_path, "nominal", ("nifti", "dicom"))
    export([make_image()], make_record(), tmp_path, "true", ("nifti",))
    codes = {n: nibabel.load(tmp_path / f"{n}.nii.gz").header for n in ("nominal", "true")}
    assert (codes["nominal"]["qform_code"], codes["nominal"]["sform_code"]) == (0, 0)
    assert (codes["true"]["qform_code"], codes["true"]["sform_code"]) == (1, 1)
    assert "nominal" in pydicom.dcmread(tmp_path / "nominal_dicom" / "001_00001.dcm").ImageComments
