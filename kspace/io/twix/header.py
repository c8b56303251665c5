"""Text headers of Siemens twix files, and their conversion to the ISMRMRD header."""

from __future__ import annotations

import math
import re
import struct
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kspace.epi.pulseq import PulseqLines
from kspace.errors import InputError
from kspace.io.mrd.flags import PHASE_CORRECTION

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
PROTON_HZ_PER_T = 42.577478e6
# Relative equivalent noise bandwidth of Siemens receivers, as siemens_to_ismrmrd writes it.
RELATIVE_BANDWIDTH = 0.793
EPI_SEQUENCE_TYPE = 4
NO_REGRIDDING, SINUSOIDAL = 1, 4  # alRegridMode
TRAJECTORIES = {1: "cartesian", 2: "radial", 4: "spiral"}
CALIBRATION_MODES = {
    1: "other",
    2: "embedded",
    4: "separate",
    8: "separate",
    16: "interleaved",
    32: "interleaved",
    64: "interleaved",
}
LIMITS = {
    "kspace_encoding_step_1": "kspace_encode_step_1", "kspace_encoding_step_2": "kspace_encode_step_2", "average": "average",
    "slice": "slice", "contrast": "contrast", "phase": "phase", "repetition": "repetition", "set": "set", "segment": "segment",
}  # fmt: skip
MAX_LINE = 1 << 16


