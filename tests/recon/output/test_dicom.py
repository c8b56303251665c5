"""DICOM: valid for an independent judge, with the marks, the values and the order that readers rely on."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import FileDataset
from pydicom.uid import UID

from kspace.container import Header, ImageIndex, KSpace
from kspace.preprocess import remove_oversampling
from recon.output.dicom import find_slope, pixel_bandwidth_hz
from recon.output.export import export
from recon.output.series import make_series
from tests.support.exports import make_image, make_record, rotation

STUDY = {
    "patientName": "Doe^Jané",
    "patientID": "0815",
    "patientBirthdate": "1970-02-03",
    "patientGender": "F",
    "patientWeight_kg": 70.0,
    "studyDate": "2024-05-06",
    "studyTime": "07:08:09.25",
    "studyInstanceUID": "1.2.840.4.5",
    "frameOfReferenceUID": "1.3.12.2.1107.5.2",
    "accessionNumber": "12",
    "seriesDate": "2024-05-06",
    "patientPosition": "FFS",
    "protocolName": "t2_tse_long name with \\ and a line\nbreak, far too long for sixty-four",
    "bodyPartExamined": "Knee, left",
    "systemVendor": "SIEMENS",
    "systemModel": "Skyra",
    "systemFieldStrength_T": 2.89362,
    "H1resonanceFrequency_Hz": 123249999.0,
    "institutionName": "Klinikum",
    "sequence_type": "TurboSpinEcho",
    "TR": (4000.0,),
    "TE": (10.0, 99.9999999999),
    "TI": (120.0,),
    "flipAngle_deg": (150.0,),
}


def scan(study: dict[str, Any], axes: np.ndarray | None = None, role: str = "main") -> list:
    axes = rotation(20, -15, 30) if axes is None else axes
    return [
        make_image(
            (1, 12, 10),
            (100, 96, 4),
            -5.0 * s * axes[:, 2],
            axes,
            index=ImageIndex(contrast=c, repetition=r, slice=s),
            gain=1 + r + 10 * c,
            study=study,
            role=role,
        )
        for c in range(2)
        for s in range(3)
        for r in range(2)
    ]


def read(folder: Path) -> list[FileDataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


SAMPLED = {
    "encoded_matrix": (128, 96, 1),
    "central": {"sample_time_us": 10.0},
    "steps": ("read", "remove_oversampling"),
    "encoded_readout": 256,
    "study": {
        "limits": {"average": {"minimum": 0, "maximum": 1, "centre": 0}},
        "seriesTime": "07:08:09",
    },
}
CASES = {
    "bare": lambda: (scan({}), make_record()),
    "full header": lambda: (scan(STUDY), make_record()),
    "generated": lambda: (
        [*scan(STUDY), *scan(STUDY, role="sense"), *scan(STUDY, role="uncertainty")],
        make_record(method="refinegan", generated=True, versions={"weights sha256": "9f" * 32}),
    ),
    "3-D, negative values": lambda: ([make_image((5, 8, 9), (90, 80, 50), gain=-1, role="phase")], make_record()),
    "tiny values, no thickness": lambda: ([make_image(fov_mm=(100, 100, 0), gain=1e-9)], make_record(source_sha256="")),
    "inversion recovery": lambda: (scan(STUDY | {"sequence_type": "IR"}), make_record()),
    "sampling": lambda: ([make_image(**SAMPLED)], make_record()),
    "nothing but zeros": lambda: ([make_image(gain=0, nominal=True)], make_record(versions={}, description="")),
}


@pytest.mark.parametrize("case", CASES)
def test_dciodvfy_finds_no_errors(tmp_path: Path, case: str) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs the program dciodvfy (Debian package dicom3tools)")
    images, record = CASES[case]()
    written = export(images, record, tmp_path, "scan", ("dicom",))
    folders = [path for path in written if path.is_dir()]
    files = sorted(file for folder in folders for file in folder.iterdir())
    assert files
    for file in files:
        judged = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True)
        errors = [line for line in (judged.stdout + judged.stderr).splitlines() if "rror" in line]
        assert errors == []
        assert judged.returncode == 0
    for folder in folders:
        # The same study, frame of reference and patient throughout, no UID twice.
        judged = subprocess.run(["dcentvfy", *map(str, sorted(folder.iterdir()))], capture_output=True, text=True)
        assert "rror" not in judged.stdout + judged.stderr


def test_values_come_back_within_half_a_step(tmp_path: Path) -> None:
    images = scan({})
    export(images, make_record(), tmp_path, "scan", ("dicom",))
    found = read(tmp_path / "scan_dicom")
    by_series: dict[str, set[str]] = {}
    for ds in found:
        by_series.setdefault(ds.SeriesInstanceUID, set()).add(str(ds.RescaleSlope))
        index = ImageIndex(contrast=ds.SeriesNumber - 1, repetition=ds.AcquisitionNumber - 1)
        slices = {i.header.index.slice: i for i in images if _same_volume(i.header.index, index)}
        image = slices[2 - (ds.InstanceNumber - 1) % 3]  # the slice index grows against the slice direction
        truth, step = image.data[0].numpy().astype(float), float(ds.RescaleSlope)
        assert np.abs(ds.pixel_array * step - truth).max() <= step / 2 * (1 + 1e-9)
        assert ds.pixel_array.dtype == np.uint16
    assert [len(slopes) for slopes in by_series.values()] == [1, 1]


@pytest.mark.parametrize("greatest", [1e-30, 9.9999999999e-7, 0.3, 1.0, 32767.0, 1e12])
def test_the_slope_fits_its_text_and_no_value_overflows(greatest: float) -> None:
    values = np.array([[-greatest, 0.5 * greatest, greatest]], np.float32)
    for signed, array in ((True, values), (False, np.abs(values))):
        slope, dtype = find_slope([array, 0 * array])
        assert len(slope) <= 16
        assert dtype == (np.int16 if signed else np.uint16)
        assert 32766.5 < np.abs(array.astype(float)).max() / float(slope) <= 32767


def test_one_series_per_role_and_contrast_in_one_study(tmp_path: Path) -> None:
    images = [*scan({}), *scan({}, role="sense")]
    export(images, make_record(method="refinegan", generated=True), tmp_path, "scan", ("dicom",))
    found = read(tmp_path / "scan_dicom") + read(tmp_path / "scan_sense_dicom")
    assert len(found) == 24
    assert len({ds.SeriesInstanceUID for ds in found}) == len({ds.SeriesNumber for ds in found}) == 4
    assert len({ds.SOPInstanceUID for ds in found}) == 24
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({ds[keyword].value for ds in found}) == 1
        assert UID(found[0][keyword].value).is_valid


def test_instances_run_through_the_slices_of_volume_after_volume(tmp_path: Path) -> None:
    axes = rotation(20, -15, 30)
    export(scan({}, axes), make_record(), tmp_path, "scan", ("dicom",))
    first = [ds for ds in read(tmp_path / "scan_dicom") if ds.SeriesNumber == 1]
    assert [ds.InstanceNumber for ds in first] == [1, 2, 3, 4, 5, 6]
    assert [ds.TemporalPositionIdentifier for ds in first] == [1, 1, 1, 2, 2, 2]
    heights = [float(np.dot(np.array(ds.ImagePositionPatient, float), axes[:, 2])) for ds in first]
    np.testing.assert_allclose(np.diff(heights), [5, 5, -10, 5, 5], atol=1e-6)
    assert {float(ds.SpacingBetweenSlices) for ds in first} == {5.0}


def test_generated_images_say_so_and_classical_ones_do_not(tmp_path: Path) -> None:
    weights = "9f" * 32
    record = make_record(
        method="refinegan", generated=True, description="RefineGAN 1.2, strength 0.5", versions={"weights sha256": weights}
    )
    images = [make_image(role=role, gain=g) for role, g in (("main", 1j), ("sense", 1j), ("uncertainty", 1), ("sample", 1j))]
    export(images, record, tmp_path, "scan", ("dicom",))
    found = {role: read(tmp_path / f"scan{role}_dicom")[0] for role in ("", "_sense", "_uncertainty", "_sample")}
    assert {role: "\\".join(ds.ImageType) for role, ds in found.items()} == {
        "": "DERIVED\\PRIMARY\\OTHER",
        "_sense": "ORIGINAL\\PRIMARY\\OTHER",
        "_uncertainty": "DERIVED\\SECONDARY\\OTHER",
        "_sample": "DERIVED\\PRIMARY\\OTHER",
    }
    assert found[""].DerivationDescription == "RefineGAN 1.2, strength 0.5; NOT FOR DIAGNOSTIC USE"
    assert "DerivationDescription" not in found["_sense"]
    assert "uncertainty of the refinegan" in found["_uncertainty"].DerivationDescription
    for ds in found.values():
        assert ds.ImageComments.startswith("NOT FOR DIAGNOSTIC USE")
        assert ds.SeriesDescription.endswith("NOT FOR DIAGNOSTIC USE")
        equipment = ds.ContributingEquipmentSequence[0]
        assert weights in equipment.ContributionDescription
        assert equipment.SoftwareVersions.startswith("weights sha256 9f9f")
    assert "trained generator" in found[""].ImageComments
    assert "trained generator" not in found["_sense"].ImageComments
    assert " DL " in found[""].SeriesDescription
    assert " DL " not in found["_sense"].SeriesDescription


def test_nothing_is_invented_where_the_header_is_silent(tmp_path: Path) -> None:
    export(scan({}), make_record(), tmp_path, "scan", ("dicom",))
    ds = read(tmp_path / "scan_dicom")[0]
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber"):
        assert keyword in ds, keyword
        assert not ds[keyword].value, keyword
    for keyword in ("EchoTime", "RepetitionTime", "Manufacturer", "ReferringPhysicianName", "PatientPosition"):
        assert not ds[keyword].value, keyword
    for keyword in ("MagneticFieldStrength", "FlipAngle", "InversionTime", "PatientWeight", "ImagingFrequency"):
        assert keyword not in ds, keyword
    for keyword in ("PixelBandwidth", "NumberOfAverages", "AcquisitionMatrix", "AcquisitionDate", "AcquisitionTime"):
        assert keyword not in ds, keyword


def test_what_the_header_says_is_carried(tmp_path: Path) -> None:
    export(scan(STUDY), make_record(), tmp_path, "scan", ("dicom",))
    first, *_, last = read(tmp_path / "scan_dicom")
    assert (str(first.PatientName), first.PatientID, first.PatientBirthDate) == ("Doe^Jané", "0815", "19700203")
    assert (first.StudyDate, first.StudyTime, first.PatientPosition) == ("20240506", "070809.25", "FFS")
    assert (first.StudyInstanceUID, first.FrameOfReferenceUID) == ("1.2.840.4.5", "1.3.12.2.1107.5.2")
    assert (first.RepetitionTime, first.FlipAngle) == (4000, 150)
    assert (first.EchoTime, last.EchoTime) == (10, 100)
    assert (first.EchoNumbers, last.EchoNumbers) == (1, 2)
    assert first.ScanningSequence == "SE"
    assert first.MagneticFieldStrength == 2.89362
    assert first.ImagingFrequency == pytest.approx(123.25, abs=1e-3)
    assert (first.Manufacturer, first.ManufacturerModelName) == ("SIEMENS", "Skyra")
    assert len(first.SeriesDescription) <= 64
    assert first.SeriesDescription.startswith("t2_tse_long name with / an C1 TE 10 sense")


def test_sampling_is_stated_as_the_file_states_it(tmp_path: Path) -> None:
    export([make_image(**SAMPLED)], make_record(), tmp_path, "scan", ("dicom",))
    ds = read(tmp_path / "scan_dicom")[0]
    # 256 samples, 10 us apart, whatever was left of them.
    assert float(ds.PixelBandwidth) == pytest.approx(1 / 2.56e-3, rel=1e-9)
    assert list(ds.AcquisitionMatrix) == [0, 128, 96, 0]
    assert ds.NumberOfAverages == 2
    assert "AcquisitionTime" not in ds
    assert ds.SeriesTime == "070809"


def test_the_bandwidth_is_that_of_the_samples_before_oversampling_was_removed() -> None:
    header = Header(encoded_matrix=(32, 8, 1), encoded_fov_m=(0.4, 0.2, 0.0), recon_fov_m=(0.2, 0.2, 0.0))
    header = replace(header, central={"sample_time_us": 5.0})
    k = KSpace(torch.ones((1, 8, 32), dtype=torch.complex64), torch.ones((1, 8, 1), dtype=torch.bool), header)
    cut = remove_oversampling(k).header
    assert cut.encoded_matrix[0] == 16
    assert pixel_bandwidth_hz(header) == pixel_bandwidth_hz(cut) == pytest.approx(1 / (32 * 5e-6))
    assert pixel_bandwidth_hz(replace(cut, encoded_readout=None)) is None  # who cut it did not say how many there were
    for dwell_us in (0.0, float("inf"), float("nan")):
        assert pixel_bandwidth_hz(replace(cut, central={"sample_time_us": dwell_us})) is None


@pytest.mark.parametrize(
    ("study", "which"),
    [
        ({"TE": (4.92, 7.38)}, ["C1 TE 4.92 sense", "C2 TE 7.38 sense"]),
        ({"TE": (4.92,)}, ["C1 sense", "C2 sense"]),
        ({}, ["C1 sense", "C2 sense"]),
        ({"TE": (4.92, 7.38), "protocolName": "p" * 80}, None),
    ],
)
def test_contrasts_are_told_apart_by_their_description(study: dict[str, Any], which: list[str] | None) -> None:
    found = [series.description for series in make_series(scan(study), make_record())]
    assert len(set(found)) == 2
    assert max(map(len, found)) <= 64
    if which is not None:
        assert found == [f"{text} NOT FOR DIAGNOSTIC USE" for text in which]
    one = make_series([image for image in scan(study) if image.header.index.contrast == 0], make_record())[0]
    assert "C1" not in one.description


def test_long_names_leave_room_for_contrast_and_marks() -> None:
    record = make_record(method="m" * 60, generated=True)
    for series in make_series(scan({"TE": (1.234e-3, 7.38), "protocolName": "p" * 80}), record):
        assert len(series.description) <= 64
        assert series.description.endswith(" DL NOT FOR DIAGNOSTIC USE")


@pytest.mark.parametrize(("kind", "sequence"), [("IR_TSE", ["SE", "IR"]), ("Flash", "GR"), ("mystery", "RM"), (None, "RM")])
def test_an_inversion_time_is_believed_only_of_sequences_that_invert(
    tmp_path: Path, kind: str | None, sequence: object
) -> None:
    export([make_image(study={"sequence_type": kind, "TI": (300.0,)})], make_record(), tmp_path, "scan", ("dicom",))
    ds = read(tmp_path / "scan_dicom")[0]
    assert ds.ScanningSequence == sequence
    assert ("InversionTime" in ds) == (kind == "IR_TSE")


def test_invalid_uids_of_the_header_are_replaced(tmp_path: Path) -> None:
    images = [make_image(study={"frameOfReferenceUID": "not a uid", "studyInstanceUID": "1.02.3"})]
    export(images, make_record(), tmp_path, "one", ("dicom",))
    export([make_image()], make_record(), tmp_path, "two", ("dicom",))
    export([make_image()], make_record(source_sha256=""), tmp_path, "three", ("dicom",))
    one, two, three = (read(tmp_path / f"{n}_dicom")[0] for n in ("one", "two", "three"))
    assert UID(one.FrameOfReferenceUID).is_valid
    # Outputs of one raw file share study and frame of reference; a file whose hash is not known shares with none.
    for keyword in ("FrameOfReferenceUID", "StudyInstanceUID"):
        assert one[keyword].value == two[keyword].value
        assert one[keyword].value != three[keyword].value
    assert one.SeriesInstanceUID != two.SeriesInstanceUID


def test_a_slab_becomes_one_instance_per_z(tmp_path: Path) -> None:
    image = make_image((5, 8, 9), (90, 80, 50), gain=1j)
    export([image], make_record(), tmp_path, "scan", ("dicom",))
    found = read(tmp_path / "scan_dicom")
    assert {ds.MRAcquisitionType for ds in found} == {"3D"}
    assert [float(ds.ImagePositionPatient[2]) for ds in found] == [-20, -10, 0, 10, 20]
    assert [float(v) for v in found[0].PixelSpacing] == [10.0, 10.0]
    for z, ds in enumerate(found):
        np.testing.assert_allclose(ds.pixel_array * float(ds.RescaleSlope), image.data[z].abs(), atol=float(ds.RescaleSlope))


def _same_volume(index: ImageIndex, other: ImageIndex) -> bool:
    return (index.contrast, index.repetition) == (other.contrast, other.repetition)
