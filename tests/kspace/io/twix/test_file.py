"""Siemens twix files become ISMRMRD with samples unchanged, and damaged ones become one clear sentence."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kspace.errors import InputError
from kspace.io import mrd
from kspace.io.mrd.flags import flag
from kspace.io.mrd.write import new_acquisition_headers
from kspace.io.twix.file import to_ismrmrd
from kspace.io.twix.header import TwixProtocol, slices_at_once

twixtools = pytest.importorskip("twixtools", reason="needs the extra 'twix'")

N_COILS, N_SAMPLES, N_LINES = 2, 320, 160
READOUT = 192 + N_COILS * (32 + 8 * N_SAMPLES)
MASK_AT = 40


@pytest.fixture(scope="session")
def gre(data_dir: Path) -> Path:
    return data_dir / "raw" / "skyra_gre.dat"


def _readouts(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path, "r") as file:
        rows = file["dataset/data"][:]
    samples = [
        row.view(np.complex64).reshape(head["active_channels"], -1)
        for head, row in zip(rows["head"], rows["data"], strict=True)
    ]
    return rows["head"], np.stack(samples)


def _parts(path: Path) -> tuple[bytes, bytes, bytes]:
    """Text header, readouts, and what follows them, of the one measurement of the file."""
    raw = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", raw, 16)
    (length,) = struct.unpack_from("<I", raw, offset)
    first = offset + length
    last = first + N_LINES * READOUT
    return raw[offset:first], raw[first:last], raw[last:]


def _file(path: Path, *measurements: bytes) -> Path:
    """A multi-measurement file."""
    listing = struct.pack("<II", 0, len(measurements))
    offset = 10240
    for number, measurement in enumerate(measurements):
        listing += struct.pack("<IIQQ", number, number, offset, len(measurement)) + bytes(128)
        offset += len(measurement)
    path.write_bytes(listing.ljust(10240, b"\0") + b"".join(measurements))
    return path


def test_the_samples_are_those_of_the_reference_conversion(gre: Path, data_dir: Path, tmp_path: Path) -> None:
    assert to_ismrmrd(gre, tmp_path / "scan.h5") == ()
    headers, samples = _readouts(tmp_path / "scan.h5")
    expected_headers, expected = _readouts(data_dir / "raw" / "skyra_gre_2ch_oversampled.h5")
    assert np.array_equal(samples, expected)  # scale 1, no conjugation
    for name in ("number_of_samples", "active_channels", "center_sample"):
        assert np.array_equal(headers[name], expected_headers[name])
    assert np.array_equal(headers["idx"]["kspace_encode_step_1"], expected_headers["idx"]["kspace_encode_step_1"])


def test_the_header_says_what_the_protocol_says(gre: Path, tmp_path: Path) -> None:
    to_ismrmrd(gre, tmp_path / "scan.h5")
    scan = mrd.open_scan(tmp_path / "scan.h5")
    (encoding,) = scan.encodings
    assert encoding.encoded_matrix == (320, 160, 1)
    assert encoding.recon_matrix == (160, 160, 1)
    assert encoding.encoded_fov_m == pytest.approx((0.4, 0.2, 0.004))
    assert encoding.recon_fov_m == pytest.approx((0.2, 0.2, 0.004))
    assert encoding.centre == (80, 0)
    assert encoding.dwell_s == pytest.approx(11.6e-6)
    assert encoding.trajectory == "cartesian"
    assert scan.coil_names == ("Body:1:BC2", "Body:1:BC")
    header = scan.load(0, scan.images(0)[0]).header
    expected = {
        "TR": (10.0,), "TE": (3.0,), "flipAngle_deg": (15.0,), "systemFieldStrength_T": 2.89362, "protocolName": "gre",
        "patientPosition": "HFS", "H1resonanceFrequency_Hz": 123263034, "systemModel": "Skyra", "systemVendor": "SIEMENS",
    }  # fmt: skip
    assert {name: header.study[name] for name in expected} == expected
    geometry = header.geometry
    assert geometry.position_m == pytest.approx((-0.00258969998377, 0.0539224264395, -0.0539994745263), abs=1e-8)  # sPosition
    assert geometry.slice_dir == pytest.approx((6.58423005e-09, 0.0383878015, 0.9992629886), abs=1e-6)  # sNormal
    # As siemens_to_ismrmrd converts a transversal scan: the columns of the rotation are phase, read and slice.
    assert geometry.read_dir == pytest.approx((-1, 0, 0), abs=1e-6)
    assert np.cross(geometry.phase_dir, geometry.read_dir) == pytest.approx(np.array(geometry.slice_dir), abs=1e-6)
    assert geometry.table_position_m == pytest.approx((0, 0, -1.040015), abs=1e-6)


def test_names_of_patients_are_not_copied(gre: Path, tmp_path: Path) -> None:
    text, readouts, rest = _parts(gre)
    named = text.replace(b'"xxxxxxx"', b'"Jane Do"')
    assert named != text
    to_ismrmrd(_file(tmp_path / "a.dat", named + readouts + rest), tmp_path / "scan.h5")
    assert b"Jane" not in (tmp_path / "scan.h5").read_bytes()


def test_an_echo_planar_scan_is_converted(data_dir: Path, tmp_path: Path) -> None:
    assert to_ismrmrd(data_dir / "raw" / "skyra_epi.dat", tmp_path / "epi.h5") == ()
    headers, samples = _readouts(tmp_path / "epi.h5")
    assert samples.shape == (83, 2, 160)
    phase_correction = (headers["flags"] & flag("IS_PHASECORR_DATA")) != 0
    reverse = (headers["flags"] & flag("IS_REVERSE")) != 0
    assert phase_correction.tolist() == [True] * 3 + [False] * 80
    assert reverse[:3].tolist() == [True, False, True]
    assert reverse[3:].tolist() == [bool(i % 2) for i in range(80)]
    (encoding,) = mrd.open_scan(tmp_path / "epi.h5").encodings
    assert encoding.description == "ConventionalEPI"
    stated = {name: encoding.parameters[name] for name in ("rampUpTime", "flatTopTime", "rampDownTime", "acqDelayTime")}
    assert stated == {"rampUpTime": 160, "flatTopTime": 240, "rampDownTime": 160, "acqDelayTime": 32}
    assert encoding.parameters["numberOfNavigators"] == 3
    assert encoding.parameters["numSamples"] == 160
    assert encoding.parameters["dwellTime"] == pytest.approx(3.1)


def test_the_noise_of_an_earlier_measurement_comes_along(gre: Path, tmp_path: Path) -> None:
    text, readouts, rest = _parts(gre)
    rng = np.random.default_rng(0)
    noise = bytearray(readouts[: 20 * READOUT])
    values = rng.standard_normal((20, N_COILS, 2 * N_SAMPLES)).astype(np.float32) * 1e-6
    for i in range(20):
        struct.pack_into("<Q", noise, i * READOUT + MASK_AT, 1 << 25 | 1 << 3)
        for c in range(N_COILS):
            start = i * READOUT + 192 + c * (32 + 8 * N_SAMPLES) + 32
            noise[start : start + 8 * N_SAMPLES] = values[i, c].tobytes()
    slower = re.sub(rb"(alDwellTime\[0\]\s*=\s*)11600", rb"\g<1>23200", text)
    path = _file(tmp_path / "a.dat", slower + bytes(noise) + rest, text + readouts + rest)
    notes = to_ismrmrd(path, tmp_path / "scan.h5")
    assert notes == ("2 measurements in the file: the last is the scan",)
    scan = mrd.open_scan(tmp_path / "scan.h5")
    assert scan.noise is not None
    flat = values.view(np.complex64).transpose(1, 0, 2).reshape(N_COILS, -1).astype(np.complex128)
    np.testing.assert_allclose(scan.noise.covariance, flat @ flat.conj().T / flat.shape[1], rtol=1e-5, atol=1e-16)
    assert scan.noise.relative_bandwidth == pytest.approx(0.793)
    assert scan.noise.dwell_s == pytest.approx(23.2e-6)  # of its own measurement
    assert scan.encodings[0].dwell_s == pytest.approx(11.6e-6)
    assert scan.load(0, scan.images(0)[0]).mask.all()


def test_flags_of_calibration_lines(gre: Path, tmp_path: Path) -> None:
    text, readouts, rest = _parts(gre)
    marked = bytearray(readouts)
    for line, bits in {70: 1 << 22, 71: 1 << 22 | 1 << 23, 72: 1 << 23, 5: 1 << 1, 6: 1 << 14}.items():
        struct.pack_into("<Q", marked, line * READOUT + MASK_AT, bits)
    to_ismrmrd(_file(tmp_path / "a.dat", text + bytes(marked) + rest), tmp_path / "scan.h5")
    flags = _readouts(tmp_path / "scan.h5")[0]["flags"]
    assert flags[70] == flag("IS_PARALLEL_CALIBRATION")
    assert flags[71] == flags[72] == flag("IS_PARALLEL_CALIBRATION_AND_IMAGING")
    assert flags[5] == flag("IS_RTFEEDBACK_DATA")
    assert flags[6] == flag("IS_PHASE_STABILIZATION_REFERENCE")
    assert flags[0] == flag("FIRST_IN_SLICE")
    assert flags[159] == flag("LAST_IN_SLICE") | flag("LAST_IN_MEASUREMENT")


def test_the_older_layout_is_read_too(gre: Path, tmp_path: Path) -> None:
    """A VB file made of the VE one: one header before each channel, no list of measurements."""
    from twixtools.mdh_def import Scan_header, VB17_header

    text, readouts, _ = _parts(gre)
    new, old = np.dtype(Scan_header), np.dtype(VB17_header)
    out = bytearray(text)
    for line in range(N_LINES):
        block = readouts[line * READOUT : (line + 1) * READOUT]
        head = np.frombuffer(block, new, 1)[0]
        converted = np.zeros((), old)
        for name in set(old.names or ()) & set(new.names or ()) - {"IceProgramPara"}:
            converted[name] = head[name]
        for c in range(N_COILS):
            start = 192 + c * (32 + 8 * N_SAMPLES) + 32
            out += converted.tobytes() + block[start : start + 8 * N_SAMPLES]
    end = np.zeros((), old)
    end["EvalInfoMask"] = 1
    (tmp_path / "vb.dat").write_bytes(bytes(out) + end.tobytes() + bytes(64))
    to_ismrmrd(gre, tmp_path / "ve.h5")
    to_ismrmrd(tmp_path / "vb.dat", tmp_path / "vb.h5")
    (headers, samples), (expected_headers, expected) = (_readouts(tmp_path / name) for name in ("vb.h5", "ve.h5"))
    assert np.array_equal(samples, expected)
    for name in set(headers.dtype.names or ()) - {"patient_table_position"}:
        assert np.array_equal(headers[name], expected_headers[name]), name


@pytest.mark.parametrize("fraction", [0.0, 1e-5, 0.003, 0.3, 0.6, 0.9, 0.9995])
def test_a_truncated_file_is_refused(gre: Path, tmp_path: Path, fraction: float) -> None:
    raw = gre.read_bytes()
    (tmp_path / "a.dat").write_bytes(raw[: int(fraction * len(raw))])
    with pytest.raises(InputError, match=r"truncated|empty|too few|not Siemens twix"):
        to_ismrmrd(tmp_path / "a.dat", tmp_path / "scan.h5")
    assert not (tmp_path / "scan.h5").exists()


def test_an_aborted_measurement_in_a_whole_file_is_refused(gre: Path, tmp_path: Path) -> None:
    text, readouts, _ = _parts(gre)
    with pytest.raises(InputError, match="after readout 100 without the scanner's end mark"):
        to_ismrmrd(_file(tmp_path / "a.dat", text + readouts[: 100 * READOUT]), tmp_path / "scan.h5")


def _hostile(name: str, gre: Path) -> bytes:
    text, readouts, rest = _parts(gre)
    body = bytearray(readouts)
    if name == "no samples":
        struct.pack_into("<H", body, 3 * READOUT + 48, 0)
    elif name == "no channels":
        struct.pack_into("<H", body, 3 * READOUT + 50, 0)
    elif name == "endless loop":  # synchronisation data of length zero never ends
        struct.pack_into("<Q", body, 3 * READOUT + MASK_AT, 1 << 5)
        struct.pack_into("<I", body, 3 * READOUT, 0)
    elif name == "huge list":
        text = text.replace(b"asSlice[0].dThickness", b"asSlice[999999999].dTh", 1)
    elif name == "long section":
        text = text[:8] + b"Config\0" + struct.pack("<I", 0x7FFFFFFF) + text[19:]
    elif name == "no protocol":
        text = text[:4] + struct.pack("<I", 0) + text[8:]
    elif name == "header longer than the file":
        text = struct.pack("<I", 0x7FFFFFFF) + text[4:]
    elif name == "only noise":
        for i in range(N_LINES):
            struct.pack_into("<Q", body, i * READOUT + MASK_AT, 1 << 25)
    elif name == "nothing":
        body = bytearray()
    return text + bytes(body) + rest


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no samples", "readout 3 has 2 channels of 0 samples"),
        ("no channels", "readout 3 has 0 channels"),
        ("endless loop", "declares 0 bytes"),
        ("huge list", "list of more than 99999 items"),
        ("long section", "section Config runs past its end"),
        ("no protocol", "no protocol"),
        ("header longer than the file", "a header of 2147483647 bytes"),
        ("only noise", "none of the 160 readouts is an imaging line"),
        ("nothing", "holds no readouts"),
    ],
)
def test_a_hostile_file_is_refused(gre: Path, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_ismrmrd(_file(tmp_path / "a.dat", _hostile(name, gre)), tmp_path / "scan.h5")
    assert not (tmp_path / "scan.h5").exists()


@given(st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_is_an_input_error_or_harmless(gre: Path, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(gre.read_bytes())
    (length,) = struct.unpack_from("<I", raw, 10240)
    regions = [(0, 200), (10240, 10600), (10240, 10240 + length), (10240 + length, 10240 + length + 3 * READOUT)]
    for _ in range(4):
        start, stop = data.draw(st.sampled_from(regions))
        raw[data.draw(st.integers(start, stop - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.dat").write_bytes(raw)
    try:
        to_ismrmrd(tmp_path / "a.dat", tmp_path / "scan.h5")
    except InputError:
        return
    assert len(_readouts(tmp_path / "scan.h5")[0]) > 0


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_text("this is a table of numbers\n" * 100)
    with pytest.raises(InputError, match="not Siemens twix data"):
        to_ismrmrd(tmp_path / "a.dat", tmp_path / "scan.h5")
    with pytest.raises(InputError, match="cannot read"):
        to_ismrmrd(tmp_path / "absent.dat", tmp_path / "scan.h5")


def test_without_twixtools_the_error_says_how_to_get_it(gre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "twixtools", None)
    monkeypatch.setitem(sys.modules, "twixtools.mdh_def", None)
    with pytest.raises(InputError, match=r"pip install 'mri-gan-recon\[twix\]'"):
        to_ismrmrd(gre, tmp_path / "scan.h5")


@pytest.mark.parametrize(("factor", "n_slices", "at_once"), [(2, 3, 2), (2, 6, 1), (1, 3, 1)])
def test_slices_that_are_excited_at_once(factor: int, n_slices: int, at_once: int) -> None:
    """Six slices in the protocol; all in a reference repetition, three sums of two in the last."""
    yaps = {"sSliceAcceleration": {"lMultiBandFactor": factor}, "sSliceArray": {"lSize": 6}}
    headers = new_acquisition_headers(6 + n_slices, 2, 8)
    headers["idx"]["slice"] = [*range(6), *range(n_slices)]
    headers["idx"]["repetition"] = [0] * 6 + [1] * n_slices
    assert slices_at_once(TwixProtocol(yaps, {}, {}), headers) == at_once
