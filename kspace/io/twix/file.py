"""Conversion of Siemens raw data (twix, ``meas_*.dat``) to ISMRMRD with `twixtools`, an optional dependency.

Samples are copied unchanged: no conjugation, reversal, oversampling removal or correction. Flags and counters of readouts are
translated as by ``siemens_to_ismrmrd``, so that a single reader interprets them. The last measurement of a file is
the scan; noise readouts of earlier measurements are prepended.

Patient names are not copied.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kspace.epi.pulseq import PulseqLines, read_lines
from kspace.errors import InputError
from kspace.io.mrd.flags import flag
from kspace.io.mrd.write import new_acquisition_headers, write_raw
from kspace.io.twix.header import SINUSOIDAL, TwixProtocol, header_xml, read_protocol

ACQEND, SYNCDATA = 1 << 0, 1 << 5
NOISE, PATREF, PATREF_AND_IMAGE = 1 << 25, 1 << 22, 1 << 23
# Bits of Siemens' evaluation mask and the corresponding ISMRMRD flags.
FLAGS = {
    1 << 1: "IS_RTFEEDBACK_DATA",
    1 << 2: "IS_HPFEEDBACK_DATA",
    1 << 11: "LAST_IN_MEASUREMENT",
    1 << 14: "IS_PHASE_STABILIZATION_REFERENCE",
    1 << 15: "IS_PHASE_STABILIZATION",
    1 << 21: "IS_PHASECORR_DATA",
    1 << 24: "IS_REVERSE",
    NOISE: "IS_NOISE_MEASUREMENT",
    1 << 28: "FIRST_IN_SLICE",
    1 << 29: "LAST_IN_SLICE",
    1 << 51: "IS_DUMMYSCAN_DATA",
}
NOT_IMAGING = (1 << 1) | (1 << 2) | (1 << 14) | (1 << 15) | (1 << 21) | NOISE | (1 << 51)
COUNTERS = {
    "kspace_encode_step_1": "Lin", "kspace_encode_step_2": "Par", "average": "Ave", "slice": "Sli", "contrast": "Eco",
    "phase": "Phs", "repetition": "Rep", "set": "Set", "segment": "Seg",
}  # fmt: skip
MAX_HEADER = 64 << 20
MAX_SCANS = 64
RAID_HEADER, RAID_ENTRY = 8, 152
CHANNEL_HEADER = 32
MICROMETRE_MM = 1e-3


@dataclass(frozen=True, eq=False)
class TwixMeasurement:
    """One measurement of a twix file.

    Attributes
    ----------
    protocol
        Parsed text header.
    mdh
        Measurement data headers ``(readout,)``, structured arrays of `twixtools`, without synchronisation data.
    positions
        Byte offsets of the readouts in the file, int64 ``(readout,)``.
    is_ve
        True for the layout of VD and later (one header for all channels), False for VB (one per channel).
    """

    protocol: TwixProtocol
    mdh: NDArray[np.void]
    positions: NDArray[np.int64]
    is_ve: bool


def to_ismrmrd(path: str | PathLike[str], out: str | PathLike[str]) -> tuple[str, ...]:
    """Convert a Siemens twix file to ISMRMRD.

    Parameters
    ----------
    path
        ``.dat`` file of VB, VD, VE or XA software, opened read-only.
    out
        ISMRMRD file to write, atomically; an existing one is replaced.

    Returns
    -------
    tuple
        Notes for the user.

    Raises
    ------
    InputError
        If `twixtools` is not installed, or the file is not twix, truncated or damaged, or without readouts.
    """
    path = Path(path)
    _definitions()
    with _mapped(path) as raw:
        measurements = [_measurement(raw, start, stop, is_ve, path) for start, stop, is_ve in _find_measurements(raw, path)]
        scan = measurements[-1]
        if not len(scan.mdh):
            raise InputError("the last measurement holds no readouts", path, "copy it again from the scanner")
        parts, notes = [scan], []
        if len(measurements) > 1:
            notes.append(f"{len(measurements)} measurements in the file: the last is the scan")
        if not (scan.mdh["EvalInfoMask"] & np.uint64(NOISE)).any():
            noise = _find_noise(measurements[:-1], scan, notes)
            parts = [scan] if noise is None else [noise, scan]
        headers = np.concatenate([_acquisition_headers(part) for part in parts])
        samples = [readout for part in parts for readout in _samples(raw, part)]
        imaging = headers["flags"] & _not_imaging() == 0
        lines = _pulseq_lines(scan.protocol, path, int(imaging.sum()), headers["number_of_samples"][imaging], notes)
        trajectories = None if lines is None else _follow(lines, headers, imaging)
        xml = header_xml(scan.protocol, headers, imaging, path, lines)
        headers["scan_counter"] = np.arange(1, len(headers) + 1)
        write_raw(out, xml, headers, samples, trajectories)
        del samples
    if (scan.protocol.numbers("alRegridMode") or [0])[0] == SINUSOIDAL:
        notes.append("the readout gradient is sinusoidal: regridded as a trapezoid, edges of the image may be distorted")
    if (scan.mdh["EvalInfoMask"] & np.uint64(1 << 10)).any():
        notes.append("the scan requests Siemens' raw data correction factors, which were not applied")
    return tuple(notes)


def _pulseq_lines(
    protocol: TwixProtocol, path: Path, n_readouts: int, n_samples: NDArray[np.uint16], notes: list[str]
) -> PulseqLines | None:
    """The lines of an EPI sequence that Pulseq played, from the ``.seq`` file beside the data; None for other scans."""
    sequence = path.with_suffix(".seq")
    if "pulseq" not in (protocol.text("tSequenceFileName") or "").lower():
        return None
    if not sequence.exists():
        notes.append(
            f"a Pulseq sequence, whose trajectory the data do not hold: put its .seq file beside them as {sequence.name}"
        )
        return None
    try:
        lines = read_lines(sequence)
    except InputError as error:
        notes.append(f"{sequence.name} not used: {error.what}")
        return None
    if n_readouts % len(lines.rows) or np.any(n_samples != lines.kx.shape[1]):
        notes.append(
            f"{sequence.name} not used: {len(lines.rows)} readouts of {lines.kx.shape[1]} samples, the data have others"
        )
        return None
    notes.append(f"trajectory from {sequence.name}")
    return lines


def _follow(lines: PulseqLines, headers: NDArray[np.void], imaging: NDArray[np.bool_]) -> list[NDArray[np.float32]]:
    """Write counters and flags of the `imaging` readouts as the sequence has them; return the trajectories of all."""
    n_lines = len(lines.rows)
    order = np.arange(int(imaging.sum()))
    number = np.full(len(headers), -1)
    number[imaging] = order % n_lines
    headers["idx"]["kspace_encode_step_1"][imaging] = lines.rows[order % n_lines]
    headers["idx"]["repetition"][imaging] = order // n_lines
    headers["idx"]["user"][imaging, 5] = lines.matrix[1] // 2
    headers["trajectory_dimensions"][imaging] = 1
    back = np.zeros(len(headers), bool)
    back[imaging] = (lines.kx[:, -1] < lines.kx[:, 0])[order % n_lines]
    headers["flags"][back] |= flag("IS_REVERSE")
    none = np.zeros(0, np.float32)
    return [none if i < 0 else lines.kx[i].astype(np.float32) for i in number]


def _definitions() -> Any:
    """Definitions of the binary headers in twixtools, an optional dependency."""
    try:
        import twixtools.mdh_def
    except ImportError as error:
        raise InputError(
            "reading Siemens twix files needs the package twixtools", fix="install it with: pip install 'mri-gan-recon[twix]'"
        ) from error
    return twixtools.mdh_def


class _mapped:
    """Read-only memory map of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                self.raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise InputError(
                "the file is empty, expected Siemens twix data", self.path, "copy it again from the scanner"
            ) from error
        except OSError as error:
            raise InputError(f"cannot read ({error.strerror})", self.path, "check the path") from error
        return self.raw

    def __exit__(self, *_: object) -> None:
        try:
            self.raw.close()
        except BufferError:  # a propagating exception still holds views; the map is freed with them
            return


