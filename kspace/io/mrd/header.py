"""The XML header of an ISMRMRD file, read tolerantly: scanners and converters write half-valid ones.

Elements are found by their local name, whatever the namespace; optional elements may be missing. What the geometry of an
image rests on (matrix sizes, fields of view, trajectory) is demanded, and a value that is there must make sense.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from kspace.container import Matrix, Vector
from kspace.errors import InputError
from kspace.io.elements import (
    child_of,
    children_of,
    decode_xml,
    leaves_of,
    local_name,
    number_of,
    parse_xml,
    text_of,
    to_number,
)

# Counters are 16 bit, and nothing that a person can wait for has more points; both also keep a damaged header from
# asking for memory that no machine has.
MAX_AXIS = 65536
MAX_POINTS = 2**31
MAX_FINER = 16  # scanners interpolate images twofold or fourfold
VOXEL_MM = (0.02, 50.0)  # from microscopy to single-voxel coils: beyond them a length has another unit
UNITS = {1e3: "metres", 1e1: "centimetres", 1e-3: "micrometres"}  # mm in one of them

COUNTERS = ("kspace_encoding_step_1", "kspace_encoding_step_2", "average", "slice", "contrast", "phase", "repetition", "set")
NUMBERS = {
    "systemFieldStrength_T",
    "relativeReceiverNoiseBandwidth",
    "receiverChannels",
    "H1resonanceFrequency_Hz",
    "patientWeight_kg",
    "patientHeight_m",
    "initialSeriesNumber",
}
TRAJECTORIES = ("radial", "goldenangle", "spiral", "other")
MULTIBAND = re.compile(r"multi_?band_?(accel\w*_?)?factor|^(mb|sms)_?factor$|slice_?acceleration_?factor", re.IGNORECASE)
SEQUENCE_TEXT = {"sequence_type", "diffusionDimension", "diffusionScheme"}


@dataclass(frozen=True)
class Limits:
    """Counter limits of the header, inclusive; `centre` is None where the element is missing."""

    minimum: int
    maximum: int
    centre: int | None


@dataclass(frozen=True)
class Encoding:
    """One encoding space of a scan.

    Attributes
    ----------
    index
        Its place in the header; readouts refer to it by ``encoding_space_ref``.
    trajectory
        As the header names it, lower case. Only ``cartesian`` and ``epi`` can be loaded; `refusal` says why another cannot.
    encoded_matrix, recon_matrix
        Points ``(x, y, z)`` of k-space (readout oversampling included) and of the image to deliver.
    encoded_fov_m, recon_fov_m
        Their fields of view ``(x, y, z)`` in metres.
    limits
        Counter limits by ISMRMRD's names, where given.
    acceleration
        Nominal undersampling ``(ky, kz)``.
    calibration_mode
        ``calibrationMode`` of the header as it stands there, None where missing.
    calibration
        Where the samples for coil maps are: ``embedded`` (calibration lines are lines of the image as well), ``separate``
        (they serve the maps only, `KSpace.calibration` holds them) or ``none`` (no readout is marked as calibration: the
        sampled centre of the image, or of the average over repetitions, is all there is).
    centre
        Counters ``(kspace_encode_step_1, kspace_encode_step_2)`` of the centre of k-space.
    n_coils
        Receive channels of the readouts; 0 where the encoding has no imaging readouts.
    n_readouts
        Number of imaging readouts.
    dwell_s
        Time between samples of the imaging readouts, None where the file does not say; of echo-planar ones, that of a plain
        sample with the noise of a regridded one.
    refusal
        Why images of this encoding cannot be made; None where they can.
    description
        Identifier of the ``trajectoryDescription``, empty where missing.
    parameters
        Numbers of the ``trajectoryDescription`` by their names, times in microseconds.
    """

    index: int
    trajectory: str
    encoded_matrix: Matrix
    recon_matrix: Matrix
    encoded_fov_m: Vector
    recon_fov_m: Vector
    limits: dict[str, Limits] = field(default_factory=dict)
    acceleration: tuple[float, float] = (1.0, 1.0)
    calibration_mode: str | None = None
    calibration: str = "none"
    centre: tuple[int, int] = (0, 0)
    n_coils: int = 0
    n_readouts: int = 0
    dwell_s: float | None = None
    refusal: str | None = None
    description: str = ""
    parameters: dict[str, float] = field(default_factory=dict)

    @property
    def is_epi(self) -> bool:
        """Whether the readouts are echo planar: both directions, perhaps sampled on the ramps of the gradient."""
        return self.trajectory == "epi" or (self.trajectory in ("cartesian", "other") and "epi" in self.description.lower())

    @property
    def has_trajectory(self) -> bool:
        """Whether the readouts lie off the Cartesian grid, on a trajectory."""
        return self.trajectory in TRAJECTORIES and not self.is_epi

    @property
    def is_3d(self) -> bool:
        """Whether k-space has a second phase encoding (kz)."""
        return self.encoded_matrix[2] > 1


@dataclass(frozen=True)
class MrdHeader:
    """What the XML header says.

    Attributes
    ----------
    encodings
        Encoding spaces, in order.
    study
        Facts under ISMRMRD's names; see `kspace.container.Header.study`.
    receiver_channels
        ``receiverChannels``, None where missing.
    relative_bandwidth
        ``relativeReceiverNoiseBandwidth``, None where missing.
    coil_names
        ``coilName`` of the channels, in order; empty where missing.
    xml
        The header itself.
    warnings
        What was missing and what was assumed instead.
    dependencies
        ``measurementID`` of each measurement that this one depends on, its noise scan for one.
    """

    encodings: tuple[Encoding, ...]
    study: dict[str, Any]
    receiver_channels: int | None
    relative_bandwidth: float | None
    coil_names: tuple[str, ...]
    xml: str
    warnings: tuple[str, ...]
    dependencies: tuple[str, ...] = ()


def parse_header(xml: bytes | str, source: str) -> MrdHeader:
    """Parse the XML header of an ISMRMRD file.

    Parameters
    ----------
    xml
        The header as stored; trailing NUL bytes, which some writers add, are ignored.
    source
        Name of the file, for messages.

    Raises
    ------
    InputError
        If it is not well-formed XML, declares entities, is not an ISMRMRD header, or states sizes that cannot be.
    """
    text = decode_xml(xml, source)
    root = parse_xml(text, source)
    if local_name(root.tag) != "ismrmrdHeader":
        raise InputError(
            f"the XML header is <{local_name(root.tag)}>, expected <ismrmrdHeader>", source, "give an ISMRMRD raw file"
        )
    warnings: list[str] = []
    nodes = children_of(root, "encoding")
    if not nodes:
        raise InputError("the XML header has no <encoding>, so no matrix size", source, "convert the scan again")
    study = _study(root, source, warnings)
    encodings = tuple(_encoding(i, node, source, warnings, study) for i, node in enumerate(nodes))
    system = child_of(root, "acquisitionSystemInformation")
    labels = children_of(system, "coilLabel") if system is not None else []
    channels = number_of(system, "receiverChannels", source)
    bandwidth = number_of(system, "relativeReceiverNoiseBandwidth", source)
    if bandwidth is not None and not 0 < bandwidth <= 10:
        raise InputError(f"relativeReceiverNoiseBandwidth is {bandwidth:g}, expected about 0.8", source, "correct the header")
    return MrdHeader(
        encodings=encodings,
        study=study,
        receiver_channels=None if channels is None else int(channels),
        relative_bandwidth=bandwidth,
        coil_names=tuple(text_of(label, "coilName") or "" for label in labels),
        xml=text,
        warnings=tuple(warnings),
        dependencies=_dependencies(child_of(root, "measurementInformation")),
    )


def _dependencies(information: ElementTree.Element | None) -> tuple[str, ...]:
    named = [text_of(node, "measurementID") for node in children_of(information, "measurementDependency")]
    return tuple(name for name in named if name is not None)


def _encoding(index: int, node: ElementTree.Element, source: str, warnings: list[str], study: Mapping[str, Any]) -> Encoding:
    encoded, encoded_fov = _space(node, "encodedSpace", index, source)
    _check_unit(f"encodedSpace of encoding {index}", encoded, encoded_fov, warnings)
    if child_of(node, "reconSpace") is None:
        warnings.append(f"encoding {index} has no reconSpace: images get the encoded matrix {_times(encoded)}")
        recon, recon_fov = encoded, encoded_fov
    else:
        recon, recon_fov = _space(node, "reconSpace", index, source)
        _check_recon(index, encoded, recon, source)
        _check_unit(f"reconSpace of encoding {index}", recon, recon_fov, warnings)
    limits_node = child_of(node, "encodingLimits")
    limits = {}
    for name in COUNTERS:
        limit = _limits(limits_node, name, source)
        if limit is not None:
            limits[name] = limit
    trajectory = (text_of(node, "trajectory") or "").lower()
    described = child_of(node, "trajectoryDescription")
    parallel = child_of(node, "parallelImaging")
    factors = child_of(parallel, "accelerationFactor")
    acceleration = (
        number_of(factors, "kspace_encoding_step_1", source) or 1.0,
        number_of(factors, "kspace_encoding_step_2", source) or 1.0,
    )
    return Encoding(
        index=index,
        trajectory=trajectory,
        encoded_matrix=encoded,
        recon_matrix=recon,
        encoded_fov_m=encoded_fov,
        recon_fov_m=recon_fov,
        limits=limits,
        acceleration=acceleration,
        calibration_mode=text_of(parallel, "calibrationMode"),
        refusal=_refusal(index, trajectory, _slices_at_once(parallel, study, source)),
        description=text_of(described, "identifier") or "",
        parameters=_parameters(described, source),
    )


def _slices_at_once(parallel: ElementTree.Element | None, study: Mapping[str, Any], source: str) -> float:
    """Slices that are excited together, by the schema's ``multiband`` or a user parameter: samples are sums of them."""
    stated = [number_of(child_of(parallel, "multiband"), "multiband_factor", source) or 1.0]
    for name, text in study.get("userParameters", {}).items():
        if MULTIBAND.search(name) and re.fullmatch(r"\d+(\.0*)?", text):
            stated.append(float(text))
    return max(stated)


