"""`recon send` against servers that the ISMRMRD library's serialisation makes, good ones and bad ones."""

from __future__ import annotations

import io
import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile, ConfigText, ProtocolSerializer

from kspace.errors import InputError
from kspace.io.mrd.images import read_images
from recon import cli
from recon.commands.scanner import client
from recon.commands.scanner.client import Address, Exchange, connect, parse_address
from recon.commands.scanner.send import split_level
from tests.support import raw_files
from tests.support.mrd_server import Session, image, serve_once


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    raw_files.simple(path, n_coils=2)
    return path


def send(scan: Path, address: str, output: Path, *more: str) -> int:
    return cli.execute(["send", str(scan), address, "-o", str(output), *more])


def values(number: int, dtype: type = np.uint16) -> np.ndarray:
    return (np.arange(12).reshape(1, 3, 4) + 100 * number).astype(dtype)


def answer(session: Session) -> None:
    """Answers while the scan is still coming: an image after the tenth message, another at the end."""
    for n, _ in enumerate(session.each()):
        if n == 10:
            session.writer.serialize("INFO half")
            session.writer.serialize(image(values(1), 1, 1, ImageComment="grün"))
            session.send()
    session.writer.serialize("WARNING  one slice\x1b[2J is missing\0")
    session.writer.serialize(image(values(2), 1, 2))
    session.writer.serialize(image(values(3, np.complex64), 2, 1))
    session.writer.close()


def test_what_is_sent_is_what_the_ismrmrd_library_would_write(scan: Path, tmp_path: Path) -> None:
    before = scan.stat()
    with serve_once(answer) as served:
        assert send(scan, served.address, tmp_path / "images.h5", "--config", "refinegan") == 0
    assert not served.errors
    config, header, *readouts = served.messages
    assert isinstance(config, ConfigFile)
    assert config == "refinegan"
    assert header.encoding[0].encodedSpace.matrixSize.x == 64
    with ismrmrd.File(str(scan), "r") as file:
        stored = list(file["dataset"].acquisitions)
        assert len(readouts) == len(stored)
        expected = io.BytesIO()
        writer = ProtocolSerializer(expected)
        for one in stored:
            writer.serialize(one)
    assert served.recorder is not None
    assert bytes(served.recorder.taken).endswith(expected.getvalue() + struct.pack("<H", 4))
    assert (scan.stat().st_mtime_ns, scan.stat().st_size) == (before.st_mtime_ns, before.st_size)


