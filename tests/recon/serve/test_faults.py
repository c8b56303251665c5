"""What must not hurt a running server or lose data: kills, crashes, clients that block, nonsense on the line, a full disk."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from kspace.io.mrd import sending
from kspace.simulation import acquisition as acquire
from kspace.simulation.measurement import write_scan
from recon.serve.spool import Spool, is_locked
from tests.conftest import ROOT
from tests.support.raw_files import plain
from tests.support.served import (
    PATIENCE_S,
    Served,
    closed,
    exchange,
    honest,
    images,
    received,
    scan_messages,
    serving,
    session,
    texts,
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        tmp_path_factory.mktemp("spool"), "--method", "zero-filled", "--idle-timeout", "20", "--workers", "1"
    ) as served:
        yield served


# -- workers ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_replaced_and_its_client_gets_the_classical_image(four_slices: Path, tmp_path: Path) -> None:
    xml, readouts = scan_messages(four_slices)
    with serving(tmp_path / "spool", "--method", "l1-wavelet") as served:
        worker = served.named("worker", state="ready")[0]["pid"]
        os.kill(worker, signal.SIGSTOP)  # so that it is surely at work when it dies
        with served.connect() as connection:
            connection.sendall(b"".join([sending.config_file("default"), sending.header(xml), *readouts]))
            served.wait_for("received")
            time.sleep(0.3)
            os.kill(worker, signal.SIGKILL)
            got = exchange(connection, sending.close())
        assert closed(got)
        assert len(images(got)) == 4
        assert any(line.startswith("ERROR") and "SIGKILL" in line for line in texts(got))
        assert any("by sense" in line for line in texts(got))
        assert served.named("worker", state="replaced", pid=worker)
        assert len(images(served.exchange(session(four_slices)))) == 4


@pytest.mark.slow
def test_a_worker_out_of_memory_is_said_and_the_raw_data_are_kept(tmp_path: Path) -> None:
    made = plain(n_coils=2, matrix=(256, 256, 64), fov_m=(0.2, 0.2, 0.2))
    path = tmp_path / "large.h5"
    write_scan(acquire.abort(made, 300), path)
    with serving(tmp_path / "spool", "--method", "zero-filled", "--worker-memory-gib", "6") as served:
        xml, readouts = scan_messages(path)
        xml = re.sub(r"<z>64</z>", "<z>4096</z>", xml)
        config = sending.config_text('{"incomplete": true}')
        got = served.exchange(b"".join([config, sending.header(xml), *readouts, sending.close()]))
        assert closed(got)
        assert any(line.startswith("ERROR") for line in texts(got)), texts(got)
        assert served.kept().exists()


# -- nobody blocks anybody -------------------------------------------------------------------------------------------


def test_clients_that_block_do_not_delay_an_honest_one(server: Served, four_slices: Path) -> None:
    data = session(four_slices)
    honest(server, data, 4)
    undisturbed = min(honest(server, data, 4) for _ in range(3))
    with ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(60)]
        begun = [stack.enter_context(server.connect()) for _ in range(38)]
        for connection in begun:
            connection.sendall(data[: len(data) // 3])
        unread = stack.enter_context(server.connect())
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        threading.Thread(target=lambda: _ignore(unread.sendall, data), daemon=True).start()
        slow = stack.enter_context(server.connect())
        for i in range(3):
            slow.sendall(data[i : i + 1])
        time.sleep(1.0)
        disturbed = min(honest(server, data, 4) for _ in range(3))
        assert len(silent) + len(begun) + 2 == 100
    assert disturbed < 10
    assert disturbed < 2 * undisturbed + 0.1


def test_clients_share_the_memory_for_unfinished_messages(four_slices: Path, tmp_path: Path) -> None:
    xml, readouts = scan_messages(four_slices)
    claims = bytearray(readouts[0])
    for place, value in ((34, 60_000), (38, 32)):  # number_of_samples and active_channels of its header, after its kind
        claims[2 + place : 4 + place] = value.to_bytes(2, "little")
    greedy = b"".join([sending.config_file("default"), sending.header(xml), claims, bytes(1_500_000)])
    with (
        serving(tmp_path / "spool", "--method", "zero-filled", "--max-unfinished-gib", "0.002") as served,
        ExitStack() as stack,
    ):
        first = stack.enter_context(served.connect())
        first.sendall(greedy)  # 1.4 MiB of 2 MiB: allowed as long as nobody else needs memory
        served.wait_until(lambda: bool(served.named("received")), "the first client was not heard")
        got = served.exchange(greedy)
        assert closed(got)
        (said,) = [line for line in texts(got) if line.startswith("ERROR")]
        assert re.search(r"1 MiB of an unfinished message, and all clients hold 2 MiB of them; send one scan after", said), said
        honest(served, session(four_slices), 4)
        first.sendall(bytes(2_000_000))
        assert served.process.poll() is None


def _ignore(call: Callable[[bytes], Any], data: bytes) -> None:
    with suppress(OSError):
        call(data)


def test_a_silent_client_is_closed_with_a_text(four_slices: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "spool", "--idle-timeout", "1", "--total-timeout", "4", ready=False) as served:
        with served.connect() as connection:
            got = received(connection)
        assert closed(got)
        assert any("nothing came for 1 s" in line for line in texts(got))
        started = time.monotonic()
        with served.connect() as dribbling, suppress(OSError):
            for byte in session(four_slices):
                dribbling.sendall(bytes([byte]))
                time.sleep(0.2)
        assert time.monotonic() - started < 30
        served.wait_for("ended", outcome="timed out")


def test_more_clients_than_allowed_are_refused_in_words(tmp_path: Path) -> None:
    with serving(tmp_path / "spool", "--max-clients", "2", ready=False) as served, served.connect(), served.connect():
        served.wait_for("connected", 2)
        with served.connect() as third:
            got = received(third)
        assert closed(got)
        assert any("2 clients are connected already" in line for line in texts(got))


# -- order -----------------------------------------------------------------------------------------------------------


def test_sigterm_finishes_the_scan_in_hand_and_refuses_new_ones(four_slices: Path, tmp_path: Path) -> None:
    data = session(four_slices)
    with serving(tmp_path / "spool", "--method", "zero-filled") as served:
        with served.connect() as connection, served.connect():
            connection.sendall(data[: len(data) // 2])
            served.wait_for("received")
            served.process.terminate()
            served.wait_for("stopping")
            with pytest.raises(OSError):
                served.connect().recv(1)
            got = exchange(connection, data[len(data) // 2 :])
        assert closed(got)
        assert len(images(got)) == 4
        assert served.process.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_sigterm_waits_no_longer_than_it_is_told(four_slices: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "spool", "--stop-timeout", "1") as served, served.connect() as connection:
        connection.sendall(session(four_slices, close=False))
        served.wait_for("received")
        served.process.terminate()
        started = time.monotonic()
        assert served.process.wait(PATIENCE_S) == 0
        assert time.monotonic() - started < 15
    assert len(Spool(tmp_path / "spool", 0, None).unfinished()) == 1


def test_health_and_metrics(four_slices: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "spool", "--method", "zero-filled", "--metrics-port", "0") as served:
        served.exchange(session(four_slices))
        served.kept()
        served.wait_for("ended")
        base = f"http://127.0.0.1:{served.wait_for('metrics')['port']}"
        with urllib.request.urlopen(f"{base}/health", timeout=20) as answer:
            assert json.load(answer)["status"] == "ok"
        with urllib.request.urlopen(f"{base}/metrics", timeout=20) as answer:
            page = answer.read().decode()
    assert 'recon_scans_total{outcome="reconstructed"} 1.0' in page
    assert float(re.search(r"^recon_spool_bytes (.*)$", page, re.MULTILINE)[1]) > 0  # type: ignore[index]


def test_a_stranger_is_refused_and_other_hosts_are_warned_of(tmp_path: Path) -> None:
    with serving(tmp_path / "a", "--allow", "10.1.2.0/24", ready=False) as served:
        with served.connect() as connection, suppress(ConnectionError):
            assert connection.recv(1) == b""
        served.wait_for("refused")
        assert not any("warning" in line for line in served.lines)
    with serving(tmp_path / "b", "--host", "0.0.0.0", ready=False) as served:
        served.wait_until(lambda: any("no authentication" in line for line in served.lines), "no warning")


STOPPED_WHILE_IMPORTING = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "recon.serve.server":
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except BaseException:  # as the import system and the compiler do with what a signal handler raises
                pass

sys.meta_path.insert(0, Finder())
"""


