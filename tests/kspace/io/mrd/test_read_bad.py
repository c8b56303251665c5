"""Bad raw files end in one sentence: what was expected, what came, where, and what to do."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from kspace.container import ImageIndex
from kspace.errors import InputError
from kspace.io.fastmri.volume import open_volume
from kspace.io.mrd import open_scan, read_noise
from kspace.io.mrd.flags import flag
from kspace.io.mrd.header import parse_header
from kspace.io.mrd.write import HEAD_DTYPE, header_xml, write_raw
from kspace.simulation import acquisition as acquire
from kspace.simulation.acquisition import ScanProtocol, with_limits
from kspace.simulation.measurement import measure, write_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils

PHANTOM = Phantom((ellipsoid((0.0, 0.0, 0.0), (0.07, 0.09, 0.08)),))
FLAT = ScanProtocol(matrix=(12, 10, 1), fov_m=(0.24, 0.2, 0.005))


def plain() -> acquire.Acquisition:
    return acquire.cartesian(FLAT, PHANTOM, head_coils(2))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "scan.h5"
    write_scan(plain(), path)
    return path


def refuses(path: Path, text: str) -> InputError:
    """Opening `path`, or loading its first image, ends in an `InputError` that holds `text` and names the file."""
    with pytest.raises(InputError, match=text) as caught:
        _load_first(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def _load_first(path: Path) -> None:
    scan = open_scan(path)
    scan.load(0, scan.images(0)[0])


def rewrite(path: Path, change: Callable[[np.ndarray, list[np.ndarray]], None], xml: str | None = None) -> None:
    """Write the good scan with changed acquisition headers and samples, which the writer does not check."""
    scan = plain()
    signals: list[np.ndarray] = list(measure(scan))
    headers = scan.headers.copy()
    change(headers, signals)
    write_raw(
        path, xml or header_xml(with_limits(scan), {"acquisitionSystemInformation": {"receiverChannels": 2}}), headers, signals
    )


def edit_xml(path: Path, change: Callable[[str], str | bytes]) -> None:
    with h5py.File(path, "r+") as file:
        text = file["dataset/xml"][0].decode()
        changed = change(text)
        file["dataset/xml"][0] = changed
    assert changed != text


def edit_heads(path: Path, **fields: object) -> None:
    """Change fields of all acquisition headers in the file, whatever the samples are."""
    with h5py.File(path, "r+") as file:
        rows = file["dataset/data"][:]
        for name, value in fields.items():
            rows["head"][name] = value
        file["dataset/data"][:] = rows


def test_no_such_file(tmp_path: Path) -> None:
    refuses(tmp_path / "nothing.h5", "no such file")
    assert not (tmp_path / "nothing.h5").exists()


def test_a_folder(tmp_path: Path) -> None:
    refuses(tmp_path, "this is a folder, expected a file")


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.h5"
    path.touch()
    refuses(path, "the file is empty")


def test_not_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    path.write_bytes(b"this is a text file\n" * 100)
    refuses(path, "not an HDF5 file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_permission(good: Path) -> None:
    good.chmod(0)
    refuses(good, "cannot be read")


@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_truncated_hdf5(good: Path, part: float) -> None:
    data = good.read_bytes()
    good.write_bytes(data[: int(part * len(data))])
    refuses(good, "truncated|damaged")


def test_damaged_bytes_give_an_error_or_the_right_samples(good: Path) -> None:
    """Noise over the file, block by block: never anything but an `InputError` or an intact image."""
    data = good.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for start in range(0, len(data), max(1, len(data) // 60)):
        damaged = bytearray(data)
        # Lists of samples (GCOL) hold addresses that HDF5 follows without doubt; those are the business of the child process
        # that the command line runs in, so only structures outside them are damaged here.
        if data.rfind(b"GCOL", 0, start + 16) >= 0:
            continue
        damaged[start : start + 16] = rng.bytes(16)
        good.write_bytes(bytes(damaged))
        try:
            scan = open_scan(good)
            for index in scan.images(0):
                scan.load(0, index)
            outcomes.add("read")
        except InputError:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_hdf5_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)
    refuses(path, "HDF5 but not ISMRMRD: expected a group with 'xml' and 'data', found weights")


def test_a_fastmri_file_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "file1000.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = np.zeros((1, 2, 4, 4), np.complex64)
        file["ismrmrd_header"] = "<ismrmrdHeader/>"
    refuses(path, "HDF5 in fastMRI's layout")


def test_groups(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        file.move("dataset", "measurement_7")
    assert open_scan(good).images(0) == [ImageIndex()]
    with h5py.File(good, "r+") as file:
        file.copy("measurement_7", "measurement_8")
    refuses(good, "2 raw scans in one file, in the groups measurement_7, measurement_8")
    assert open_scan(good, group="measurement_8").load(0, ImageIndex()).n_coils == 2
    with pytest.raises(InputError, match="no raw scan in group 'x', there are: measurement_7, measurement_8"):
        open_scan(good, group="x")


def test_links_within_the_file_are_followed(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        file.move("dataset/data", "samples")
        file["dataset/data"] = h5py.SoftLink("/samples")
    assert open_scan(good).load(0, ImageIndex()).n_coils == 2


def test_values_in_other_files_are_refused(good: Path) -> None:
    """The record's checksum is that of this file alone."""
    other = good.with_name("other.h5")
    shutil.copy(good, other)
    with h5py.File(good, "r+") as file:
        del file["dataset/data"]
        file["dataset/data"] = h5py.ExternalLink(str(other), "dataset/data")
    refuses(good, f"parts of the file are in others: 'dataset/data' is a link to {other}")
    with h5py.File(good, "w") as file:
        file["dataset"] = h5py.ExternalLink(str(other), "dataset")
    refuses(good, f"'dataset' is a link to {other}")


