"""A server process on a free port of the loopback address, and clients for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kspace.io.mrd import sending
from kspace.io.mrd.stream import Message, StreamClose, StreamImage, StreamParser, StreamReadout, StreamText
from tests.conftest import ROOT

PATIENCE_S = float(os.environ.get("RECON_PATIENCE_S", "60"))  # more where the computer is busy


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    spool: Path
    port: int = 0
    seconds_to_listen: float = 0.0
    cpu_seconds_to_listen: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def named(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Events of the log so far, with these fields."""
        return [e for e in list(self.events) if e["event"] == event and fields.items() <= e.items()]

    def wait_for(self, event: str, n: int = 1, **fields: Any) -> dict[str, Any]:
        """The `n`-th event of this kind."""
        end = time.monotonic() + PATIENCE_S
        while len(found := self.named(event, **fields)) < n:
            assert self.process.poll() is None or event in ("ended", "stopped"), "\n".join(self.lines)
            assert time.monotonic() < end, f"no {event} {fields}:\n" + "\n".join(self.lines[-40:])
            time.sleep(0.02)
        return found[n - 1]

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Until it holds; else fail, saying `what`."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, f"{what}:\n" + "\n".join(self.lines[-40:])
            time.sleep(0.02)

    def open_sessions(self) -> set[int]:
        """Sessions that were logged as connected and not yet as ended."""
        return {e["session"] for e in self.named("connected")} - {e["session"] for e in self.named("ended")}

    def worker(self) -> int:
        """Process number of the worker that became ready last."""
        return int(self.named("worker", state="ready")[-1]["pid"])

    def kept(self) -> Path:
        """The raw data of the session that connected last."""
        latest = self.named("connected")[-1]["session"]
        return Path(self.wait_for("kept", session=latest)["file"])

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def exchange(self, data: bytes) -> list[Message]:
        """Send everything, and what comes back until the server closes."""
        with self.connect() as connection:
            return exchange(connection, data)


@contextmanager
def serving(spool: Path, *options: str, ready: bool = True, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """A server with these options; at the end it gets SIGTERM and must end by itself with status 0, or have been killed."""
    command = [sys.executable, "-m", "recon", "serve", "--port", "0", "--spool", str(spool), "--min-free-gib", "0.01", *options]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})}
    started = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=variables, start_new_session=True)
    served = Served(process, spool)
    listening = threading.Event()

    def follow() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            served.lines.append(line.rstrip())
            if line.startswith("{"):
                served.events.append(json.loads(line))
            elif "listening on" in line:
                served.seconds_to_listen = time.monotonic() - started
                times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
                served.cpu_seconds_to_listen = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
                served.port = int(line.rpartition(":")[2])
                listening.set()

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    try:
        assert listening.wait(PATIENCE_S), "\n".join(served.lines)
        if ready:
            served.wait_for("worker", state="ready")
        yield served
        if process.poll() is None:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0, "\n".join(served.lines[-40:])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(PATIENCE_S)
        assert process.stderr is not None
        process.stderr.close()


def exchange(connection: socket.socket, data: bytes) -> list[Message]:
    """Send from a thread, as reference clients do, and read until the server closes."""

    def send() -> None:
        with suppress(OSError):
            connection.sendall(data)

    sender = threading.Thread(target=send)
    sender.start()
    found = received(connection)
    sender.join(PATIENCE_S)
    return found


def received(connection: socket.socket) -> list[Message]:
    """Messages until CLOSE or the end."""
    parser, found = StreamParser("server"), []
    with suppress(ConnectionError):
        while not parser.closed and (data := connection.recv(65536)):
            found += parser.feed(data)
    return found


def scan_messages(path: Path) -> tuple[str, list[bytes]]:
    """Header and readouts of an ISMRMRD file, the readouts as messages."""
    with h5py.File(path, "r") as file:
        xml = file["dataset/xml"][0].decode()
        rows = file["dataset/data"][:]
    messages = []
    for row in rows:
        head = row["head"]
        shape = int(head["active_channels"]), int(head["number_of_samples"])
        samples = row["data"].view(np.complex64).reshape(shape)
        trajectory = row["traj"].reshape(shape[1], -1) if row["traj"].size else np.zeros((shape[1], 0), np.float32)
        messages.append(sending.readout(StreamReadout(head, samples, trajectory)))
    return xml, messages


def session(path: Path, config: str = "default", close: bool = True) -> bytes:
    """What a client sends for an ISMRMRD file."""
    xml, readouts = scan_messages(path)
    return b"".join([sending.config_file(config), sending.header(xml), *readouts, sending.close() if close else b""])


def images(messages: Sequence[Message]) -> list[StreamImage]:
    """The images among messages."""
    return [message for message in messages if isinstance(message, StreamImage)]


def texts(messages: Sequence[Message]) -> list[str]:
    """The texts among messages."""
    return [message.text for message in messages if isinstance(message, StreamText)]


def closed(messages: Sequence[Message]) -> bool:
    """Whether close was sent, and sent last."""
    return bool(messages) and isinstance(messages[-1], StreamClose)


def pixels_by_index(found: Sequence[StreamImage]) -> dict[tuple[int, ...], np.ndarray]:
    """Pixels ``(channel z y x)`` by series and counters."""
    names = ("image_series_index", "contrast", "set", "phase", "repetition", "slice")
    return {tuple(int(image.head[name]) for name in names): image.pixels for image in found}


def raw_text(kind: int, content: bytes) -> bytes:
    """A text message of any kind, its content as it is."""
    return struct.pack("<HI", kind, len(content)) + content


def honest(served: Served, data: bytes, n_images: int) -> float:
    """Seconds in which a client with a whole scan gets its images and CLOSE."""
    started = time.monotonic()
    got = served.exchange(data)
    assert closed(got)
    assert len(images(got)) == n_images, texts(got)
    return time.monotonic() - started
