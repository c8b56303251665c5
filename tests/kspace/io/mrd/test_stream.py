"""MRD streams: what the ISMRMRD library sends is what arrives, however the bytes are cut, and nothing is believed."""

from __future__ import annotations

import io
import struct
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile as TheirFile
from ismrmrd.serialization import ConfigText as TheirText
from ismrmrd.serialization import ProtocolSerializer
from ismrmrd.xsd import CreateFromDocument

from kspace.container import ImageIndex
from kspace.errors import InputError
from kspace.io.mrd import open_scan
from kspace.io.mrd import stream as mrd_stream
from kspace.io.mrd.recording import BATCH_BYTES, is_recording, to_ismrmrd
from kspace.io.mrd.stream import (
    ConfigFile,
    ConfigText,
    Message,
    StreamClose,
    StreamHeader,
    StreamImage,
    StreamLimits,
    StreamParser,
    StreamReadout,
    StreamText,
    StreamWaveform,
    is_stream,
)
from kspace.io.mrd.write import header_xml
from kspace.simulation import acquisition as acquire
from kspace.simulation.acquisition import with_limits
from kspace.simulation.measurement import measure, write_scan
from tests.support.raw_files import plain


def acquisitions(scan: acquire.Acquisition, trajectory: int = 0) -> list[ismrmrd.Acquisition]:
    """The readouts of a scan as objects of the ISMRMRD library, each with a trajectory where asked for."""
    rng = np.random.default_rng(0)
    made = []
    for head, samples in zip(scan.headers, measure(scan), strict=True):
        one = ismrmrd.Acquisition(ismrmrd.AcquisitionHeader.from_buffer_copy(head.tobytes()))
        one.resize(samples.shape[1], samples.shape[0], trajectory)
        one.data[:] = samples
        if trajectory:
            one.traj[:] = rng.standard_normal((samples.shape[1], trajectory)).astype(np.float32)
        made.append(one)
    return made


def xml_of(scan: acquire.Acquisition) -> str:
    system = {"receiverChannels": scan.coils.n_coils}
    return header_xml(with_limits(scan), {"acquisitionSystemInformation": system})


def sent(*objects: Any, close: bool = True) -> bytes:
    """What the ISMRMRD library sends."""
    stream = io.BytesIO()
    serializer = ProtocolSerializer(stream)
    for one in objects:
        serializer.serialize(one)
    if close:
        serializer.close()
    return stream.getvalue()


def sent_scan(scan: acquire.Acquisition) -> bytes:
    return sent(TheirFile("simplefft"), CreateFromDocument(xml_of(scan)), *acquisitions(scan))


def text(kind: int, content: bytes) -> bytes:
    return struct.pack("<HI", kind, len(content)) + content


def parsed(data: bytes, cuts: list[int] | None = None) -> list[Message]:
    parser = StreamParser("scanner")
    found = [m for a, b in pairwise([0, *(cuts or []), len(data)]) for m in parser.feed(data[a:b])]
    assert parser.n_pending == 0
    assert parser.position == len(data)
    return found


@pytest.mark.parametrize("cut", ["whole", "bytes", "pieces"])
def test_what_the_ismrmrd_library_sends_arrives(cut: str) -> None:
    scan = acquire.abort(plain(n_coils=2), 5)
    readouts = acquisitions(scan, trajectory=2)
    pixels = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    image = ismrmrd.Image.from_array(pixels, transpose=False)
    image.meta = ismrmrd.Meta({"Name": "grün"})
    waveform = ismrmrd.Waveform.from_array(np.arange(12, dtype=np.uint32).reshape(3, 4))
    header = CreateFromDocument(xml_of(scan))
    data = sent(TheirFile("simplefft"), TheirText("<config/>"), header, "line", *readouts, image, waveform)
    rng = np.random.default_rng(1)
    cuts = {"whole": [], "bytes": list(range(1, len(data))), "pieces": sorted(rng.integers(0, len(data), 40).tolist())}[cut]
    name, config, head, line, *found, got_image, got_waveform, close = parsed(data, cuts)
    assert name == ConfigFile("simplefft")
    assert config == ConfigText("<config/>")
    assert head == StreamHeader(header.toXML())
    assert line == StreamText("line")
    assert close == StreamClose()
    assert len(found) == 5
    for got, one, original in zip(found, readouts, scan.headers, strict=True):
        assert isinstance(got, StreamReadout)
        np.testing.assert_array_equal(got.samples, one.data)
        np.testing.assert_array_equal(got.trajectory, one.traj)
        assert got.head["idx"] == original["idx"]
        assert got.head["position"].tolist() == original["position"].tolist()
    assert isinstance(got_image, StreamImage)
    np.testing.assert_array_equal(got_image.pixels, pixels)
    assert ismrmrd.Meta.deserialize(got_image.attributes)["Name"] == "grün"
    assert isinstance(got_waveform, StreamWaveform)
    np.testing.assert_array_equal(got_waveform.samples, waveform.data)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64, np.complex64, np.complex128])