@pytest.mark.parametrize("how", ["external", "virtual"])
def test_samples_stored_in_other_files_are_refused(tmp_path: Path, how: str) -> None:
    samples = np.ones((1, 2, 8, 8), np.complex64)
    other, path = tmp_path / "samples", tmp_path / "scan.h5"
    if how == "external":
        other.write_bytes(samples.tobytes())
    else:
        with h5py.File(other, "w") as file:
            file["kspace"] = samples
    with h5py.File(path, "w") as file:
        if how == "external":
            file.create_dataset("kspace", samples.shape, samples.dtype, external=[(str(other), 0, samples.nbytes)])
        else:
            layout = h5py.VirtualLayout(samples.shape, samples.dtype)
            layout[:] = h5py.VirtualSource(other, "kspace", samples.shape)
            file.create_virtual_dataset("kspace", layout)
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["kspace"][()], samples)
    with pytest.raises(InputError, match=f"the values of 'kspace' are stored in {other}"):
        open_volume(path)


@pytest.mark.parametrize(("part", "text"), [("data", r"no acquisitions \('data'\)"), ("xml", r"no XML header \('xml'\)")])
def test_half_a_group(good: Path, part: str, text: str) -> None:
    with h5py.File(good, "r+") as file:
        del file["dataset"][part]
    refuses(good, f"the ISMRMRD group 'dataset' has {text}")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda xml: xml[: len(xml) // 2], "the XML header is truncated or not XML"),
        (lambda xml: "Dummy XML header", r"not XML .*it begins 'Dummy XML header'"),
        (lambda xml: "", "truncated or not XML"),
        (lambda xml: xml.encode().replace(b"simulated", b"\xfc"), "not UTF-8"),
        (lambda xml: "<a/>", "is <a>, expected <ismrmrdHeader>"),
        (lambda xml: re.sub("(?s)<encoding>.*</encoding>", "", xml), "no <encoding>"),
        (
            lambda xml: xml.replace("<trajectory>cartesian", "<trajectory>rosette"),
            "trajectory 'rosette', expected cartesian, epi",
        ),
        (lambda xml: re.sub("<trajectory>.*</trajectory>", "", xml), "names no trajectory"),
        (lambda xml: xml.replace("<x>24</x>", "<x>0</x>"), "has the matrix 0 x 10 x 1"),
        (lambda xml: xml.replace("<x>24</x>", "<x>-24</x>"), "has the matrix -24 x 10 x 1"),
        (lambda xml: xml.replace("<x>24</x>", "<x>many</x>"), "<x> of the XML header is 'many', expected a number"),
        (lambda xml: xml.replace("<x>24</x>", "<x>nan</x>"), "expected a number"),
        (lambda xml: xml.replace("<x>24</x>", "<x>24.5</x>"), "has the matrix 24.5 x 10 x 1"),
        (lambda xml: xml.replace("<x>24</x>", "<x>1000000000</x>"), r"has the matrix 1e\+09 x 10 x 1"),
        (lambda xml: re.sub("<x>24</x>(\\s*)<y>10</y>", "<x>60000</x><y>60000</y>", xml), "has the matrix 60000 x 60000 x 1"),
        (lambda xml: xml.replace("<x>480</x>", "<x>0</x>"), "has the field of view 0 x 200 x 5 mm, expected positive"),
        (lambda xml: re.sub("(?s)<fieldOfView_mm>.*?</fieldOfView_mm>", "", xml), "has no fieldOfView_mm"),
        (
            lambda xml: '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>' + xml.split("?>")[-1],
            "declares a DOCTYPE or entities",
        ),
        (lambda xml: xml.replace("<x>24</x>", "<x>12</x>"), "has 24 samples, the encoded matrix 12"),
        (lambda xml: xml.replace("<x>24</x>", "<x>48</x>"), "too few on both sides for the encoded matrix 48"),
        (lambda xml: xml.replace("<y>10</y>", "<y>8</y>"), "kspace_encode_step_1 runs from 0 to 9 with centre 5, outside"),
    ],
)
def test_bad_headers(good: Path, change: Callable[[str], str | bytes], text: str) -> None:
    edit_xml(good, change)
    refuses(good, text)


