"""Reader and writer of the ISMRMRD XML header in fastMRI files."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import Any

from kspace.container import Header, Matrix, Vector
from kspace.errors import InputError
from kspace.io.mrd import header as mrd_header

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class FastmriHeader:
    """Header of a fastMRI file; ``None`` or empty for missing entries.

    Attributes
    ----------
    encoded_matrix, recon_matrix
        Matrix size ``(x, y, z)``: x is the readout (rows of the stored arrays), y the phase encoding (columns).
    encoded_fov_m, recon_fov_m
        Fields of view ``(x, y, z)``, metres.
    ky_centre, ky_max
        Limits of ``kspace_encoding_step_1``: line through the centre of k-space, and last acquired line (inclusive).
    acceleration
        Nominal ``(ky, kz)``.
    study
        Scan header fields under their ISMRMRD names, as in `kspace.container.Header.study`.
    warnings
        Missing entries with the assumptions made, and implausible entries.
    """

    encoded_matrix: Matrix | None = None
    recon_matrix: Matrix | None = None
    encoded_fov_m: Vector | None = None
    recon_fov_m: Vector | None = None
    ky_centre: int | None = None
    ky_max: int | None = None
    acceleration: tuple[float, float] = (1.0, 1.0)
    study: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def acquired_range(self, n_ky: int) -> tuple[int, int]:
        """First and past-the-last acquired line of `n_ky`.

        As in fastMRI, the left margin is ``encoded_y // 2 - centre`` lines, followed by lines 0 to ``maximum``. Both ends are
        clipped to the matrix, where fastMRI would count a negative index from the end.
        """
        if self.encoded_matrix is None or self.ky_centre is None or self.ky_max is None:
            return 0, n_ky
        left = self.encoded_matrix[1] // 2 - self.ky_centre
        return max(left, 0), min(left + self.ky_max + 1, n_ky)


def parse_header(text: str | bytes, source: str) -> FastmriHeader:
    """Parse the XML header of a fastMRI file as tolerantly as that of a raw scan; the first encoding is used.

    Parameters
    ----------
    text
        XML document.
    source
        Name of the file, for error messages.

    Raises
    ------
    InputError
        If it is not XML or not an ISMRMRD header, has a document type (entities can expand without bound), or has
        impossible sizes.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"the ismrmrd_header is larger than {MAX_BYTES} bytes", source, "correct or recreate the file")
    parsed = mrd_header.parse_header(text, source)
    encoding = parsed.encodings[0]
    limits = encoding.limits.get("kspace_encoding_step_1")
    return FastmriHeader(
        encoded_matrix=encoding.encoded_matrix,
        recon_matrix=encoding.recon_matrix,
        encoded_fov_m=encoding.encoded_fov_m,
        recon_fov_m=encoding.recon_fov_m,
        ky_centre=None if limits is None else limits.centre,
        ky_max=None if limits is None else limits.maximum,
        acceleration=encoding.acceleration,
        study=parsed.study,
        warnings=parsed.warnings,
    )


def format_header(header: Header, n_slices: int, n_coils: int) -> bytes:
    """Format the XML header that fastMRI loaders need, from a `Header`: both spaces, limits, and the entries of `study`.

    The limits describe the stored grid (centre at ``ky // 2``, no margin); the mask of the file tells which lines were
    acquired.
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


# The schema prescribes this order.
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


def _add_xyz(parent: ET.Element, name: str, values: Any) -> None:
    element = ET.SubElement(parent, name)
    for axis, value in zip("xyz", values, strict=True):
        ET.SubElement(element, axis).text = str(value)
