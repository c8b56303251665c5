"""Latency of the server: time from the last readout sent to the last image received, over the time that `recon run` takes in
its process from the file to the last image, methods loaded in both.

Server and peer take turns on the same file; the figure is the median of the ratios. The server saves and checks the raw data
besides.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from kspace.io.mrd import sending
from kspace.io.mrd.file_stream import open_file_stream
from kspace.io.mrd.stream import StreamImage, StreamParser
from kspace.simulation.measurement import write_scan

Row = tuple[str, float, str, str]
ROUNDS = 5


def run() -> Iterator[Row]:
    """Rows of (what, figure, unit, remark)."""
    from recon.commands.demo import head_scan

    with tempfile.TemporaryDirectory(prefix="recon-bench-") as folder:
        path = Path(folder) / "scan.h5"
        write_scan(head_scan(matrix=128, n_slices=4, n_coils=8), path)
        for method in ("sense", "refinegan"):
            yield _row(path, Path(folder) / method, method)


def _row(path: Path, spool: Path, method: str) -> Row:
    from recon.run.input import open_h5_source
    from recon.run.pipeline import choose_method, reconstruct_source
    from recon.serve.options import ScannerOptions

    options = ScannerOptions(method=method)
    chosen = choose_method(options)
    reconstruct_source(open_h5_source(path), chosen, options, None, False)  # what the first image costs once
    ours, peers = [], []
    with _Server(spool, method) as port:
        _latency(port, path)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            reconstruct_source(open_h5_source(path), chosen, options, None, False)
            peers.append(time.perf_counter() - started)
            ours.append(_latency(port, path))
    ratio = statistics.median(a / b for a, b in zip(ours, peers, strict=True))
    return f"{method}: last readout to last image", ratio, "x", f"recon run; {min(ours):.2f} s against {min(peers):.2f} s"


class _Server:
    """A server process whose worker is warm."""

    def __init__(self, spool: Path, method: str) -> None:
        command = [sys.executable, "-m", "recon", "serve", "--port", "0", "--spool", str(spool), "--method", method]
        self._process = subprocess.Popen([*command, "--min-free-gib", "0.1"], stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> int:
        assert self._process.stderr is not None
        port = 0
        for line in self._process.stderr:
            port = int(line.rpartition(":")[2]) if "listening on" in line else port
            if '"state": "ready"' in line:
                break
        self._reader = threading.Thread(target=self._process.stderr.read)
        self._reader.start()
        return port

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()


def _latency(port: int, path: Path) -> float:
    """Seconds from the last byte of the last readout to the last byte of the last image."""
    sent_at: list[float] = []
    with open_file_stream(path) as stream, socket.create_connection(("127.0.0.1", port)) as connection:
        readouts = [sending.readout(one) for one in stream.readouts()]
        data = b"".join([sending.config_file("default"), sending.header(stream.xml), *readouts])

        def send() -> None:
            connection.sendall(data)
            sent_at.append(time.perf_counter())
            connection.sendall(sending.close())

        sender = threading.Thread(target=send)
        sender.start()
        parser, last = StreamParser("server"), 0.0
        while not parser.closed:
            if any(isinstance(message, StreamImage) for message in parser.feed(connection.recv(2**18))):
                last = time.perf_counter()
        sender.join()
    return last - sent_at[0]