def test_a_header_without_its_optional_parts(good: Path) -> None:
    def strip(xml: str) -> str:
        for name in ("measurementInformation", "acquisitionSystemInformation", "encodingLimits", "reconSpace"):
            xml = re.sub(f"(?s)<{name}>.*?</{name}>", "", xml)
        return xml.replace(' xmlns="http://www.ismrm.org/ISMRMRD"', "")

    edit_xml(good, strip)
    scan = open_scan(good)
    assert scan.encodings[0].recon_matrix == (24, 10, 1)
    assert any("no reconSpace" in w for w in scan.warnings)
    assert scan.load(0, ImageIndex()).mask.all()


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(1e-3, "likely metres, not millimetres"), (0.1, None), (1e3, "likely micrometres"), (1e-5, "another unit"), (1.0, None)],
)
def test_a_field_of_view_in_another_unit_is_said(factor: float, unit: str | None) -> None:
    encoded, recon = ((factor * 1e-3 * nx, factor * 1e-3 * 10, factor * 5e-3) for nx in (24, 12))  # voxels of 1 x 1 mm
    xml = header_xml([replace(plain().spaces[0], encoded_fov_m=encoded, recon_fov_m=recon)], {})
    said = [w for w in parse_header(xml, "scan.h5").warnings if "fieldOfView_mm" in w]
    if unit is None:
        assert said == []
        return
    assert [w.split(":")[0] for w in said] == ["encodedSpace of encoding 0", "reconSpace of encoding 0"]
    assert all(unit in w and f"{factor:.2g} x {factor:.2g} mm" in w for w in said)


def test_a_thick_slice_is_no_wrong_unit() -> None:
    space = plain().spaces[0]
    thick = replace(space, encoded_fov_m=(*space.encoded_fov_m[:2], 0.08), recon_fov_m=(*space.recon_fov_m[:2], 0.08))
    assert not any("fieldOfView_mm" in w for w in parse_header(header_xml([thick], {}), "scan.h5").warnings)


def test_trailing_nul_bytes_are_no_part_of_the_header() -> None:
    xml = header_xml(plain().spaces, {})
    assert parse_header(xml.encode() + b"\x00\x00", "scan.h5").encodings == parse_header(xml, "scan.h5").encodings


def test_echo_planar_described_as_cartesian() -> None:
    xml = header_xml(plain().spaces, {})
    described = xml.replace(
        "<trajectory>cartesian</trajectory>",
        "<trajectory>cartesian</trajectory><trajectoryDescription><identifier>ConventionalEPI</identifier></trajectoryDescription>",
    )
    assert described != xml
    encoding = parse_header(described, "scan.h5").encodings[0]
    assert encoding.is_epi
    assert encoding.refusal is None