def _find_measurements(raw: mmap.mmap, path: Path) -> list[tuple[int, int, bool]]:
    """First and past-the-last byte of each measurement, and whether it has the layout of VD and later."""
    size = len(raw)
    if size < RAID_HEADER + 8:
        raise InputError(f"{size} bytes are too few for Siemens twix data", path, "copy it again from the scanner")
    first, count = struct.unpack_from("<II", raw, 0)
    if not (first < 10000 and count <= MAX_SCANS):
        return [(0, size, False)]  # VB: starts with the header length, which exceeds this value
    if count == 0 or size < RAID_HEADER + count * RAID_ENTRY:
        raise InputError(
            "not Siemens twix data (its list of measurements is empty or truncated)", path, "copy it again from the scanner"
        )
    found = []
    for i in range(count):
        offset, length = struct.unpack_from("<QQ", raw, RAID_HEADER + i * RAID_ENTRY + 8)
        length = length or (size - offset if count == 1 else 0)
        if length == 0 or offset < RAID_HEADER + count * RAID_ENTRY or offset + length > size:
            raise InputError(
                f"measurement {i + 1} of {count} should end at byte {offset + length} of {size}: truncated, or not twix",
                path,
                "copy it again from the scanner",
            )
        found.append((offset, offset + length, True))
    return found