def test_sigterm_during_imports_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STOPPED_WHILE_IMPORTING)
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    with serving(tmp_path / "spool", ready=False, environment={"PYTHONPATH": paths}) as served:
        assert served.process.wait(PATIENCE_S) == 0
    assert served.named("stopping")


def answer_without_certificate(served: Served, context: ssl.SSLContext, data: bytes) -> bytes:
    """What a client gets that has no certificate of its own."""
    with served.connect() as bare, suppress(OSError), context.wrap_socket(bare, server_hostname="127.0.0.1") as connection:
        connection.sendall(data)
        return connection.recv(1)
    return b""


@pytest.mark.slow
def test_tls_with_certificates_of_clients(four_slices: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate]
    try:
        subprocess.run([*command, *subject], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("needs openssl")
    options = ("--tls-cert", str(certificate), "--tls-key", str(key), "--tls-clients", str(certificate))
    with serving(tmp_path / "spool", *options, "--method", "zero-filled") as served:
        context = ssl.create_default_context(cafile=str(certificate))
        assert answer_without_certificate(served, context, session(four_slices)) == b""
        context.load_cert_chain(certificate, key)
        with context.wrap_socket(served.connect(), server_hostname="127.0.0.1") as connection:
            got = exchange(connection, session(four_slices))
        assert closed(got)
        assert len(images(got)) == 4


@pytest.mark.slow
def test_a_quota_removes_the_oldest_reconstructed_scans_only(four_slices: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    size = len(session(four_slices))
    with serving(spool, "--method", "zero-filled", "--quota-gib", str(2.5 * size / 2**30)) as served:
        for i in range(4):
            served.exchange(session(four_slices, config="savedataonly" if i == 0 else "default"))
            served.wait_for("ended", i + 1)
    outcomes = [json.loads(path.read_text())["outcome"] for path in sorted(spool.glob("*.json"))]
    assert outcomes[0] == "saved"
    assert 2 <= len(outcomes) < 4


def test_sessions_that_end_together_enforce_the_quota_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scan is removed, and named, by one of them, and no more of them than needed."""
    spool = Spool(tmp_path / "spool", 0, 1000)
    spool.prepare()
    for i in range(30):
        (spool.folder / f"{i:02}.h5").write_bytes(bytes(100))
        (spool.folder / f"{i:02}.json").write_text(json.dumps({"outcome": "reconstructed"}))
    size = (spool.folder / "00.json").stat().st_size
    used_bytes = spool.used_bytes

    def counted_slowly() -> int:
        n_bytes = used_bytes()
        time.sleep(0.05)
        return n_bytes

    monkeypatch.setattr(spool, "used_bytes", counted_slowly)
    with ThreadPoolExecutor(4) as sessions:
        removed = [path for found, _ in sessions.map(lambda _: spool.enforce_quota(), range(4)) for path in found]
    assert len(removed) == len(set(removed))
    assert 1000 - 100 - size < used_bytes() <= 1000
    assert sorted(path.stem for path in removed if path.suffix == ".h5") == [f"{i:02}" for i in range(len(removed) // 2)]


def test_scans_that_the_quota_keeps_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "spool", 0, 100)
    spool.prepare()
    for i, outcome in enumerate(["saved", "failed", "reconstructed"]):
        (spool.folder / f"{i}.json").write_text(json.dumps({"outcome": outcome}).ljust(100))
    assert spool.enforce_quota() == ([spool.folder / "2.json"], 100)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("a record is read again"))
    assert spool.enforce_quota() == ([], 100)


def test_a_full_disk_is_said_before_anything_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recon", "serve", "--port", "0", "--spool", str(tmp_path), "--min-free-gib", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "GiB are free" in done.stderr


def test_a_recording_is_locked_while_it_is_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0, None)
    spool.prepare()
    recording = spool.record()
    assert is_locked(recording.path)
    assert spool.unfinished() == []
    recording.write(b"abc")
    recording.close()
    assert spool.unfinished() == [recording.path]