def test_images_of_every_number_type(dtype: type) -> None:
    pixels = (100 * np.random.default_rng(0).random((1, 1, 4, 5))).astype(dtype)
    (found, _) = parsed(sent(ismrmrd.Image.from_array(pixels, transpose=False)))
    assert isinstance(found, StreamImage)
    assert found.pixels.dtype == dtype
    np.testing.assert_array_equal(found.pixels, pixels)


@pytest.mark.parametrize("end", [b"", b"\0", b"\0\0\0"])
def test_texts_end_with_nul_or_without(end: bytes) -> None:
    data = text(3, b"<ismrmrdHeader/>" + end) + text(2, b"{}" + end) + text(5, "grün".encode() + end)
    assert parsed(data) == [StreamHeader("<ismrmrdHeader/>"), ConfigText("{}"), StreamText("grün")]


def test_nothing_is_parsed_after_close() -> None:
    parser = StreamParser()
    assert parser.feed(b"\x04\0\xff\xff") == [StreamClose()]
    assert parser.closed
    assert parser.feed(b"\xff") == []
    assert parser.n_pending == 3


def head_of(**fields: int) -> bytes:
    head = np.zeros((), mrd_stream.acquisition_header_dtype)
    for name, value in fields.items():
        head[name] = value
    return struct.pack("<H", 1008) + head.tobytes()


MOST = 65535


