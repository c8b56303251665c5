"""DICOM export: one MR Image Storage file per slice.

Tags and types follow PS3.3, section A.4 (MR Image IOD). Rescale is a permitted extension: floats are ``value * RescaleSlope``,
with one slope per series.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from kspace.container import Header, Image
from recon.output.geometry import SliceStack, patient_m, slice_stacks, voxel_m
from recon.output.series import (
    NOTICE,
    RunRecord,
    Series,
    comments,
    is_generated,
    method_of,
    new_uid,
    of_contrast,
    origin,
    pixels,
    plain,
    replacement,
    volume_of,
)

FULL_SCALE = 32767
"""Largest stored value: 15 bits, because some readers treat 16 bits as signed regardless of the tags."""

TEXTS = {  # DICOM keyword: (ISMRMRD name, maximum length); unknown values are omitted, or empty for type 2
    "StudyDescription": ("studyDescription", 64),
    "ProtocolName": ("protocolName", 64),
    "InstitutionName": ("institutionName", 64),
    "StationName": ("stationName", 16),
    "ManufacturerModelName": ("systemModel", 64),
    "DeviceSerialNumber": ("deviceSerialNumber", 64),
    "SequenceName": ("sequenceName", 16),
}
TYPE_2 = {
    "PatientName": ("patientName", 64),
    "PatientID": ("patientID", 64),
    "AccessionNumber": ("accessionNumber", 16),
    "ReferringPhysicianName": ("referringPhysicianName", 64),
    "StudyID": ("studyID", 16),
    "Manufacturer": ("systemVendor", 64),
}
POSITIONS = {"HFP", "HFS", "HFDR", "HFDL", "FFDR", "FFDL", "FFP", "FFS"}
SEQUENCES = {"flash": "GR", "gre": "GR", "ssfp": "GR", "truefisp": "GR", "turbospinecho": "SE", "tse": "SE", "epi": "EP"}


def write_dicom(folder: Path, series: Sequence[Series], record: RunRecord) -> list[dict[str, Any]]:
    """Write all images of `series` into the new directory `folder`, one file per slice.

    Returns
    -------
    list of dict
        Number, SeriesInstanceUID and rescale slope of each series, for the JSON record.
    """
    folder.mkdir()
    now = datetime.now().astimezone()
    # Without UIDs in the header, all outputs of one raw file share study and frame of reference, across runs.
    scan = record.source_sha256 or new_uid()
    return [_write_series(folder, one, record, scan, now) for one in series]


def find_slope(values: Iterable[NDArray[Any]]) -> tuple[str, type[np.integer[Any]]]:
    """Rescale slope of float32 arrays of any shape ``(...)`` as a DICOM string of at most 16 characters, and integer type.

    The type is signed if any value is negative. ``round(value / slope)`` fits the type, with an error of half a step at most.
    """
    greatest, signed = 0.0, False
    for array in values:
        greatest = max(greatest, float(np.abs(array).max()))
        signed = signed or float(array.min()) < 0
    # Rounded up to the available digits before use, so that the stored text is exactly the slope applied.
    slope = f"{greatest / FULL_SCALE * (1 + 1e-9):.9e}" if greatest > 0 else "1"
    return slope, np.int16 if signed else np.uint16


def _write_series(folder: Path, series: Series, record: RunRecord, scan: str, now: datetime) -> dict[str, Any]:
    slope, dtype = find_slope(pixels(image) for image in series.images)
    stacks = {index: stack for stack in slice_stacks(series.images) for index in stack.slices}
    common = _common(series, record, slope, scan, now)
    times = {volume: time for time, volume in enumerate(series.volumes, start=1)}
    number = 0
    for image in series.images:
        stored = np.rint(pixels(image).astype(np.float64) / float(slope)).astype(dtype)
        time = times[volume_of(image)]
        # Each z of a slab is a separate slice.
        for z in range(len(stored)):
            number += 1
            ds = _instance(common, image, z, stacks[image.header.index.slice])
            ds.InstanceNumber, ds.AcquisitionNumber = number, time
            if len(times) > 1:
                ds.TemporalPositionIdentifier, ds.NumberOfTemporalPositions = time, len(times)
            _set_pixels(ds, stored[z])
            pydicom.dcmwrite(folder / f"{series.number:03d}_{number:05d}.dcm", ds, enforce_file_format=True)
    return {"number": series.number, "series_instance_uid": series.uid, "rescale_slope": float(slope)}


def _common(series: Series, record: RunRecord, slope: str, scan: str, now: datetime) -> Dataset:
    """Attributes common to all instances of a series."""
    image = series.images[0]
    header, study = image.header, image.header.study
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = list(series.image_type)
    ds.SOPClassUID = MRImageStorage
    ds.InstanceCreationDate = ds.ContentDate = now.strftime("%Y%m%d")
    ds.InstanceCreationTime = ds.ContentTime = now.strftime("%H%M%S")
    ds.Modality = "MR"
    ds.SeriesInstanceUID, ds.SeriesNumber = series.uid, series.number
    ds.SeriesDescription = series.description
    ds.StudyInstanceUID = _uid(study.get("studyInstanceUID")) or new_uid(scan, "study")
    ds.FrameOfReferenceUID = _uid(study.get("frameOfReferenceUID")) or new_uid(scan, "frame")
    ds.PositionReferenceIndicator = ds.Laterality = ""
    for keyword, (name, length) in (TEXTS | TYPE_2).items():
        text = plain(str(study.get(name) or ""), length)
        if text or keyword in TYPE_2:
            setattr(ds, keyword, text)
    body_part = re.sub("[^A-Z0-9 _]", "", str(study.get("bodyPartExamined") or "").upper())[:16].strip()
    if body_part:
        ds.BodyPartExamined = body_part
    _set_patient_and_times(ds, study)
    _set_acquisition(ds, header)
    ds.ImageComments = comments(series, record)[:10240]
    if any(is_generated(series.role, one, record) for one in series.images):
        ds.DerivationDescription = plain(f"{record.description}; {NOTICE}", 1024)
    elif series.image_type[0] == "DERIVED":
        ds.DerivationDescription = plain(f"{series.role} of the {record.method} reconstruction; {NOTICE}", 1024)
    ds.ContributingEquipmentSequence = [_equipment(series, record, now)]
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", slope, "US"
    low, high = series.window
    ds.WindowCenter, ds.WindowWidth = _ds((low + high) / 2), _ds(high - low)
    # Not LINEAR, which subtracts 1 from the width: raw intensities may be far below 1.
    ds.VOILUTFunction = "LINEAR_EXACT"
    return ds


def _set_patient_and_times(ds: Dataset, study: dict[str, Any]) -> None:
    """Patient and time attributes, as far as the header has them."""
    ds.PatientBirthDate = _date(study.get("patientBirthdate"))
    sex = str(study.get("patientGender") or "").upper()
    ds.PatientSex = sex if sex in ("M", "F", "O") else ""
    if study.get("patientWeight_kg"):
        ds.PatientWeight = _ds(study["patientWeight_kg"])
    if study.get("patientHeight_m"):
        ds.PatientSize = _ds(study["patientHeight_m"])
    ds.StudyDate, ds.StudyTime = _date(study.get("studyDate")), _time(study.get("studyTime"))
    for what in ("Series", "Acquisition"):
        if date := _date(study.get(f"{what.lower()}Date")):
            setattr(ds, f"{what}Date", date)
        if time := _time(study.get(f"{what.lower()}Time")):
            setattr(ds, f"{what}Time", time)
    position = str(study.get("patientPosition") or "").upper()
    ds.PatientPosition = position if position in POSITIONS else ""


def _set_acquisition(ds: Dataset, header: Header) -> None:
    """Sequence parameters; times are milliseconds in ISMRMRD and in DICOM."""
    study, contrast = header.study, header.index.contrast
    kind = re.sub("[^a-z]", "", str(study.get("sequence_type") or "").lower())
    # Decided by the sequence name alone: Siemens headers have an inversion time even for sequences without inversion, and DICOM
    # allows one only for inversion recovery. RM (research mode) stands for unknown sequences.
    inverts = "inversion" in kind or kind.startswith("ir") or kind in ("tir", "tirm", "flair", "mprage")
    inversion = _nth(study.get("TI"), contrast) if inverts else None
    ds.ScanningSequence = [SEQUENCES.get(kind.removeprefix("ir"), "RM"), *(["IR"] if inverts else [])]
    ds.SequenceVariant, ds.ScanOptions = "NONE", ""
    is_3d = header.encoded_matrix[2] > 1 or header.recon_matrix[2] > 1
    ds.MRAcquisitionType = "3D" if is_3d else "2D"
    ds.EchoTime, ds.EchoTrainLength = _nth(study.get("TE"), contrast), None
    ds.EchoNumbers = contrast + 1
    ds.RepetitionTime = _nth(study.get("TR"), contrast)
    if inversion:
        ds.InversionTime = inversion
    if flip := _nth(study.get("flipAngle_deg"), contrast):
        ds.FlipAngle = flip
    if study.get("systemFieldStrength_T"):
        ds.MagneticFieldStrength = _ds(study["systemFieldStrength_T"])
    if study.get("H1resonanceFrequency_Hz"):
        ds.ImagingFrequency, ds.ImagedNucleus = _ds(float(study["H1resonanceFrequency_Hz"]) / 1e6), "1H"
    ds.InPlanePhaseEncodingDirection = "COL"
    _set_sampling(ds, header)


def _set_sampling(ds: Dataset, header: Header) -> None:
    """Acquisition matrix, averages and bandwidth, as far as they are known."""
    n_x, n_y, _ = header.encoded_matrix
    if 0 < n_x <= 0xFFFF and 0 < n_y <= 0xFFFF:
        # Frequency rows and columns, then phase rows and columns, without readout oversampling; x runs along the columns.
        ds.AcquisitionMatrix = [0, n_x, n_y, 0]
    if limit := header.study.get("limits", {}).get("average"):
        ds.NumberOfAverages = limit["maximum"] - limit["minimum"] + 1
    if bandwidth := pixel_bandwidth_hz(header):
        ds.PixelBandwidth = _ds(bandwidth)


def pixel_bandwidth_hz(header: Header) -> float | None:
    """Pixel bandwidth: reciprocal of the duration of the encoded readout, oversampling included; None if unknown.

    Removing oversampling does not change it, because field of view and bandwidth shrink together.
    """
    dwell_s = float(header.central.get("sample_time_us") or 0.0) * 1e-6
    whole = None if "remove_oversampling" in header.steps else header.encoded_matrix[0]
    n_points = header.encoded_readout or whole
    return 1 / (dwell_s * n_points) if n_points and 0 < dwell_s < math.inf else None


def _equipment(series: Series, record: RunRecord, now: datetime) -> Dataset:
    """Contributing equipment (PS3.3 C.12.1): this software, its versions, and the provenance of the image."""
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109102", "DCM"
    purpose.CodeMeaning = "Processing Equipment"
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [purpose]
    item.Manufacturer, item.ManufacturerModelName = "recon", plain(method_of(series.role, record), 64)
    item.SoftwareVersions = [plain(f"{name} {value}", 64) for name, value in record.versions.items()] or [""]
    item.ContributionDateTime = now.strftime("%Y%m%d%H%M%S")
    known = origin(record) or record.versions
    # Provenance first: of 1024 characters, a long description may lose its end. The versions have an attribute of their own.
    stated = ", ".join(f"{name} {value}" for name, value in known.items())
    item.ContributionDescription = plain(f"{NOTICE}; {stated}; {record.description}", 1024)
    return item


def _instance(common: Dataset, image: Image, z: int, stack: SliceStack) -> Dataset:
    """Instance of one slice: identity and position."""
    ds = Dataset()
    ds.update(common)
    ds.SOPInstanceUID = new_uid()
    if (note := replacement(image)) is not None:
        # New elements: those of `common` are shared with the other instances.
        kind = ["ORIGINAL", *ds.ImageType[1:]]
        for keyword in ("ImageType", "ImageComments", "DerivationDescription"):
            ds.pop(keyword, None)
        ds.ImageType, ds.ImageComments = kind, f"{NOTICE}; {note}"
        ds.DerivationDescription = plain(f"{note}; {NOTICE}", 1024)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dx, dy, dz = 1e3 * voxel_m(image)
    geometry = image.header.geometry
    ds.ImagePositionPatient = [_ds(v) for v in 1e3 * patient_m(image, (0, 0, z))]
    ds.ImageOrientationPatient = [_ds(v) for v in (*geometry.read_dir, *geometry.phase_dir)]
    ds.PixelSpacing = [_ds(dy), _ds(dx)]
    ds.SliceThickness = _ds(dz) if dz > 0 else None
    if stack.spacing_m > 0:
        ds.SpacingBetweenSlices = _ds(1e3 * stack.spacing_m)
    ds.SliceLocation = _ds(1e3 * float(np.dot(patient_m(image, (0, 0, z)), geometry.slice_dir)))
    return ds


def _set_pixels(ds: Dataset, stored: NDArray[Any]) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(stored.dtype == np.int16)
    ds.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()


def _uid(value: object) -> str | None:
    """UID from the header if it is valid, else None."""
    text = str(value or "").strip()
    return text if re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", text) and len(text) <= 64 else None


def _ds(value: float) -> str:
    # Ten digits are at most 16 characters. pydicom's own formatting gives 17 for numbers just below a power of ten.
    return f"{float(value):.10g}"


def _nth(values: Any, contrast: int) -> str | None:
    value = of_contrast(values, contrast)
    return None if value is None else _ds(value)


def _date(value: object) -> str:
    found = re.fullmatch(r"(\d{4})-?(\d{2})-?(\d{2})(Z|[+-]\d\d:\d\d)?", str(value or "").strip())
    return "".join(found.groups()[:3]) if found else ""


def _time(value: object) -> str:
    found = re.fullmatch(r"(\d{2}):?(\d{2}):?(\d{2})(\.\d{1,6})?\d*(Z|[+-]\d\d:\d\d)?", str(value or "").strip())
    return "".join(part or "" for part in found.groups()[:4]) if found else ""
