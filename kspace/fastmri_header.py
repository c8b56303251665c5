"""The ISMRMRD XML header inside a fastMRI file: read tolerantly with the standard library, and written.

Files that were distributed or converted carry headers of several schema versions, with and without namespace, and often
incomplete; a schema-bound parser would refuse them. Here a missing element is None, and a wrong one an `InputError`.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import Any

from kspace.container import Header, Matrix, Vector
from kspace.errors import InputError

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
MAX_BYTES = 4 << 20
MAX_POINTS = 65535

# Sections whose leaves become `Header.study`. The subject's name and birth date are none of a reconstruction's business.
_SECTIONS = (
    "studyInformation",
    "measurementInformation",
    "acquisitionSystemInformation",
    "experimentalConditions",
    "sequenceParameters",
)
_NUMBERS = ("systemFieldStrength_T", "relativeReceiverNoiseBandwidth")
_WHOLE_NUMBERS = ("receiverChannels", "H1resonanceFrequency_Hz")
_NUMBER_LISTS = ("TR", "TE", "TI", "flipAngle_deg", "echo_spacing")


@dataclass(frozen=True)
class ScanHeader:
    """What a fastMRI file's header says; ``None`` and empty where it says nothing.

    Attributes
    ----------
    encoded_matrix, recon_matrix
        Points ``(x, y, z)``: x is the readout (rows of the file's arrays), y the phase encoding (their columns).
    encoded_fov_m, recon_fov_m
        Fields of view ``(x, y, z)``, metres.
    ky_centre, ky_max
        Limits of ``kspace_encoding_step_1``: the line through the centre of k-space, and the last line acquired (inclusive).
    acceleration
        Nominal ``(ky, kz)``.
    study
        Facts of the scan under ISMRMRD's names, as in `kspace.container.Header.study`.
    """

    encoded_matrix: Matrix | None = None
    recon_matrix: Matrix | None = None
    encoded_fov_m: Vector | None = None
    recon_fov_m: Vector | None = None
    ky_centre: int | None = None
    ky_max: int | None = None
    acceleration: tuple[float, float] = (1.0, 1.0)
    study: dict[str, Any] = field(default_factory=dict)

    def acquired_range(self, n_ky: int) -> tuple[int, int]:
        """First and past-the-last acquired line of `n_ky`; what lies outside was never acquired.

        fastMRI's rule: the margin on the left is ``encoded_y // 2 - centre`` lines, and lines 0 to ``maximum`` follow it.
        Both ends are kept inside the matrix, where fastMRI would count a negative one from the far end.
        """
        if self.encoded_matrix is None or self.ky_centre is None or self.ky_max is None:
            return 0, n_ky
        left = self.encoded_matrix[1] // 2 - self.ky_centre
        return max(left, 0), min(left + self.ky_max + 1, n_ky)


def parse_header(text: str | bytes, source: str) -> ScanHeader:
    """Parse the XML header of a fastMRI file. Namespaces and schema versions do not matter.

    Parameters
    ----------
    text
        The document.
    source
        Name of the file, for messages.

    Raises
    ------
    InputError
        If it is not XML, is no ISMRMRD header, brings a document type (entities can expand without bound), or holds sizes
        that cannot be.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"the ismrmrd_header is larger than {MAX_BYTES} bytes", source)
    root = _parse(text, source)
    if _name(root) != "ismrmrdHeader":
        raise InputError(f"the ismrmrd_header is a <{_name(root)}>, expected <ismrmrdHeader>", source)
    study = _study(root, source)
    encoding = _child(root, "encoding")
    if encoding is None:
        return ScanHeader(study=study)
    limits = _child(encoding, "encodingLimits", "kspace_encoding_step_1")
    factor = _child(encoding, "parallelImaging", "accelerationFactor")
    return ScanHeader(
        encoded_matrix=_matrix(_child(encoding, "encodedSpace", "matrixSize"), "encodedSpace", source),
        recon_matrix=_matrix(_child(encoding, "reconSpace", "matrixSize"), "reconSpace", source),
        encoded_fov_m=_fov(_child(encoding, "encodedSpace", "fieldOfView_mm"), "encodedSpace", source),
        recon_fov_m=_fov(_child(encoding, "reconSpace", "fieldOfView_mm"), "reconSpace", source),
        ky_centre=_whole(limits, "center", source),
        ky_max=_whole(limits, "maximum", source),
        acceleration=tuple(
            _number(_text(factor, f"kspace_encoding_step_{i}") or 1, "accelerationFactor", source) for i in (1, 2)
        ),  # type: ignore[arg-type]
        study=study,
    )


