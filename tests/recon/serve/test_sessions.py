"""Sessions against a running server: what clients send, what comes back, what is kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from ismrmrd.hdf5 import waveform_header_dtype

from kspace.epi import OddEvenPhase, Trapezoid
from kspace.io.checksums import sha256
from kspace.io.mrd import open_scan, sending
from kspace.io.mrd.images import read_images
from kspace.io.mrd.stream import StreamParser, StreamReadout, StreamWaveform
from kspace.simulation import acquisition as acquire
from kspace.simulation.echo_planar import echo_planar
from kspace.simulation.measurement import write_scan
from recon.run.options import RunOptions
from recon.run.pipeline import reconstruct_file
from tests.support.raw_files import plain
from tests.support.served import (
    Served,
    closed,
    exchange,
    images,
    pixels_by_index,
    raw_text,
    scan_messages,
    serving,
    session,
    texts,
)


def small(path: Path, n_slices: int = 3, flags: bool = True, noise: bool = True, repetitions: int = 1) -> Path:
    """Undersampled slices with calibration lines and a noise scan."""
    scan = acquire.accelerate(plain(noise=0.02, n_slices=n_slices), 2, calibration=16)
    if repetitions > 1:
        scan = acquire.repeat(scan, "repetition", [1.0 + 0.1 * i for i in range(repetitions)])
    scan = acquire.mark_last(scan) if flags else scan
    write_scan(acquire.add_noise_scan(scan, 64) if noise else scan, path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("spool"), "--method", "sense", "--mrd-pixels", "float32") as served:
        yield served


def run_images(path: Path, out: Path, **options: object) -> dict[tuple[int, ...], np.ndarray]:
    """Images of `recon run`, in the layout of `pixels_by_index`."""
    chosen = {"method": "sense", "format": "mrd", **options}
    reconstruct_file(path, out, RunOptions(**chosen))  # type: ignore[arg-type]
    found = {}
    for one in read_images(out / f"{path.stem}.mrd.h5"):
        i = one.image.header.index
        found[one.series, i.contrast, i.set, i.phase, i.repetition, i.slice] = one.image.data.numpy()[None]
    return found


@pytest.mark.parametrize("flags", [True, False], ids=["streamed", "at-close"])
def test_images_are_those_of_recon_run_bit_for_bit(server: Served, flags: bool, tmp_path: Path) -> None:
    path = small(tmp_path / "scan.h5", flags=flags, repetitions=2)
    got = server.exchange(session(path))
    assert closed(got)
    assert not [line for line in texts(got) if line.startswith("ERROR")]
    expected = run_images(path, tmp_path / "out")
    served = pixels_by_index(images(got))
    assert served.keys() == expected.keys()
    assert len(served) == 6
    for index, pixels in expected.items():
        np.testing.assert_array_equal(served[index], pixels)


def test_echo_planar_images_leave_with_their_navigators_and_reference_lines(server: Served, tmp_path: Path) -> None:
    """Each slice and repetition as it is complete, bit for bit that of `recon run`: none is sent again at the end."""
    scan = acquire.accelerate(plain(noise=0.02, n_slices=2), 2, calibration=16, mode="separate")
    scan = acquire.add_noise_scan(acquire.repeat(scan, "repetition", [1.0, 1.1]), 64)
    scan = echo_planar(scan, Trapezoid(160, 240, 160, 80, 6.2), n_shots=2, phase=OddEvenPhase(0.6, -0.02))
    path = tmp_path / "scan.h5"
    write_scan(acquire.mark_last(scan), path)
    got = server.exchange(session(path))
    assert not [line for line in texts(got) if "ERROR" in line or "sent again" in line or "navigators" in line], texts(got)
    expected, served = run_images(path, tmp_path / "out"), pixels_by_index(images(got))
    assert served.keys() == expected.keys()
    assert len(served) == 4
    for index, pixels in expected.items():
        np.testing.assert_array_equal(served[index], pixels)
    assert not server.named("left for the end")


@pytest.mark.parametrize("refine", ["none", "stack"])
def test_generated_images_are_those_of_recon_run_bit_for_bit(server: Served, refine: str, tmp_path: Path) -> None:
    """One slice at a time without refinement; with the stack, which needs the volume, at the end."""
    path = small(tmp_path / "scan.h5", n_slices=2)
    xml, readouts = scan_messages(path)
    config = sending.config_text(json.dumps({"parameters": {"method": "refinegan", "refine": refine}}))
    got = server.exchange(b"".join([config, sending.header(xml), *readouts, sending.close()]))
    assert not [line for line in texts(got) if line.startswith("ERROR")], texts(got)
    reconstruct_file(path, tmp_path / "out", RunOptions(method="refinegan", refine=refine, format="mrd"))  # type: ignore[arg-type]
    expected = {}
    for file in (tmp_path / "out").glob("*.mrd.h5"):
        for one in read_images(file):
            expected[one.meta["SeriesDescription"], one.image.header.index.slice] = one.image.data.numpy()
    found = {
        (ismrmrd.Meta.deserialize(one.attributes)["SeriesDescription"], int(one.head["slice"])): one.pixels[0]
        for one in images(got)
    }
    assert found.keys() == expected.keys()
    assert len({description for description, _ in found}) >= 2
    for key, pixels in expected.items():
        np.testing.assert_array_equal(found[key], pixels)


def test_a_slice_comes_back_before_the_next_is_sent(server: Served, tmp_path: Path) -> None:
    path = small(tmp_path / "scan.h5")
    xml, readouts = scan_messages(path)
    flags = [int(row["flags"]) for row in (StreamParser().feed(r)[0].head for r in readouts)]  # type: ignore[union-attr]
    first = next(i for i, f in enumerate(flags) if f & (1 << 7)) + 1
    with server.connect() as connection:
        connection.sendall(sending.config_file("sense") + sending.header(xml) + b"".join(readouts[:first]))
        parser, early = StreamParser("server"), []
        while not images(early):
            early += parser.feed(connection.recv(65536))
        rest = exchange(connection, b"".join(readouts[first:]) + sending.close())
    assert int(images(early)[0].head["slice"]) == 0
    assert len(images(rest)) == 2


def test_raw_data_are_kept_with_waveforms_and_checksums(server: Served, tmp_path: Path) -> None:
    path = small(tmp_path / "scan.h5")
    xml, readouts = scan_messages(path)
    head = np.zeros((), waveform_header_dtype)
    head["channels"], head["number_of_samples"] = 2, 5
    wave = sending.waveform(StreamWaveform(head[()], np.arange(10, dtype=np.uint32).reshape(2, 5)))
    server.exchange(sending.config_file("savedataonly") + sending.header(xml) + wave + b"".join(readouts) + sending.close())
    kept = server.kept()
    record = json.loads(kept.with_suffix(".json").read_text())
    assert record["outcome"] == "saved"
    assert record["file_sha256"] == sha256(kept)
    assert record["n_readouts"] == len(readouts)
    assert not kept.with_suffix(".mrd").exists()
    with h5py.File(kept, "r") as ours, h5py.File(path, "r") as theirs:
        np.testing.assert_array_equal(ours["dataset/data"]["head"], theirs["dataset/data"]["head"])
        for mine, original in zip(ours["dataset/data"]["data"], theirs["dataset/data"]["data"], strict=True):
            np.testing.assert_array_equal(mine, original)
    with ismrmrd.Dataset(str(kept), create_if_needed=False) as stored:
        np.testing.assert_array_equal(stored.read_waveform(0).data.ravel(), np.arange(10))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (sending.close(), "no header"),
        (sending.config_file("sense") + sending.close(), "no header"),
        (sending.config_file("sense") + raw_text(3, b"Dummy XML header\0") + sending.close(), "not XML"),
        (b"\x63\x00", "kind 99"),
        (b"\xff\x03" + bytes(64), "kind 1023 (RECONDATA)"),
        (sending.config_file("sense") + b"\x03\x00\xff\xff\xff\xff", "claims 4294967295 bytes"),
    ],
    ids=["close", "config-close", "dummy-header", "unknown", "recondata", "huge"],
)
def test_what_is_no_scan_is_said_and_closed(server: Served, data: bytes, says: str) -> None:
    n = len(server.named("ended"))
    got = server.exchange(data)
    assert closed(got)
    assert [line for line in texts(got) if says in line], texts(got)
    server.wait_for("ended", n + 1)


def test_compressed_samples_are_refused_in_words(server: Served, tmp_path: Path) -> None:
    xml, readouts = scan_messages(small(tmp_path / "scan.h5"))
    compressed = bytearray(readouts[0])
    compressed[2 + 2 + 6] |= 0x10  # flag 53 of the header that follows kind and version
    got = server.exchange(sending.config_file("sense") + sending.header(xml) + bytes(compressed) + sending.close())
    assert closed(got)
    assert any("compressed" in line and line.startswith("ERROR") for line in texts(got))


def test_the_bytes_of_the_reference_client_are_understood(server: Served, tmp_path: Path) -> None:
    """Texts end with NUL within their length, parameters follow the header, the configuration is its default."""
    path = small(tmp_path / "scan.h5", n_slices=1)
    xml, readouts = scan_messages(path)
    parameters = json.dumps({"parameters": {"config": "zero-filled"}}).encode() + b"\0"
    data = [sending.config_file("invertcontrast"), raw_text(3, xml.encode() + b"\0"), raw_text(5, parameters), *readouts]
    got = server.exchange(b"".join([*data, sending.close()]))
    assert closed(got)
    assert len(images(got)) == 1
    assert any(line.startswith("ERROR") and "invertcontrast" in line for line in texts(got))
    without = [sending.config_file("zero-filled"), raw_text(3, xml.encode()), *readouts, sending.close()]
    plain_text = server.exchange(b"".join(without))
    np.testing.assert_array_equal(images(got)[0].pixels, images(plain_text)[0].pixels)


def test_images_are_passed_on_unchanged(server: Served) -> None:
    made = ismrmrd.Image.from_array(np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4), transpose=False)
    made.meta = ismrmrd.Meta({"Name": "grün"})
    message = sending.image(made)
    got = server.exchange(sending.config_file("null") + raw_text(3, b"Dummy XML header\0") + message + sending.close())
    assert closed(got)
    assert sending.image(made) == message
    assert images(got)[0].head.tobytes() == StreamParser().feed(message)[0].head.tobytes()  # type: ignore[union-attr]
    np.testing.assert_array_equal(images(got)[0].pixels, made.data)


def test_a_noise_scan_of_its_own_whitens_the_scan_that_depends_on_it(server: Served, tmp_path: Path) -> None:
    whole = small(tmp_path / "scan.h5", n_slices=1)
    xml, readouts = scan_messages(whole)
    flags = [int(StreamParser().feed(r)[0].head["flags"]) for r in readouts]  # type: ignore[union-attr]
    noise = [r for r, f in zip(readouts, flags, strict=True) if f & (1 << 18)]
    lines = [r for r, f in zip(readouts, flags, strict=True) if not f & (1 << 18)]
    mine = "<measurementID>noise/../7</measurementID>"
    depends = "<measurementID>8</measurementID><measurementDependency><dependencyType>Noise</dependencyType>"
    depends += mine + "</measurementDependency>"
    noise_xml, scan_xml = (re.sub("<measurementID>.*?</measurementID>", one, xml) for one in (mine, depends))
    first = [sending.config_file("default_measurement_dependencies.xml"), sending.header(noise_xml), *noise, sending.close()]
    got = server.exchange(b"".join(first))
    assert any("noise scan of measurement noise/../7 kept" in line for line in texts(got)), texts(got)
    got = server.exchange(b"".join([sending.config_file("sense"), sending.header(scan_xml), *lines, sending.close()]))
    expected = run_images(whole, tmp_path / "out")
    np.testing.assert_array_equal(images(got)[0].pixels, next(iter(expected.values())))


def test_a_connection_that_breaks_off_gives_what_is_complete(server: Served, tmp_path: Path) -> None:
    path = small(tmp_path / "scan.h5")
    readout = len(scan_messages(path)[1][-1])
    data = session(path, close=False)
    with server.connect() as connection:
        connection.sendall(data[: -5 * readout - 7])
        connection.shutdown(1)
        got = exchange(connection, b"")
    assert closed(got)
    assert len(images(got)) == 2
    assert any("without CLOSE" in line for line in texts(got))


def test_readouts_after_the_image_was_sent_are_used_and_said(server: Served, tmp_path: Path) -> None:
    """A sender that marks the last line too early."""
    path = small(tmp_path / "scan.h5", n_slices=1, noise=False)
    xml, readouts = scan_messages(path)
    heads = [StreamParser().feed(r)[0] for r in readouts]
    early = len(heads) - 3
    changed = []
    for i, one in enumerate(heads):
        assert isinstance(one, StreamReadout)
        head = one.head.copy()
        head["flags"] = np.uint64(1 << 7) if i == early else np.uint64(int(head["flags"]) & ~(1 << 7))
        changed.append(sending.readout(replace(one, head=head)))
    with server.connect() as connection:
        connection.sendall(sending.config_file("sense") + sending.header(xml) + b"".join(changed[: early + 1]))
        parser, first = StreamParser("server"), []
        while not images(first):
            first += parser.feed(connection.recv(65536))
        rest = exchange(connection, b"".join(changed[early + 1 :]) + sending.close())
    expected = run_images(path, tmp_path / "out")
    np.testing.assert_array_equal(images(rest)[-1].pixels, next(iter(expected.values())))
    assert any("sent again" in line for line in texts(rest))


def test_standard_input_and_output_serve_one_session(tmp_path: Path) -> None:
    path = small(tmp_path / "scan.h5", n_slices=1)
    command = [sys.executable, "-m", "recon", "serve", "--stdio", "--spool", str(tmp_path / "spool"), "--min-free-gib", "0.01"]
    done = subprocess.run(
        [*command, "--mrd-pixels", "float32"], input=session(path), capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    got = StreamParser().feed(done.stdout)
    assert closed(got)
    np.testing.assert_array_equal(images(got)[0].pixels, next(iter(run_images(path, tmp_path / "out").values())))


@pytest.mark.timeout(300)
def test_named_pipes_serve_one_session(tmp_path: Path) -> None:
    """As Tyger starts a process: $INPUT_PIPE and $OUTPUT_PIPE, each opened by the other side too."""
    path = small(tmp_path / "scan.h5", n_slices=1)
    pipes = {"INPUT_PIPE": tmp_path / "in", "OUTPUT_PIPE": tmp_path / "out"}
    for pipe in pipes.values():
        os.mkfifo(pipe)
    command = [sys.executable, "-m", "recon", "serve", "--stdio", "--spool", str(tmp_path / "spool"), "--min-free-gib", "0.01"]
    environment = {**os.environ, **{name: str(pipe) for name, pipe in pipes.items()}}
    with subprocess.Popen(
        [*command, "--method", "zero-filled"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        sender = threading.Thread(target=pipes["INPUT_PIPE"].write_bytes, args=(session(path),))
        sender.start()
        got = StreamParser().feed(pipes["OUTPUT_PIPE"].read_bytes())
        printed, _ = process.communicate()
        sender.join()
    assert process.returncode == 0
    assert printed == ""
    assert closed(got)
    assert len(images(got)) == 1


def test_the_ismrmrd_library_sends_and_reads(server: Served, tmp_path: Path) -> None:
    import socket

    from ismrmrd.serialization import ConfigFile, ProtocolDeserializer, ProtocolSerializer
    from ismrmrd.xsd import CreateFromDocument

    path = small(tmp_path / "scan.h5", n_slices=2)
    with server.connect() as connection, connection.makefile("rwb") as stream:
        writer = ProtocolSerializer(stream)
        writer.serialize(ConfigFile("sense"))
        with ismrmrd.Dataset(str(path), create_if_needed=False) as scan:
            writer.serialize(CreateFromDocument(scan.read_xml_header()))
            for i in range(scan.number_of_acquisitions()):
                writer.serialize(scan.read_acquisition(i))
        writer.close()
        stream.flush()
        connection.settimeout(60)
        found = list(ProtocolDeserializer(stream).deserialize())
    assert isinstance(connection, socket.socket)
    theirs = [one for one in found if isinstance(one, ismrmrd.Image)]
    expected = run_images(path, tmp_path / "out")
    for one in theirs:
        np.testing.assert_array_equal(one.data, expected[one.image_series_index, 0, 0, 0, 0, one.slice])
    assert len(theirs) == 2


def test_recordings_are_read_by_recon_run(server: Served, tmp_path: Path) -> None:
    """The stream of a session is what `recon run` reads; here of one with an image, whose stream stays."""
    path = small(tmp_path / "scan.h5")
    made = sending.image(ismrmrd.Image.from_array(np.zeros((1, 1, 3, 4), np.int16), transpose=False))
    data = session(path, close=False) + made + sending.close()
    server.exchange(data)
    kept = server.kept().with_suffix(".mrd")
    assert kept.read_bytes() == data
    assert open_scan(kept.with_suffix(".h5")).n_readouts == open_scan(path).n_readouts
    got, expected = run_images(kept, tmp_path / "a"), run_images(path, tmp_path / "b")
    for index, pixels in expected.items():
        np.testing.assert_array_equal(got[index], pixels)


def test_the_socket_listens_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """Processor time, which does not depend on what else the computer does; docs/SERVE.md has the time on the clock."""
    seconds = []
    for i in range(2):
        with serving(tmp_path / str(i), ready=False) as served, served.connect():
            seconds.append(served.cpu_seconds_to_listen)
            assert not served.named("worker", state="ready")
    assert min(seconds) < 0.5