@dataclass(frozen=True)
class TwixProtocol:
    """Sections of a twix header as nested dictionaries.

    Attributes
    ----------
    yaps
        Measurement protocol (ASCCONV), with entries such as ``sKSpace.lBaseResolution``.
    meas, dicom
        Derived parameters and DICOM parameters by name.
    """

    yaps: dict[str, Any]
    meas: dict[str, Any]
    dicom: dict[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """Protocol value by dotted name, such as ``sSliceArray.asSlice[0].dThickness``; `default` if missing."""
        value: Any = self.yaps
        for part in re.findall(r"\w+", name):
            try:
                value = value[int(part)] if isinstance(value, list) else value[part]
            except (KeyError, IndexError, TypeError, ValueError):
                return default
        return value

    def number(self, *names: str) -> float | None:
        """First finite number among `names`, each looked up in the protocol, derived and DICOM parameters."""
        for name in names:
            for value in (self.get(name), self.meas.get(name), self.dicom.get(name)):
                if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                    return float(value)
        return None

    def text(self, *names: str) -> str | None:
        """First non-empty text among `names`, looked up as in `number`."""
        for name in names:
            for value in (self.get(name), self.meas.get(name), self.dicom.get(name)):
                if isinstance(value, str) and value.strip('" '):
                    return value.strip('" ')
        return None

    def numbers(self, name: str) -> list[float]:
        """Leading finite numbers of a list."""
        values = self.get(name) or self.meas.get(name) or []
        found: list[float] = []
        for value in values if isinstance(values, list) else []:
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                break
            found.append(float(value))
        return found

    def dwell_us(self, echo: int) -> float:
        """Dwell time in microseconds, oversampling included; 0 if unknown."""
        times = self.numbers("sRXSPEC.alDwellTime") or self.numbers("alDwellTime")
        positive = [time for time in times if time > 0]
        if not positive:
            return 0.0
        return (times[echo] if echo < len(times) and times[echo] > 0 else positive[0]) / 1000

    @property
    def is_epi(self) -> bool:
        """Whether the scan is echo planar, with bipolar readouts and ramp sampling."""
        regrid = self.numbers("alRegridMode")
        return (
            self.number("ucSequenceType") == EPI_SEQUENCE_TYPE
            or (self.text("tScanningSequence") or "").startswith("EP")
            or bool(regrid and regrid[0] > 1)
        )


def read_protocol(header: bytes, path: Path) -> TwixProtocol:
    """Parse the text header of a measurement.

    Parameters
    ----------
    header
        Complete header, which starts with its length in four bytes.
    path
        Name of the file, for error messages.

    Raises
    ------
    InputError
        If it is not a twix header, or is damaged.
    """
    from twixtools.twixprot import parse_buffer

    sections: dict[str, dict[str, Any]] = {}
    for name, text in _sections(header, path).items():
        if name in ("MeasYaps", "Phoenix", "Meas", "Dicom"):
            _check_text(text, path)
            try:
                sections[name] = parse_buffer(text)
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                raise InputError(
                    f"the header's section {name} is damaged ({type(error).__name__}: {error})",
                    path,
                    "copy it again from the scanner",
                ) from error
    yaps = sections.get("MeasYaps") or sections.get("Phoenix")
    if not yaps:
        raise InputError(
            f"the header has no protocol (MeasYaps), it has {', '.join(sections) or 'nothing'}",
            path,
            "copy it again from the scanner",
        )
    return TwixProtocol(yaps, sections.get("Meas", {}), sections.get("Dicom", {}))


def header_xml(
    protocol: TwixProtocol,
    headers: NDArray[np.void],
    imaging: NDArray[np.bool_],
    path: Path,
    lines: PulseqLines | None = None,
) -> bytes:
    """Format the ISMRMRD header of a scan.

    Parameters
    ----------
    protocol
        Protocol of the scan.
    headers
        Acquisition headers ``(readout,)`` of the scan and its noise readouts.
    imaging
        Bool ``(readout,)``: True for imaging and calibration lines.
    path
        Name of the file, for error messages.
    lines
        Of the echo-planar sequence that Pulseq played; they decide on matrix and field of view.

    Raises
    ------
    InputError
        If the matrix or the field of view is missing.
    """
    if not imaging.any():
        raise InputError(f"none of the {len(headers)} readouts is an imaging line", path, "copy it again from the scanner")
    root = ET.Element("ismrmrdHeader", xmlns=NAMESPACE)
    _measurement(root, protocol)
    _system(root, protocol, int(headers["active_channels"][imaging][0]))
    conditions = ET.SubElement(root, "experimentalConditions")
    field_t = protocol.number("flMagneticFieldStrength", "sProtConsistencyInfo.flNominalB0") or 0.0
    nucleus = protocol.text("sTXSPEC.asNucleusInfo[0].tNucleus") or "1H"
    frequency = protocol.number("sTXSPEC.asNucleusInfo[0].lFrequency", "lFrequency") if nucleus.startswith("1H") else None
    _add(conditions, "H1resonanceFrequency_Hz", round(frequency or field_t * PROTON_HZ_PER_T))
    _encoding(root, protocol, headers[imaging], _count_navigators(headers), path, lines)
    _sequence(root, protocol)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _sections(header: bytes, path: Path) -> dict[str, str]:
    """Header sections by name; stored as a count, then name, length and text of each."""
    (count,) = struct.unpack_from("<I", header, 4)
    position, found = 8, {}
    for _ in range(min(count, 64)):
        start = re.compile(rb"(\w{4,})\x00(.{4})", re.DOTALL).search(header, position, min(position + 48, len(header)))
        if start is None:
            break
        (length,) = struct.unpack("<I", start.group(2))
        if start.end() + length > len(header):
            raise InputError(
                f"the header's section {start.group(1).decode()} runs past its end: damaged",
                path,
                "copy it again from the scanner",
            )
        found[start.group(1).decode("latin1")] = header[start.end() : start.end() + length].decode("latin1")
        position = start.end() + length
    return found


def _check_text(text: str, path: Path) -> None:
    """Refuse headers that would exhaust the memory or time of the parser."""
    if re.search(r"\[\d{6,}\]\s*[.=]|\[\d{6,}\]\.", text):
        raise InputError(
            "the header has a list of more than 99999 items: not from a scanner, or damaged",
            path,
            "copy it again from the scanner",
        )
    if "### ASCCONV BEGIN" in text and max(map(len, text.splitlines())) > MAX_LINE:
        raise InputError(
            f"the header has a line of more than {MAX_LINE} characters: not from a scanner, or damaged",
            path,
            "copy it again from the scanner",
        )


def _measurement(root: ET.Element, protocol: TwixProtocol) -> None:
    node = ET.SubElement(root, "measurementInformation")
    _add(node, "measurementID", _whole(protocol.number("MeasUID")))
    _add(node, "patientPosition", protocol.text("tPatientPosition", "PatientPosition", "sPatPosition") or "HFS")
    _add(node, "protocolName", protocol.text("tProtocolName"))
    _add(node, "sequenceName", protocol.text("tSequenceFileName"))
    _add(node, "frameOfReferenceUID", protocol.text("tFrameOfReference", "FrameOfReference"))


def _system(root: ET.Element, protocol: TwixProtocol, n_coils: int) -> None:
    node = ET.SubElement(root, "acquisitionSystemInformation")
    _add(node, "systemVendor", protocol.text("Manufacturer") or "SIEMENS")
    _add(node, "systemModel", protocol.text("ManufacturersModelName"))
    _add(node, "systemFieldStrength_T", protocol.number("flMagneticFieldStrength", "sProtConsistencyInfo.flNominalB0"))
    _add(node, "relativeReceiverNoiseBandwidth", RELATIVE_BANDWIDTH)
    _add(node, "receiverChannels", n_coils)
    coils = protocol.get("sCoilSelectMeas.aRxCoilSelectData[0].asList") or protocol.get("asCoilSelectMeas[0].asList") or []
    labels = []
    for coil in coils if isinstance(coils, list) else []:
        identity = coil.get("sCoilElementID", {}) if isinstance(coil, dict) else {}
        channel = coil.get("lADCChannelConnected") if isinstance(coil, dict) else None
        if isinstance(channel, int) and identity:
            name = f"{identity.get('tCoilID', '')}:{identity.get('lCoilCopy', '')}:{identity.get('tElement', '')}"
            labels.append((channel, name.replace('"', "")))
    # Channels of a readout are in the order of their receivers.
    for channel, name in sorted(labels) if len(labels) == n_coils else []:
        label = ET.SubElement(node, "coilLabel")
        _add(label, "coilNumber", channel)
        _add(label, "coilName", name)
    _add(node, "institutionName", protocol.text("InstitutionName"))


def _encoding(
    root: ET.Element,
    protocol: TwixProtocol,
    headers: NDArray[np.void],
    n_navigators: int,
    path: Path,
    lines: PulseqLines | None,
) -> None:
    if lines is None:
        encoded, recon = _spaces(protocol, headers, path)
    else:
        encoded = recon = [*lines.matrix, 1], [1e3 * length for length in lines.fov_m]
    node = ET.SubElement(root, "encoding")
    for name, (matrix, fov_mm) in (("encodedSpace", encoded), ("reconSpace", recon)):
        space = ET.SubElement(node, name)
        for child, values in (("matrixSize", matrix), ("fieldOfView_mm", fov_mm)):
            sizes = ET.SubElement(space, child)
            for axis, value in zip("xyz", values, strict=True):
                _add(sizes, axis, value)
    limits = ET.SubElement(node, "encodingLimits")
    for name, counter in LIMITS.items():
        counted = headers["idx"][counter]
        place = {"kspace_encoding_step_1": 5, "kspace_encoding_step_2": 6}.get(name)
        announced = int(protocol.number("lRepetitions") or 0) if name == "repetition" else 0
        limit = ET.SubElement(limits, name)
        _add(limit, "minimum", int(counted.min()))
        _add(limit, "maximum", max(int(counted.max()), announced))
        _add(limit, "center", 0 if place is None else int(np.median(headers["idx"]["user"][:, place])))
    trajectory = TRAJECTORIES.get(int(protocol.number("sKSpace.ucTrajectory") or 1), "other")
    _add(node, "trajectory", "epi" if protocol.is_epi or lines is not None else trajectory)
    if protocol.is_epi:
        _epi(node, protocol, headers, n_navigators)
    parallel = ET.SubElement(node, "parallelImaging")
    factors = ET.SubElement(parallel, "accelerationFactor")
    _add(factors, "kspace_encoding_step_1", int(protocol.number("sPat.lAccelFactPE") or 1))
    _add(factors, "kspace_encoding_step_2", int(protocol.number("sPat.lAccelFact3D") or 1))
    _add(parallel, "calibrationMode", CALIBRATION_MODES.get(int(protocol.number("sPat.ucRefScanMode") or 1), "other"))
    if (at_once := slices_at_once(protocol, headers)) > 1:
        _add(ET.SubElement(parallel, "multiband"), "multiband_factor", at_once)
    _add(node, "echoTrainLength", _whole(protocol.number("EchoTrainLength", "sFastImaging.lTurboFactor")))


def slices_at_once(protocol: TwixProtocol, headers: NDArray[np.void]) -> int:
    """Slices that the protocol excites together, if the last repetition of the lines `headers` ``(readout,)`` holds as few as
    that makes: the factor of the protocol alone may be left from another one."""
    factor = int(protocol.number("sSliceAcceleration.lMultiBandFactor") or 1)
    idx = headers["idx"]
    seen = len(np.unique(idx["slice"][idx["repetition"] == idx["repetition"].max()]))
    return factor if factor > 1 and seen * factor <= int(protocol.number("sSliceArray.lSize") or 0) else 1


def _spaces(
    protocol: TwixProtocol, headers: NDArray[np.void], path: Path
) -> tuple[tuple[list[int], list[float]], tuple[list[int], list[float]]]:
    """Matrix size and field of view in mm, ``[x, y, z]`` each, of the encoded and the recon space."""
    base = protocol.number("sKSpace.lBaseResolution")
    fov = [protocol.number(f"sSliceArray.asSlice[0].{name}") for name in ("dReadoutFOV", "dPhaseFOV", "dThickness")]
    lines = protocol.number("iPEFTLength", "sKSpace.lPhaseEncodingLines")
    if base is None or lines is None or fov[0] is None or fov[1] is None:
        raise InputError(
            "the header lacks the matrix (lBaseResolution, lPhaseEncodingLines) or the field of view",
            path,
            "copy it again from the scanner",
        )
    read_mm, phase_mm, thick_mm = fov[0], fov[1], fov[2] or 0.0
    oversampling = protocol.number("flReadoutOSFactor") or float(round(int(headers["number_of_samples"].max()) / base)) or 1.0
    is_3d = protocol.number("sKSpace.ucDimension") == 4
    partitions = protocol.number("i3DFTLength", "sKSpace.lPartitions") if is_3d else 1
    phase_os = 1 + (protocol.number("flPhaseOS", "sKSpace.dPhaseOversamplingForDialog") or 0.0)
    slice_os = 1 + (protocol.number("flSliceOS", "sKSpace.dSliceOversamplingForDialog") or 0.0) if is_3d else 1.0
    interpolated = 2 if protocol.number("sKSpace.uc2DInterpolation") == 1 else 1
    rows = protocol.number("NImageLins", "ImageLines")
    image_y = rows / interpolated if rows else base * phase_mm / read_mm
    slab = protocol.number("sKSpace.lImagesPerSlab") if is_3d else 1
    encoded = [round(base * oversampling), round(lines / interpolated), round(partitions or 1)]
    recon = [round(base), min(round(image_y), round(base)) or 1, round(slab or partitions or 1)]
    return (
        (encoded, [read_mm * oversampling, phase_mm * phase_os, thick_mm * slice_os]),
        (recon, [read_mm, phase_mm, thick_mm]),
    )


def _epi(node: ET.Element, protocol: TwixProtocol, headers: NDArray[np.void], n_navigators: int) -> None:
    """Add the echo-planar trajectory parameters under the names that Gadgetron uses, times in microseconds."""
    description = ET.SubElement(node, "trajectoryDescription")
    _add(description, "identifier", "ConventionalEPI")
    names = {
        "rampUpTime": "alRegridRampupTime", "rampDownTime": "alRegridRampdownTime", "flatTopTime": "alRegridFlattopTime",
        "acqDelayTime": "alRegridDelaySamplesTime", "numSamples": "alRegridDestSamples",
    }  # fmt: skip
    mode = (protocol.numbers("alRegridMode") or [NO_REGRIDDING])[0]
    values = {} if mode == NO_REGRIDDING else {name: protocol.numbers(source)[:1] for name, source in names.items()}
    whole: dict[str, int] = {"etl": int(protocol.number("EchoTrainLength") or 0), "numberOfNavigators": n_navigators}
    whole |= {name: int(value[0]) for name, value in values.items() if value}
    spacing = protocol.number("lEchoSpacing", "sFastImaging.lEchoSpacing")
    whole |= {} if spacing is None else {"echoSpacing": int(spacing)}
    for name, value in whole.items():
        parameter = ET.SubElement(description, "userParameterLong")
        _add(parameter, "name", name)
        _add(parameter, "value", value)
    parameter = ET.SubElement(description, "userParameterDouble")
    _add(parameter, "name", "dwellTime")
    _add(parameter, "value", float(headers["sample_time_us"][0]))


def _count_navigators(headers: NDArray[np.void]) -> int:
    """Length of the first run of navigators that precede an echo train."""
    is_navigator = (headers["flags"] & PHASE_CORRECTION) != 0
    if not is_navigator.any():
        return 0
    run = is_navigator[int(np.argmax(is_navigator)) :]
    return len(run) if run.all() else int(np.argmin(run))


def _sequence(root: ET.Element, protocol: TwixProtocol) -> None:
    node = ET.SubElement(root, "sequenceParameters")
    n_echoes = int(protocol.number("lContrasts") or 1)
    inverted = protocol.number("sPrepPulses.ucInversion") in (1, 2)
    for name, values in (
        ("TR", protocol.numbers("alTR")),
        ("TE", protocol.numbers("alTE")[:n_echoes]),
        ("TI", protocol.numbers("alTI") if inverted else []),
    ):
        for value in values:
            _add(node, name, value / 1000)
    for value in protocol.numbers("adFlipAngleDegree")[:1]:
        _add(node, "flipAngle_deg", value)
    _add(node, "sequence_type", protocol.text("tScanningSequence"))


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _add(parent: ET.Element, name: str, value: object) -> None:
    """Add a child element with the text of `value`, unless that is None."""
    if value is not None:
        text = f"{value:.10g}" if isinstance(value, float) else str(value)
        ET.SubElement(parent, name).text = "".join(c for c in text if c.isprintable())