def format_header(header: Header, n_slices: int, n_coils: int) -> bytes:
    """Write the XML header that fastMRI's loaders need, from a `Header`: both spaces, limits, and the facts in `study`.

    The limits describe the grid as it is stored (centre at ``ky // 2``, no margin); which lines of it were acquired is the
    business of the file's mask.
    """
    root = ET.Element("ismrmrdHeader", xmlns=NAMESPACE)
    study = dict(header.study)
    study.setdefault("receiverChannels", n_coils)
    study.setdefault("H1resonanceFrequency_Hz", round(42.577e6 * float(study.get("systemFieldStrength_T", 0.0))))
    for section, names in _WRITTEN.items():
        element = ET.Element(section)
        for name in names:
            value = study.get(name)
            for item in value if isinstance(value, (tuple, list)) else [value]:
                if item is not None:
                    ET.SubElement(element, name).text = str(item)
        if len(element):
            root.append(element)
    encoding = ET.SubElement(root, "encoding")
    for space, matrix, fov in (
        ("encodedSpace", header.encoded_matrix, header.encoded_fov_m),
        ("reconSpace", header.recon_matrix, header.recon_fov_m),
    ):
        element = ET.SubElement(encoding, space)
        _add_xyz(element, "matrixSize", matrix)
        _add_xyz(element, "fieldOfView_mm", [1e3 * length for length in fov])
    limits = ET.SubElement(encoding, "encodingLimits")
    n_ky = header.encoded_matrix[1]
    for name, n, centre in (
        ("kspace_encoding_step_1", n_ky, n_ky // 2),
        ("kspace_encoding_step_2", 1, 0),
        ("slice", n_slices, n_slices // 2),
    ):
        element = ET.SubElement(limits, name)
        for key, value in (("minimum", 0), ("maximum", n - 1), ("center", centre)):
            ET.SubElement(element, key).text = str(value)
    ET.SubElement(encoding, "trajectory").text = "cartesian"
    if header.acceleration != (1.0, 1.0):
        factor = ET.SubElement(ET.SubElement(encoding, "parallelImaging"), "accelerationFactor")
        for i, value in enumerate(header.acceleration, start=1):
            ET.SubElement(factor, f"kspace_encoding_step_{i}").text = str(round(value))
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


# Order matters to the schema.
_WRITTEN = {
    "studyInformation": ("studyDate", "studyTime", "studyID", "studyDescription", "studyInstanceUID"),
    "measurementInformation": (
        "measurementID",
        "seriesDate",
        "seriesTime",
        "patientPosition",
        "protocolName",
        "seriesDescription",
        "frameOfReferenceUID",
    ),
    "acquisitionSystemInformation": (
        "systemVendor",
        "systemModel",
        "systemFieldStrength_T",
        "relativeReceiverNoiseBandwidth",
        "receiverChannels",
        "institutionName",
        "stationName",
    ),
    "experimentalConditions": ("H1resonanceFrequency_Hz",),
    "sequenceParameters": ("TR", "TE", "TI", "flipAngle_deg", "sequence_type", "echo_spacing"),
}


class _NoDoctype(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it brings a document type")


def _parse(text: str | bytes, source: str) -> ET.Element:
    try:
        parser = ET.XMLParser(target=_NoDoctype())
        parser.feed(text.rstrip(b"\0") if isinstance(text, bytes) else text.rstrip("\0"))
        return parser.close()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise InputError(f"the ismrmrd_header cannot be read ({error})", source) from None


def _name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _child(element: ET.Element | None, *names: str) -> ET.Element | None:
    for name in names:
        if element is None:
            return None
        element = next((child for child in element if _name(child) == name), None)
    return element


def _text(element: ET.Element | None, name: str) -> str | None:
    child = _child(element, name)
    return child.text.strip() if child is not None and child.text else None


def _number(text: str | float, name: str, source: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{name} in the ismrmrd_header is {text!r}, expected a number", source)
    return value


def _whole(element: ET.Element | None, name: str, source: str) -> int | None:
    text = _text(element, name)
    if text is None:
        return None
    value = _number(text, name, source)
    if value != int(value) or not 0 <= value <= MAX_POINTS:
        raise InputError(f"{name} in the ismrmrd_header is {text}, expected a whole number from 0 to {MAX_POINTS}", source)
    return int(value)


def _matrix(element: ET.Element | None, space: str, source: str) -> Matrix | None:
    x, y, z = (_whole(element, axis, source) for axis in "xyz")
    if x is None or y is None:
        return None
    if 0 in (x, y):
        raise InputError(f"the matrix of the {space} is {x} x {y} points", source)
    return x, y, z or 1


def _fov(element: ET.Element | None, space: str, source: str) -> Vector | None:
    texts = [_text(element, axis) for axis in "xyz"]
    if texts[0] is None or texts[1] is None:
        return None
    x, y, z = (1e-3 * _number(text or 0, f"fieldOfView_mm of the {space}", source) for text in texts)
    return x, y, z


def _study(root: ET.Element, source: str) -> dict[str, Any]:
    study: dict[str, Any] = {}
    for section in _SECTIONS:
        for leaf in _child(root, section) or ():
            name, text = _name(leaf), (leaf.text or "").strip()
            if len(leaf) or not text:
                continue
            if name in _NUMBER_LISTS:
                study[name] = (*study.get(name, ()), _number(text, name, source))
            elif name in _NUMBERS:
                study[name] = _number(text, name, source)
            elif name in _WHOLE_NUMBERS:
                study[name] = int(_number(text, name, source))
            else:
                study[name] = text
    return study


def _add_xyz(parent: ET.Element, name: str, values: Any) -> None:
    element = ET.SubElement(parent, name)
    for axis, value in zip("xyz", values, strict=True):
        ET.SubElement(element, axis).text = str(value)
