"""Raw ISMRMRD files out: acquisition headers, samples, and the XML header, in one bulk write."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import h5py
import ismrmrd
import ismrmrd.hdf5
import numpy as np
from numpy.typing import NDArray

from kspace.container import Matrix, Vector
from kspace.errors import InputError
from kspace.io.atomic import atomic_write

HEAD_DTYPE = ismrmrd.hdf5.acquisition_header_dtype
"""Structured dtype of one acquisition header, 340 bytes, fields as in ISMRMRD's specification (lengths in mm)."""


@dataclass(frozen=True)
class Space:
    """What a raw file's header says about one encoding space.

    Attributes
    ----------
    encoded_matrix, recon_matrix
        Points ``(x, y, z)`` of k-space (readout oversampling included) and of the image to deliver.
    encoded_fov_m, recon_fov_m
        Their fields of view ``(x, y, z)``, metres.
    limits
        ``(minimum, maximum, centre)`` of counters by their names in the schema (``kspace_encoding_step_1``, ``slice``, ...);
        None leaves the element ``encodingLimits`` out.
    acceleration
        Undersampling factor ``(ky, kz)``.
    calibration_mode
        ``embedded``, ``separate``, ``interleaved``, ``external`` or ``other``; None leaves it out.
    trajectory
        ``cartesian``, ``epi``, ``radial``, ``goldenangle``, ``spiral`` or ``other``.
    parameters
        Of a ``trajectoryDescription`` of the kind ConventionalEPI, by name, times in microseconds; empty leaves it out.
    """

    encoded_matrix: Matrix
    recon_matrix: Matrix
    encoded_fov_m: Vector
    recon_fov_m: Vector
    limits: Mapping[str, tuple[int, int, int]] | None = None
    acceleration: tuple[int, int] = (1, 1)
    calibration_mode: str | None = None
    trajectory: str = "cartesian"
    parameters: Mapping[str, float] = field(default_factory=dict)