def _measurement(raw: mmap.mmap, start: int, stop: int, is_ve: bool, path: Path) -> TwixMeasurement:
    (length,) = struct.unpack_from("<I", raw, start)
    if not 16 <= length <= min(MAX_HEADER, stop - start):
        raise InputError(
            f"a header of {length} bytes in a measurement of {stop - start}: not Siemens twix data, or damaged",
            path,
            "copy it again from the scanner",
        )
    protocol = read_protocol(raw[start : start + length], path)
    layout = np.dtype(_definitions().Scan_header if is_ve else _definitions().VB17_header)
    positions = np.asarray(_walk(raw, start + length, stop, layout, is_ve, path), np.int64)
    mdh = np.empty(len(positions), layout)
    for i, position in enumerate(positions):
        mdh[i] = np.frombuffer(raw, layout, 1, position)[0]
    return TwixMeasurement(protocol, mdh, positions, is_ve)


def _walk(raw: mmap.mmap, start: int, stop: int, layout: np.dtype[np.void], is_ve: bool, path: Path) -> list[int]:
    """Byte offsets of the readouts, from the chain of headers up to the end mark."""
    fields = layout.fields
    assert fields is not None  # the layout is a structure
    at_mask, at_samples, at_channels = (int(fields[name][1]) for name in ("EvalInfoMask", "SamplesInScan", "UsedChannels"))
    found: list[int] = []
    position = start
    while position + layout.itemsize <= stop:
        (mask,) = struct.unpack_from("<Q", raw, position + at_mask)
        if mask & ACQEND:
            return found
        if mask & SYNCDATA:
            length = struct.unpack_from("<I", raw, position)[0] & 0x1FFFFFF
        else:
            (n_samples,) = struct.unpack_from("<H", raw, position + at_samples)
            (n_channels,) = struct.unpack_from("<H", raw, position + at_channels)
            between = CHANNEL_HEADER if is_ve else layout.itemsize
            length = n_channels * (between + 8 * n_samples) + (layout.itemsize if is_ve else 0)
            if n_samples == 0 or n_channels == 0:
                raise InputError(
                    f"readout {len(found)} has {n_channels} channels of {n_samples} samples: damaged",
                    path,
                    "copy it again from the scanner",
                )
            found.append(position)
        if length < layout.itemsize:
            raise InputError(
                f"the block at byte {position} declares {length} bytes: the file is damaged",
                path,
                "copy it again from the scanner",
            )
        position += length
    raise InputError(
        f"the file ends in or after readout {len(found)} without the scanner's end mark: it is truncated or damaged",
        path,
        "copy it again from the scanner",
    )


def _find_noise(others: list[TwixMeasurement], scan: TwixMeasurement, notes: list[str]) -> TwixMeasurement | None:
    """Noise readouts with the scan's number of channels, from the latest measurement that has them."""
    n_coils = int(scan.mdh["UsedChannels"][0])
    for other in reversed(others):
        chosen = (other.mdh["EvalInfoMask"] & np.uint64(NOISE)) != 0
        if not chosen.any():
            continue
        channels = np.unique(other.mdh["UsedChannels"][chosen])
        if channels.tolist() != [n_coils]:
            notes.append(f"noise readouts with {channels.tolist()} channels were ignored, the scan has {n_coils}")
            continue
        return TwixMeasurement(other.protocol, other.mdh[chosen], other.positions[chosen], other.is_ve)
    return None