def test_images_and_texts_come_back(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "images.h5"
    with serve_once(answer) as served:
        assert send(scan, served.address, out) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [str(out)]
    assert "info: half" in printed.err
    assert "warning: one slice [2J is missing" in printed.err
    assert "\x1b" not in printed.err
    stored = read_images(out)
    assert [(one.series, one.number) for one in stored] == [(1, 1), (1, 2), (2, 1)]
    for number, one in enumerate(stored, start=1):
        np.testing.assert_array_equal(one.image.data.numpy(), values(number))
    assert stored[0].meta["ImageComment"] == "grün"
    with ismrmrd.File(str(out), "r") as file:
        assert len(file["dataset/image_1"].images) == 2
    with h5py.File(out, "r") as file, h5py.File(scan, "r") as raw:
        assert file["dataset/xml"][0] == raw["dataset/xml"][0]


def test_images_of_a_series_that_differ_are_all_kept(scan: Path, tmp_path: Path) -> None:
    def differ(session: Session) -> None:
        list(session.each())
        for one in (values(1), values(2, np.float32), values(3)[:, :2], values(4)):
            session.writer.serialize(image(np.ascontiguousarray(one)))
        session.writer.close()

    with serve_once(differ) as served:
        assert send(scan, served.address, tmp_path / "images.h5") == 0
    with h5py.File(tmp_path / "images.h5", "r") as file:
        shapes = {name: file["dataset"][name]["data"].shape for name in file["dataset"] if name.startswith("image")}
    assert shapes == {"image_1": (2, 1, 1, 3, 4), "image_1_2": (1, 1, 1, 3, 4), "image_1_3": (1, 1, 1, 2, 4)}


def test_configurations_and_parameters_in_json(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"parameters": {"config": "tv"}}')
    with serve_once(answer) as served:
        more = ["--config", '{"method": "sense"}', "--parameters", str(tmp_path / "p.json")]
        assert send(scan, served.address, tmp_path / "images.h5", *more) == 0
    config, _, text = served.messages[:3]
    assert isinstance(config, ConfigText)
    assert json.loads(config) == {"method": "sense"}
    assert json.loads(text) == {"parameters": {"config": "tv"}}


def test_waveforms_are_sent_in_the_order_of_time(scan: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.h5"
    both.write_bytes(scan.read_bytes())
    with ismrmrd.File(str(both), "a") as file:
        wave = [
            ismrmrd.Waveform.from_array(np.arange(6, dtype=np.uint32).reshape(2, 3), time_stamp=t, waveform_id=1)
            for t in (1, 0)
        ]
        file["dataset"].waveforms = wave
    with serve_once(answer) as served:
        assert send(both, served.address, tmp_path / "images.h5", "--waveforms") == 0
    waves = [one for one in served.messages if isinstance(one, ismrmrd.Waveform)]
    assert [one.time_stamp for one in waves] == [0, 1]
    np.testing.assert_array_equal(waves[0].data, wave[0].data)


def half_an_image(session: Session) -> None:
    list(session.each())
    session.writer.serialize(image(values(1)))
    session.send(struct.pack("<H", 1022) + b"\0" * 100)


def no_close(session: Session) -> None:
    list(session.each())
    session.writer.serialize("ERROR  out of memory")


def unknown_kind(session: Session) -> None:
    list(session.each())
    session.writer.serialize(image(values(1)))
    session.send(struct.pack("<H", 1024))


def huge(session: Session) -> None:
    list(session.each())
    session.send(struct.pack("<HI", 5, 2**31))


def no_image(session: Session) -> None:
    list(session.each())
    session.writer.serialize("ERROR the weights are missing")
    session.writer.close()


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (half_an_image, "without CLOSE"),
        (no_close, "without CLOSE"),
        (unknown_kind, "1024 (IMAGE_ARRAY)"),
        (huge, "claims 2147483648 bytes"),
        (no_image, "sent no image"),
    ],
)
def test_a_server_that_fails_leaves_no_file_and_one_line(
    behaviour: Callable[[Session], None], says: str, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_once(behaviour) as served:
        assert send(scan, served.address, tmp_path / "images.h5") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recon: error:")]
    assert len(errors) == 1
    assert says in errors[0]
    assert served.address in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_no_image_is_no_error_where_none_was_asked_for(scan: Path, tmp_path: Path) -> None:
    with serve_once(lambda session: (list(session.each()), session.writer.close())[0]) as served:
        assert send(scan, served.address, tmp_path / "images.h5", "--config", "savedataonly") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_refuses_early_is_heard(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(session: Session) -> None:
        session.writer.serialize("ERROR no more clients")
        session.writer.close()
        session.send()
        session.connection.recv(1)

    with serve_once(refuse) as served:
        assert send(scan, served.address, tmp_path / "images.h5") == 2
    printed = capsys.readouterr().err
    assert "error: no more clients" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_and_one_that_takes_nothing_are_given_up(scan: Path, tmp_path: Path) -> None:
    over = threading.Event()

    def stall(session: Session) -> None:
        over.wait(20)

    messages = iter([b"\0" * 2**20] * 64)
    with serve_once(stall) as served:
        started = time.monotonic()
        connection = connect(parse_address(served.address))
        with pytest.raises(InputError, match="took nothing and sent nothing for 1 s"):
            Exchange(connection, messages, lambda message: None, Address("127.0.0.1", served.port), idle_s=1).run()
        assert time.monotonic() - started < 10
        assert len(list(messages)) > 0  # memory is bounded by what the system takes
        over.set()


def test_the_total_time_is_bounded(scan: Path) -> None:
    over = threading.Event()

    def chatter(session: Session) -> None:
        while not over.wait(0.1):
            session.send(struct.pack("<HI", 5, 3) + b"on\0")

    with serve_once(chatter) as served:
        connection = connect(parse_address(served.address))
        with pytest.raises(InputError, match=r"more than 1\.5 s"):
            Exchange(connection, iter([]), lambda message: None, Address("127.0.0.1", served.port), 5, 1.5).run()
        over.set()


def test_no_server(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    tried: list[float] = []
    monkeypatch.setattr(client.time, "sleep", tried.append)
    assert send(scan, f"127.0.0.1:{port}", tmp_path / "images.h5") == 2
    assert tried == [1.0] * 4
    assert f"127.0.0.1:{port}: no connection (Connection refused)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["127.0.0.1"], "no address"),
        ([":9002"], "no address"),
        (["a:b"], "no address"),
        (["127.0.0.1:99999"], "no address"),
        (["127.0.0.1:1", "--tls-cert", "x.pem"], "give --tls-ca"),
        (["127.0.0.1:1", "--tls-ca", "x.pem"], "certificates cannot be used"),
        (["127.0.0.1:1", "--config", "missing.json"], "No such file"),
    ],
)
def test_arguments_are_refused_in_one_line(
    arguments: list[str], says: str, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(scan, arguments[0], tmp_path / "images.h5", *arguments[1:]) == 2
    assert says in capsys.readouterr().err


def test_outputs_are_checked_before_anything_is_sent(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.h5").write_text("mine")
    for output, says in ((tmp_path / "there.h5", "exists already"), (scan, "overwrite the scan"), (tmp_path, "a folder")):
        assert send(scan, "127.0.0.1:1", output) == 2
        assert says in capsys.readouterr().err
    assert send(tmp_path / "there.h5", "127.0.0.1:1", tmp_path / "images.h5") == 2
    assert "not an HDF5 file" in capsys.readouterr().err
    assert (tmp_path / "there.h5").read_text() == "mine"


def test_addresses() -> None:
    assert parse_address("[::1]:9002") == Address("::1", 9002)
    assert str(parse_address("[::1]:9002")) == "[::1]:9002"
    assert str(parse_address("scanner:9002")) == "scanner:9002"


def test_levels_of_texts() -> None:
    assert split_level("ERROR   no weights") == ("ERROR", "no weights")
    assert split_level("[warning]: low") == ("WARNING", "low")
    assert split_level("half of it\0") == ("INFO", "half of it")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of 127.0.0.1 in one file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    done = subprocess.run([*made.split(), "-keyout", "-", "-out", "-"], capture_output=True, check=True)
    path.write_bytes(done.stdout)
    return path


def test_tls(scan: Path, tmp_path: Path, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    taken = bytearray()

    def work(listener: socket.socket) -> None:
        plain, _ = listener.accept()
        with context.wrap_socket(plain, server_side=True) as connection:
            while not taken.endswith(struct.pack("<H", 4)):
                taken.extend(connection.recv(4096))
            answer = io.BytesIO()
            writer = ProtocolSerializer(answer)
            for number in range(40):
                writer.serialize(image(np.full((1, 64, 64), number, np.uint16), 1, number))
            writer.close()
            connection.sendall(answer.getvalue())
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=work, args=(listener,), daemon=True)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert send(scan, address, tmp_path / "images.h5", "--tls-ca", str(certificate)) == 0
        thread.join(10)
    assert len(read_images(tmp_path / "images.h5")) == 40