def header_xml(spaces: Sequence[Space], sections: Mapping[str, Mapping[str, object]] | None = None) -> str:
    """The XML header of a scan.

    Parameters
    ----------
    spaces
        The encoding spaces, in the order of the readouts' ``encoding_space_ref``.
    sections
        Leaf elements by section: ``{"sequenceParameters": {"TR": 500}, ...}``, names and order as in ISMRMRD's schema.
    """
    sections = {"experimentalConditions": {"H1resonanceFrequency_Hz": 123200000}, **(sections or {})}
    root = ElementTree.Element("ismrmrdHeader", xmlns="http://www.ismrm.org/ISMRMRD")
    for name in BEFORE_ENCODING:
        _section(root, name, sections.get(name))
    for space in spaces:
        _encoding(ElementTree.SubElement(root, "encoding"), space)
    for name in AFTER_ENCODING:
        _section(root, name, sections.get(name))
    if unknown := set(sections) - {*BEFORE_ENCODING, *AFTER_ENCODING}:
        raise ValueError(f"no such section in an ISMRMRD header: {', '.join(sorted(unknown))}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False)


# The schema is a sequence: strict readers want this order.
BEFORE_ENCODING = (
    "subjectInformation",
    "studyInformation",
    "measurementInformation",
    "acquisitionSystemInformation",
    "experimentalConditions",
)
AFTER_ENCODING = ("sequenceParameters",)


def _section(root: ElementTree.Element, name: str, leaves: Mapping[str, object] | None) -> None:
    if leaves:
        section = ElementTree.SubElement(root, name)
        for key, value in leaves.items():
            ElementTree.SubElement(section, key).text = str(value)


def _encoding(element: ElementTree.Element, space: Space) -> None:
    for name, matrix, fov in (
        ("encodedSpace", space.encoded_matrix, space.encoded_fov_m),
        ("reconSpace", space.recon_matrix, space.recon_fov_m),
    ):
        part = ElementTree.SubElement(element, name)
        _section(part, "matrixSize", dict(zip("xyz", matrix, strict=True)))
        _section(part, "fieldOfView_mm", {axis: f"{length * 1e3:.9g}" for axis, length in zip("xyz", fov, strict=True)})
    if space.limits is not None:
        part = ElementTree.SubElement(element, "encodingLimits")
        for name, (minimum, maximum, centre) in space.limits.items():
            _section(part, name, {"minimum": minimum, "maximum": maximum, "center": centre})
    ElementTree.SubElement(element, "trajectory").text = space.trajectory
    if space.parameters:
        part = ElementTree.SubElement(element, "trajectoryDescription")
        ElementTree.SubElement(part, "identifier").text = "ConventionalEPI"
        for name, value in sorted(space.parameters.items(), key=lambda item: isinstance(item[1], float)):
            kind = "userParameterDouble" if isinstance(value, float) else "userParameterLong"
            _section(part, kind, {"name": name, "value": value})
    if space.acceleration != (1, 1) or space.calibration_mode:
        part = ElementTree.SubElement(element, "parallelImaging")
        factors = dict(zip(("kspace_encoding_step_1", "kspace_encoding_step_2"), space.acceleration, strict=True))
        _section(part, "accelerationFactor", factors)
        if space.calibration_mode:
            ElementTree.SubElement(part, "calibrationMode").text = space.calibration_mode


def new_acquisition_headers(
    n: int,
    n_coils: int,
    n_samples: int,
    *,
    center_sample: int | None = None,
    dwell_s: float = 5e-6,
    position_m: Sequence[float] = (0.0, 0.0, 0.0),
    read_dir: Sequence[float] = (1.0, 0.0, 0.0),
    phase_dir: Sequence[float] = (0.0, 1.0, 0.0),
    slice_dir: Sequence[float] = (0.0, 0.0, 1.0),
    measurement_uid: int = 1,
) -> NDArray[np.void]:
    """Headers of `n` like readouts, counters and flags zero, to be completed by the caller.

    Parameters
    ----------
    n, n_coils, n_samples
        Number of readouts, of active (and available) channels, of samples.
    center_sample
        Index of the sample on the centre of k-space; ``n_samples // 2`` where None.
    dwell_s
        Time from sample to sample, seconds.
    position_m, read_dir, phase_dir, slice_dir
        Geometry in DICOM's patient coordinates (LPS); the position in metres (the file holds mm).
    measurement_uid
        Number of the measurement.

    Returns
    -------
    ndarray
        Structured array of `HEAD_DTYPE`, shape ``(n,)``; ``scan_counter`` counts from 1.
    """
    headers = np.zeros(n, HEAD_DTYPE)
    headers["version"] = 1
    headers["measurement_uid"] = measurement_uid
    headers["scan_counter"] = np.arange(1, n + 1)
    headers["number_of_samples"] = n_samples
    headers["available_channels"] = headers["active_channels"] = n_coils
    headers["center_sample"] = n_samples // 2 if center_sample is None else center_sample
    headers["sample_time_us"] = dwell_s * 1e6
    headers["position"] = np.asarray(position_m) * 1e3
    headers["read_dir"], headers["phase_dir"], headers["slice_dir"] = read_dir, phase_dir, slice_dir
    return headers


def write_raw(
    path: str | os.PathLike[str],
    header_xml: str | bytes,
    headers: NDArray[np.void],
    samples: Sequence[NDArray[np.complex64]],
    trajectories: Sequence[NDArray[np.float32]] | None = None,
) -> None:
    """Write an ISMRMRD file (version 1, group ``dataset``): whole, or not at all.

    Parameters
    ----------
    path
        File to write; an existing one is replaced.
    header_xml
        The scan's ISMRMRD header, an XML document.
    headers
        Structured array of `HEAD_DTYPE`, shape ``(n,)``, n at least 1.
    samples
        n arrays, complex64 ``(coil, n_samples)``, as many of each as the header of the readout says.
    trajectories
        n arrays, float32 ``(n_samples, trajectory_dimensions)``; empty where None.

    Raises
    ------
    InputError
        If the samples contradict their headers, or the file cannot be written.
    """
    rows = _rows(path, headers, samples, trajectories)
    with raw_writer(path, header_xml) as writer:
        writer.append_rows(rows)


class RawWriter:
    """Appends readouts to a new ISMRMRD file, so that a scan need not be in memory; made by `raw_writer`."""

    def __init__(self, path: str | os.PathLike[str], group: h5py.Group) -> None:
        self._path, self._group = path, group

    def append(
        self,
        headers: NDArray[np.void],
        samples: Sequence[NDArray[np.complex64]],
        trajectories: Sequence[NDArray[np.float32]] | None = None,
    ) -> None:
        """Append readouts: acquisition headers ``(readout,)``, samples ``(coil sample)`` each; errors as `write_raw`."""
        self.append_rows(_rows(self._path, headers, samples, trajectories))

    def append_waveforms(self, headers: NDArray[np.void], samples: Sequence[NDArray[np.uint32]]) -> None:
        """Append waveforms: headers ``(waveform,)`` of ``ismrmrd.hdf5.waveform_header_dtype``, samples ``(channel sample)``."""
        rows = np.empty(len(headers), ismrmrd.hdf5.waveform_dtype)
        rows["head"] = headers
        for i, values in enumerate(samples):
            rows["data"][i] = np.ascontiguousarray(values, np.uint32).ravel()
        self._extend("waveforms", rows)

    def append_rows(self, rows: NDArray[np.void]) -> None:
        """Append readouts ``(readout,)`` structured as they are stored."""
        self._extend("data", rows)

    def _extend(self, name: str, rows: NDArray[np.void]) -> None:
        if name not in self._group:
            self._group.create_dataset(name, data=rows, dtype=rows.dtype, maxshape=(None,))
            return
        stored, before = self._group[name], len(self._group[name])
        stored.resize(before + len(rows), axis=0)
        stored[before:] = rows


@contextmanager
def raw_writer(
    path: str | os.PathLike[str],
    header_xml: str | bytes,
    failed: str = "cannot write the raw file",
    fix: str = "choose a writable folder with free space",
) -> Iterator[RawWriter]:
    """A new ISMRMRD file (version 1, group ``dataset``) that takes its name when the block ends without an exception.

    Parameters
    ----------
    path
        File to write; an existing one is replaced.
    header_xml
        The scan's ISMRMRD header, an XML document.
    failed, fix
        What the error says.

    Raises
    ------
    InputError
        If the file cannot be written, or the header is no XML text (a NUL byte within it).
    """
    xml = header_xml.encode() if isinstance(header_xml, str) else header_xml
    if b"\0" in xml:  # HDF5 would end the text there
        raise InputError(f"the header has a NUL byte at its byte {xml.index(0)}, expected XML", path, "send it again")
    with atomic_write(Path(path), failed, fix) as beside, h5py.File(beside, "w") as file:
        group = file.create_group("dataset")
        group.create_dataset("xml", (1,), h5py.special_dtype(vlen=bytes))[0] = xml
        yield RawWriter(path, group)


def _rows(
    path: str | os.PathLike[str],
    headers: NDArray[np.void],
    samples: Sequence[NDArray[np.complex64]],
    trajectories: Sequence[NDArray[np.float32]] | None,
) -> NDArray[np.void]:
    if len(samples) != len(headers) or (trajectories is not None and len(trajectories) != len(headers)):
        raise InputError(f"{len(headers)} acquisition headers but {len(samples)} readouts", path, "give one header per readout")
    rows = np.empty(len(headers), ismrmrd.hdf5.acquisition_dtype)
    rows["head"] = headers
    nothing = np.zeros(0, np.float32)
    for i, (head, readout) in enumerate(zip(headers, samples, strict=True)):
        expected = (int(head["active_channels"]), int(head["number_of_samples"]))
        if readout.shape != expected:
            raise InputError(f"readout {i} has (coil, sample) {readout.shape}, its header says {expected}", path)
        rows["data"][i] = np.ascontiguousarray(readout, np.complex64).view(np.float32).ravel()
        points = nothing if trajectories is None else np.ascontiguousarray(trajectories[i], np.float32)
        if points.size != expected[1] * int(head["trajectory_dimensions"]):
            raise InputError(f"readout {i} has {points.size} trajectory values, its header says otherwise", path)
        rows["traj"][i] = points.ravel()
    return rows