def _refusal(index: int, trajectory: str, slices_at_once: float) -> str | None:
    if slices_at_once > 1:
        return f"encoding {index} has {slices_at_once:g} slices excited at once (multiband), which are not separated"
    if not trajectory:
        return f"encoding {index} names no trajectory, expected cartesian"
    if trajectory not in ("cartesian", "epi", *TRAJECTORIES):
        return f"encoding {index} has trajectory '{trajectory}', expected cartesian, epi, {', '.join(TRAJECTORIES)}"
    return None


def _parameters(description: ElementTree.Element | None, source: str) -> dict[str, float]:
    nodes = [*children_of(description, "userParameterLong"), *children_of(description, "userParameterDouble")]
    pairs = ((text_of(node, "name"), number_of(node, "value", source)) for node in nodes)
    return {name: value for name, value in pairs if name and value is not None}


def _space(node: ElementTree.Element, name: str, index: int, source: str) -> tuple[Matrix, Vector]:
    space = child_of(node, name)
    matrix, fov = child_of(space, "matrixSize"), child_of(space, "fieldOfView_mm")
    where = f"{name} of encoding {index}"
    if matrix is None or fov is None:
        lacking = "matrixSize" if matrix is None else "fieldOfView_mm"
        raise InputError(f"{where} has no {lacking}", source, "complete the XML header")
    sizes = [number_of(matrix, axis, source) for axis in "xyz"]
    sizes[2] = sizes[2] or 1.0  # siemens_to_ismrmrd copies a 0 from 2-D protocols
    whole = [n for n in sizes if n is not None and n == int(n)]
    if len(whole) != 3 or min(whole) < 1 or max(whole) > MAX_AXIS or math.prod(whole) > MAX_POINTS:
        shown = " x ".join("?" if n is None else f"{n:g}" for n in sizes)
        raise InputError(
            f"{where} has the matrix {shown}, expected 1 to {MAX_AXIS} points per axis and at most {MAX_POINTS:g} in all",
            source,
            "correct the XML header",
        )
    lengths = [number_of(fov, axis, source) or 0.0 for axis in "xyz"]
    if min(lengths[:2]) <= 0 or lengths[2] < 0 or (lengths[2] == 0 and whole[2] > 1):
        shown = " x ".join(f"{length:g}" for length in lengths)
        raise InputError(
            f"{where} has the field of view {shown} mm, expected positive lengths", source, "correct the XML header"
        )
    x, y, z = (int(n) for n in whole)
    return (x, y, z), (lengths[0] / 1000, lengths[1] / 1000, lengths[2] / 1000)