def image_head(matrix: tuple[int, int, int], channels: int, data_type: int) -> bytes:
    head = np.zeros((), mrd_stream.image_header_dtype)
    head["matrix_size"], head["channels"], head["data_type"] = matrix, channels, data_type
    return struct.pack("<H", 1022) + head.tobytes()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (struct.pack("<HI", 3, 2**32 - 1), "a text that claims 4294967295 bytes, more than the 16777216 that are allowed"),
        (head_of(active_channels=MOST, number_of_samples=MOST), "a readout of 65535 channels x 65535 samples that claims 3435"),
        (head_of(active_channels=1, number_of_samples=MOST, trajectory_dimensions=MOST), "a readout of 1 channels x 65535 sam"),
        (image_head((MOST, MOST, MOST), MOST, 8), "an image of 65535 x 65535 x 65535 x 65535 pixels that claims"),
        (image_head((2, 2, 1), 1, 5) + struct.pack("<Q", 2**63), "a text that claims 9223372036854775808 bytes"),
        (image_head((2, 2, 1), 1, 11), "an image with data_type 11, expected 1 to 8"),
        (struct.pack("<H", 1030), r"a message of kind 1030 \(NDARRAY\), which cannot be read"),
        (struct.pack("<H", 777), "a message of kind 777, which cannot be read"),
        (text(5, b"\xff\xfe"), "a text that is not UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_memory_is_taken(data: bytes, said: str) -> None:
    parser = StreamParser("scanner")
    parser.feed(text(5, b"first"))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=f"^scanner: byte 11 of the MRD stream begins {said}"):
            parser.feed(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_limits_can_be_chosen() -> None:
    data = sent(*acquisitions(acquire.abort(plain(n_coils=2), 1)))
    assert isinstance(StreamParser(limits=StreamLimits(acquisition=1024)).feed(data)[0], StreamReadout)
    with pytest.raises(InputError, match="more than the 1023 that are allowed"):
        StreamParser(limits=StreamLimits(acquisition=1023)).feed(data)


def test_random_bytes_end_in_an_error_or_in_messages() -> None:
    rng = np.random.default_rng(0)
    data = bytearray(sent_scan(acquire.abort(plain(n_coils=2), 20)))
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(data)
        place = int(rng.integers(len(data)))
        damaged[place : place + 8] = rng.bytes(8)
        try:
            found = StreamParser().feed(damaged)
            outcomes.add("whole" if isinstance(found[-1], StreamClose) else "waits")
        except InputError:
            outcomes.add("refused")
    assert {"whole", "refused"} <= outcomes


# -- recorded streams -------------------------------------------------------------------------------------------------


def test_recordings_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    scan = acquire.abort(plain(n_coils=2), 3)
    header = CreateFromDocument(xml_of(scan))
    streams = [sent_scan(scan), sent(TheirText("{}"), header), sent(header), text(3, b"Dummy XML header\0")]
    assert all(is_stream(data[: mrd_stream.FIRST_BYTES]) for data in streams)
    write_scan(scan, tmp_path / "scan.h5")
    others = [(tmp_path / "scan.h5").read_bytes(), b"", b"\x1f\x8b\x08", b"text\n" * 999, bytes(2000), b"\x01\0" + bytes(1024),
              b"\x02\0\0\0" + bytes(2000), b"\x03\0", np.random.default_rng(0).bytes(2000)]  # fmt: skip
    assert not any(is_stream(data[: mrd_stream.FIRST_BYTES]) for data in others)
    assert not is_recording(tmp_path)
    assert not is_recording(tmp_path / "nothing")


def test_a_recording_is_the_scan(tmp_path: Path) -> None:
    scan = acquire.add_noise_scan(plain(noise=0.01), 20)
    (tmp_path / "scan.bin").write_bytes(sent_scan(scan))
    assert to_ismrmrd(tmp_path / "scan.bin", tmp_path / "a.h5") == ()
    write_scan(scan, tmp_path / "b.h5")
    a, b = open_scan(tmp_path / "a.h5"), open_scan(tmp_path / "b.h5")
    assert a.noise is not None
    assert b.noise is not None
    np.testing.assert_allclose(a.noise.covariance, b.noise.covariance)
    k, expected = a.load(0, ImageIndex()), b.load(0, ImageIndex())
    np.testing.assert_array_equal(k.data.numpy(), expected.data.numpy())
    assert k.header.geometry == expected.header.geometry


def test_a_long_recording_is_written_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = plain(n_coils=2)
    (tmp_path / "scan.bin").write_bytes(sent_scan(scan))
    to_ismrmrd(tmp_path / "scan.bin", tmp_path / "a.h5")
    assert BATCH_BYTES > 2**20
    monkeypatch.setattr("kspace.io.mrd.recording.BATCH_BYTES", 4000)
    to_ismrmrd(tmp_path / "scan.bin", tmp_path / "b.h5")
    a, b = (open_scan(tmp_path / name).load(0, ImageIndex()).data.numpy() for name in ("a.h5", "b.h5"))
    np.testing.assert_array_equal(a, b)


def test_a_recording_that_breaks_off_gives_what_is_complete(tmp_path: Path) -> None:
    scan = acquire.repeat(plain(n_coils=2), "repetition", [1.0, 1.0])
    whole = sent_scan(scan)
    readout = 2 + 340 + 2 * 64 * 8
    end = len(whole) - 2
    cases = {
        end: (60, ", without CLOSE: its 60 complete"),
        end - 1: (59, f" within the message at byte {end - readout}: its 59 complete"),
        end - 20 * readout: (40, ", without CLOSE: its 40 complete"),
    }
    for n_bytes, (n, said) in cases.items():
        (tmp_path / "scan.bin").write_bytes(whole[:n_bytes])
        (warning,) = to_ismrmrd(tmp_path / "scan.bin", tmp_path / "a.h5")
        assert warning == f"the stream breaks off after {n_bytes} bytes{said} readouts are used"
        found = open_scan(tmp_path / "a.h5")
        assert found.n_readouts == n
        assert found.images(0) == [ImageIndex(), *([ImageIndex(repetition=1)] if n == 60 else [])]
    (tmp_path / "scan.bin").write_bytes(whole + b"more")
    assert to_ismrmrd(tmp_path / "scan.bin", tmp_path / "a.h5") == ("4 bytes follow the end of the stream: left out",)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda scan: sent(*acquisitions(scan)), "no header before the readouts"),
        (lambda scan: sent_scan(scan)[:2000], "no header before the readouts"),
        (lambda scan: sent(CreateFromDocument(xml_of(scan))), "no complete readout in the stream of"),
        (lambda scan: sent(*2 * [CreateFromDocument(xml_of(scan))]), "a second header in the stream"),
    ],
)
def test_recordings_that_cannot_be_used(tmp_path: Path, build: Any, said: str) -> None:
    path = tmp_path / "scan.bin"
    path.write_bytes(build(acquire.abort(plain(n_coils=2), 3)))
    with pytest.raises(InputError, match=f"^{path}: {said}"):
        to_ismrmrd(path, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == [path]


def test_a_header_with_a_nul_within_is_refused(tmp_path: Path) -> None:
    """HDF5 would keep what stands before it."""
    scan = acquire.abort(plain(n_coils=2), 3)
    path = tmp_path / "scan.bin"
    path.write_bytes(text(3, b"<a>\0" + xml_of(scan).encode()) + sent(*acquisitions(scan)))
    with pytest.raises(InputError, match="NUL byte at its byte 3"):
        to_ismrmrd(path, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == [path]