def test_no_acquisitions(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        dtype = file["dataset/data"].dtype
        del file["dataset/data"]
        file["dataset"].create_dataset("data", (0,), dtype, maxshape=(None,))
    refuses(good, "no acquisitions")


def test_acquisitions_that_are_announced_and_not_there(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        file["dataset/data"].resize((10**6,))
    refuses(good, "1000000 acquisitions are announced")


def test_acquisitions_of_another_type(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        del file["dataset/data"]
        file["dataset/data"] = np.zeros(5)
    refuses(good, "not ISMRMRD acquisitions")


def test_samples_of_another_type(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        del file["dataset/data"]
        dtype = np.dtype([("head", HEAD_DTYPE), ("data", h5py.vlen_dtype(np.float64))])
        file["dataset"].create_dataset("data", (1,), dtype)
    refuses(good, "expected lists of float32")


def test_only_noise(good: Path) -> None:
    edit_heads(good, flags=flag("IS_NOISE_MEASUREMENT"))
    refuses(good, r"only noise: no imaging readouts among 10 \(10 noise\)")
    assert read_noise(good).n_samples == 240


def test_no_image_lines(good: Path) -> None:
    edit_heads(good, flags=flag("IS_NAVIGATION_DATA"))
    refuses(good, r"no imaging readouts among 10 \(10 navigation\)")


def test_no_noise_where_some_was_asked_for(good: Path) -> None:
    with pytest.raises(InputError, match=r"no noise readouts \(flag 19\) among 10"):
        read_noise(good)


def test_compressed_samples(good: Path) -> None:
    edit_heads(good, flags=flag("COMPRESSION1"))
    refuses(good, "the samples are compressed")


def test_an_encoding_that_the_header_does_not_have(good: Path) -> None:
    edit_heads(good, encoding_space_ref=3)
    refuses(good, "readouts refer to encoding 3, the header has 1")


def test_readouts_that_hold_less_than_their_heads_say(good: Path) -> None:
    edit_heads(good, number_of_samples=20)
    refuses(good, "readout 0 holds 96 numbers, its head says 2 x 2 channels x 20 samples")


@pytest.mark.parametrize("layout", ["contiguous", "gzip"])
def test_lengths_are_checked_in_every_storage_layout(good: Path, layout: str) -> None:
    with h5py.File(good, "r+") as file:
        rows = file["dataset/data"][:]
        del file["dataset/data"]
        compression = {"compression": "gzip", "chunks": (4,)} if layout == "gzip" else {}
        file["dataset"].create_dataset("data", data=rows, dtype=rows.dtype, **compression)
    assert open_scan(good).load(0, ImageIndex()).mask.all()
    edit_heads(good, number_of_samples=20)
    refuses(good, "readout 0 holds 96 numbers, its head says")


def test_heads_that_claim_more_than_the_file_can_hold(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        rows = file["dataset/data"][:]
        del file["dataset/data"]
        rows["head"]["number_of_samples"] = 65535
        file["dataset"].create_dataset("data", data=rows, dtype=rows.dtype)
    refuses(good, "the acquisition headers claim 10485600 bytes of samples, the file has")


def test_the_channels_of_the_receiver_may_be_more_than_those_in_use(good: Path) -> None:
    text = header_xml(with_limits(plain()), {"acquisitionSystemInformation": {"receiverChannels": 34}})
    rewrite(good, lambda headers, signals: None, text)
    scan = open_scan(good)
    assert scan.load(0, ImageIndex()).n_coils == 2
    assert any("the header says 34 channels, the readouts have 2: taken so" in w for w in scan.warnings)


def test_channel_counts_that_contradict_each_other(good: Path) -> None:
    def change(headers: np.ndarray, signals: list[np.ndarray]) -> None:
        headers["active_channels"][4], signals[4] = 1, signals[4][:1]

    rewrite(good, change)
    refuses(good, "readout 4 has 1 channels, readout 0 has 2")
    rewrite(good, change, header_xml(with_limits(plain()), {}))
    refuses(good, "readout 4 has 1 channels, readout 0 has 2")


def test_sample_counts_that_contradict_each_other(good: Path) -> None:
    def change(headers: np.ndarray, signals: list[np.ndarray]) -> None:
        headers["number_of_samples"][4], signals[4] = 22, signals[4][:, :22]

    rewrite(good, change)
    refuses(good, "readout 4 has 22 samples, readout 0 24")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(good: Path, value: float) -> None:
    def change(headers: np.ndarray, signals: list[np.ndarray]) -> None:
        signals[7][1, 3] = value

    rewrite(good, change)
    refuses(good, "readout 7 has [12] NaN or infinite values")


def test_large_samples_are_fine(good: Path) -> None:
    def change(headers: np.ndarray, signals: list[np.ndarray]) -> None:
        signals[7][:] = 2e38

    rewrite(good, change)
    assert open_scan(good).load(0, ImageIndex()).data.abs().max() > 1e38


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda h: h["idx"]["kspace_encode_step_1"].__setitem__(3, 60000), "runs from 0 to 60000 with centre 5, outside"),
        (lambda h: h["idx"]["kspace_encode_step_2"].__setitem__(3, 1), "kspace_encode_step_2 runs from 0 to 1"),
        (lambda h: h["center_sample"].__setitem__(3, 30), "readout 3 has 24 samples with center_sample 30"),
        (lambda h: h["center_sample"].__setitem__(3, 4), "readout 3 has 24 samples with center_sample 4, outside"),
        (lambda h: h["discard_pre"].__setitem__(3, 20) or h["discard_post"].__setitem__(3, 4), r"discards 20 \+ 4 of its 24"),
        (lambda h: h["position"].__setitem__(5, (0, np.nan, 0)), "position or direction that is NaN"),
    ],
)
def test_bad_heads(good: Path, change: Callable[[np.ndarray], None], text: str) -> None:
    rewrite(good, lambda headers, signals: change(headers))
    refuses(good, text)


def test_noise_of_another_number_of_channels(good: Path) -> None:
    scan = acquire.add_noise_scan(plain(), n_readouts=2, n_samples=8)
    signals: list[np.ndarray] = list(measure(scan))
    headers = scan.headers.copy()
    for i in (0, 1):
        headers["active_channels"][i], signals[i] = 1, signals[i][:1]
    write_raw(good, header_xml(with_limits(scan), {}), headers, signals)
    refuses(good, "the noise readouts have 1 channels, the imaging readouts 2")


def test_noise_that_contradicts_itself(good: Path) -> None:
    scan = acquire.add_noise_scan(plain(), n_readouts=2, n_samples=8)
    scan.headers["sample_time_us"][1] = 7
    write_scan(scan, good)
    refuses(good, "noise readouts have dwell times of 7 and 20 us, expected one")


def test_an_image_that_is_not_there(good: Path) -> None:
    with pytest.raises(InputError, match=r"no image .*slice=4"):
        open_scan(good).load(0, ImageIndex(slice=4))


def test_an_image_beyond_the_memory(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 8)
    refuses(good, "needs 0.0 GiB, this machine has 0.0")


def test_calibration_outside_the_matrix(tmp_path: Path) -> None:
    scan = acquire.accelerate(plain(), 2, calibration=4, mode="separate")
    scan = acquire.abort(scan, len(scan.headers))
    scan.headers["idx"]["kspace_encode_step_1"][0] = 40
    scan = replace(scan, centres=scan.centres)
    write_scan(scan, tmp_path / "scan.h5")
    refuses(tmp_path / "scan.h5", "calibration readout 0 has kspace_encode_step_1 = 40")


def test_what_an_image_does_not_rest_on_may_be_no_number() -> None:
    """philips_to_ismrmrd writes ETH for TR, style sheets NaN for what they did not find, and 0 for the z of 2-D scans."""
    xml = header_xml(with_limits(acquire.cartesian(ScanProtocol((8, 8, 1)), Phantom(()), head_coils(1))))
    bad = "<sequenceParameters><TR>ETH</TR><TE>30</TE></sequenceParameters><userParameters><userParameterLong>"
    bad += "<name>MultiBandFactor</name><value>1</value></userParameterLong></userParameters></ismrmrdHeader>"
    xml = xml.replace("</ismrmrdHeader>", bad).replace(">123200000<", ">NaN<").replace("<z>1</z>", "<z>0</z>")
    header = parse_header(xml, "scan.h5")
    assert header.study["TE"] == (30.0,)
    assert "TR" not in header.study
    assert header.warnings[-1].endswith("as they are no numbers: H1resonanceFrequency_Hz 'NaN', TR 'ETH'")
    assert header.encodings[0].encoded_matrix[2] == 1
    assert header.encodings[0].refusal is None
    several = parse_header(xml.replace("<value>1<", "<value>3<"), "scan.h5")
    assert "3 slices excited at once" in str(several.encodings[0].refusal)