def _check_unit(where: str, matrix: Matrix, fov_m: Vector, warnings: list[str]) -> None:
    """Warn of voxels that no MRI has. The thickness of a single slice is not judged: it may be a projection."""
    n_axes = 3 if matrix[2] > 1 else 2
    voxels = [1e3 * length / n for length, n in zip(fov_m[:n_axes], matrix[:n_axes], strict=True)]
    low, high = VOXEL_MM
    if all(low <= voxel <= high for voxel in voxels):
        return
    likely = [factor for factor in UNITS if all(low <= factor * voxel <= high for voxel in voxels)]
    nearest = min(likely, key=lambda factor: abs(math.log(factor * voxels[0])), default=None)  # to 1 mm
    unit = f"likely {UNITS[nearest]}, not millimetres" if nearest else "another unit than millimetres, or wrong"
    shown = " x ".join(f"{1e3 * length:g}" for length in fov_m)
    warnings.append(
        f"{where}: fieldOfView_mm is {shown}, so a voxel {' x '.join(f'{voxel:.2g}' for voxel in voxels)} mm: {unit}; "
        "sizes and places in the images follow it, correct the XML header"
    )


def _check_recon(index: int, encoded: Matrix, recon: Matrix, source: str) -> None:
    """Refuse an image that no memory could hold, and that k-space of this size could not fill."""
    n_axes = 3 if encoded[2] > 1 else 2
    if any(m > MAX_FINER * n for n, m in zip(encoded[:n_axes], recon[:n_axes], strict=True)):
        raise InputError(
            f"reconSpace of encoding {index} has the matrix {_times(recon)}, more than {MAX_FINER} times the encoded one, "
            f"{_times(encoded)}",
            source,
            "correct the XML header",
        )