def _samples(raw: mmap.mmap, part: TwixMeasurement) -> list[NDArray[np.complex64]]:
    found = []
    for header, position in zip(part.mdh, part.positions, strict=True):
        skip = CHANNEL_HEADER if part.is_ve else header.dtype.itemsize
        layout = np.dtype([("skip", f"V{skip}"), ("data", "<c8", (int(header["SamplesInScan"]),))])
        start = int(position) + (header.dtype.itemsize if part.is_ve else 0)
        channels = np.frombuffer(raw, layout, int(header["UsedChannels"]), start)
        found.append(np.ascontiguousarray(channels["data"]))
    return found


def _acquisition_headers(part: TwixMeasurement) -> NDArray[np.void]:
    mdh = part.mdh
    headers = new_acquisition_headers(len(mdh), 0, 0)
    headers["measurement_uid"] = mdh["MeasUID"].astype(np.int64) & 0xFFFFFFFF
    headers["acquisition_time_stamp"] = mdh["TimeStamp"]
    headers["physiology_time_stamp"][:, 0] = mdh["PMUTimeStamp"]
    headers["number_of_samples"], headers["center_sample"] = mdh["SamplesInScan"], mdh["CenterCol"]
    headers["active_channels"] = headers["available_channels"] = mdh["UsedChannels"]
    headers["discard_pre"], headers["discard_post"] = mdh["CutOff"]["Pre"], mdh["CutOff"]["Post"]
    headers["sample_time_us"] = [part.protocol.dwell_us(int(echo)) for echo in mdh["Counter"]["Eco"]]
    for name, counter in COUNTERS.items():
        headers["idx"][name] = mdh["Counter"][counter]
    for i, counter in enumerate(("Ida", "Idb", "Idc", "Idd", "Ide")):
        headers["idx"]["user"][:, i] = mdh["Counter"][counter]
    # The centre of k-space, where siemens_to_ismrmrd writes it and its readers expect it.
    headers["idx"]["user"][:, 5], headers["idx"]["user"][:, 6] = mdh["CenterLin"], mdh["CenterPar"]
    parameters = mdh["IceProgramPara"]
    headers["user_int"][:, : min(8, parameters.shape[1])] = parameters[:, :8]
    if part.is_ve:
        headers["user_float"] = parameters[:, 8:16]
        table = np.stack([mdh[f"PTABPos{axis}"] for axis in "XYZ"], -1)
        headers["patient_table_position"] = table * MICROMETRE_MM
    place = mdh["SliceData"]
    headers["position"] = np.stack([place["SlicePos"][axis] for axis in ("Sag", "Cor", "Tra")], -1)
    headers["phase_dir"], headers["read_dir"], headers["slice_dir"] = _directions(place["Quaternion"])
    headers["flags"] = _flags(mdh["EvalInfoMask"])
    return headers


def _directions(quaternion: NDArray[np.float32]) -> tuple[NDArray[np.float64], ...]:
    """Phase, read and slice directions ``(readout 3)`` in patient coordinates, the columns of the rotation matrix of Siemens
    quaternions (w, x, y, z) ``(readout 4)``. Zero quaternions, as in noise readouts, mean no rotation."""
    norm = np.linalg.norm(quaternion.astype(np.float64), axis=-1, keepdims=True)
    w, x, y, z = np.where(norm > 0, quaternion / np.where(norm > 0, norm, 1), [1.0, 0.0, 0.0, 0.0]).T
    phase = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)], -1)
    read = np.stack([2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)], -1)
    across = np.stack([2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)], -1)
    return phase, read, across


def _flags(mask: NDArray[np.uint64]) -> NDArray[np.uint64]:
    flags = np.zeros(len(mask), np.uint64)
    # In echo-planar scans RTFEEDBACK marks the phase-correction navigators; both flags are kept.
    for bit, name in FLAGS.items():
        flags |= np.where(mask & np.uint64(bit), flag(name), np.uint64(0))
    both = (mask & np.uint64(PATREF_AND_IMAGE)) != 0
    only = ((mask & np.uint64(PATREF)) != 0) & ~both
    flags |= np.where(both, flag("IS_PARALLEL_CALIBRATION_AND_IMAGING"), np.uint64(0))
    flags |= np.where(only, flag("IS_PARALLEL_CALIBRATION"), np.uint64(0))
    return flags


def _not_imaging() -> np.uint64:
    names = [name for bit, name in FLAGS.items() if bit & NOT_IMAGING]
    return np.bitwise_or.reduce(np.array([flag(name) for name in names], np.uint64))