def _limits(node: ElementTree.Element | None, name: str, source: str) -> Limits | None:
    element = child_of(node, name)
    minimum, maximum = number_of(element, "minimum", source), number_of(element, "maximum", source)
    if maximum is None:
        return None
    centre = number_of(element, "center", source)
    return Limits(int(minimum or 0), int(maximum), None if centre is None else int(centre))


def _study(root: ElementTree.Element, source: str, warnings: list[str]) -> dict[str, Any]:
    """Leaves of the descriptive sections by their names; `TR`, `TE` and the like as tuples of numbers, in ms and degrees.

    Nothing in an image rests on them: what should be a number and is none (converters copy ``NaN`` or ``ETH``) is left out.
    """
    study: dict[str, Any] = {}
    left_out: dict[str, str] = {}

    def number(name: str, text: str) -> float | None:
        try:
            return to_number(text, name, source)
        except InputError:
            left_out[name] = text[:40]
            return None

    sections = ("subjectInformation", "studyInformation", "measurementInformation", "acquisitionSystemInformation")
    for section in (*sections, "experimentalConditions"):
        for leaf in leaves_of(child_of(root, section)):
            name, text = local_name(leaf.tag), (leaf.text or "").strip()
            value = number(name, text) if text and name in NUMBERS else text
            if text and value is not None:
                study[name] = value
    for leaf in leaves_of(child_of(root, "sequenceParameters")):
        name, text = local_name(leaf.tag), (leaf.text or "").strip()
        value = text if name in SEQUENCE_TEXT or not text else number(name, text)
        if text and value is not None:
            study[name] = value if name in SEQUENCE_TEXT else (*study.get(name, ()), value)
    for node in children_of(child_of(root, "userParameters"), None):
        key, value = text_of(node, "name"), text_of(node, "value")
        if key and value is not None:
            study.setdefault("userParameters", {})[key] = value
    if left_out:
        shown = ", ".join(f"{name} '{text}'" for name, text in left_out.items())
        warnings.append(f"left out of the XML header, as they are no numbers: {shown}")
    return study


def _times(matrix: Matrix) -> str:
    return " x ".join(str(n) for n in matrix)
