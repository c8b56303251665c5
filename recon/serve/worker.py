"""Worker process: ``python -m recon.serve.worker`` reads jobs as lines of JSON and answers with lines of JSON.

It ends when its standard input does, whatever it is doing, so that none is left behind by a server that died.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import sys
import threading
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kspace.errors import InputError

BROKEN = 70  # exit status after an error that leaves the process in an unknown state


class Line:
    """The line to the server: events out, jobs in."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what a library prints must not pass for an event
        self._jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, event: str, **fields: Any) -> None:
        """Send an event; without a server to send it to, end."""
        try:
            self._out.write(json.dumps({"event": event, **fields}, default=str) + "\n")
            self._out.flush()
        except BrokenPipeError:
            os._exit(0)

    def receive(self) -> dict[str, Any]:
        """Wait for the next job."""
        return self._jobs.get()

    def _listen(self) -> None:
        for line in sys.stdin:
            self._jobs.put(json.loads(line))
        os._exit(0)


def main() -> None:
    """Work until the server ends."""
    line = Line()
    setup = line.receive()
    if setup["memory"] is not None:
        resource.setrlimit(resource.RLIMIT_AS, (setup["memory"], setup["memory"]))
    try:
        # Imported here: a worker whose memory does not suffice for torch says so.
        from recon.serve.interface import ResolvedConfig
        from recon.serve.jobs import Workshop
        from recon.serve.options import from_json

        workshop = Workshop(
            ResolvedConfig(from_json(setup["options"]), classical_first=setup["classical_first"]),
            Path(setup["noise_folder"]),
            lambda level, text: line.send("text", level=level, text=text),
            lambda path: line.send("images", path=str(path), bytes=path.stat().st_size),
            None if setup["store_folder"] is None else Path(setup["store_folder"]),
        )
        _warm_up(workshop)
    except InputError as error:
        line.send("unable", text=str(error))
        return
    line.send("ready")
    while True:
        _do(workshop, line.receive(), line)


def _do(workshop: Any, job: dict[str, Any], line: Line) -> None:
    try:
        line.send("done", **workshop.do(job))
    except InputError as error:
        line.send("failed", text=str(error))
    except BaseException as error:
        traceback.print_exc()
        with contextlib.suppress(Exception):
            line.send("broken", text=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        os._exit(BROKEN)


def _warm_up(workshop: Any) -> None:
    """Load the server's own method and reconstruct a small simulated scan: what the first image costs once is paid here."""
    from kspace.simulation.acquisition import ScanProtocol, add_noise_scan, cartesian, coil_covariance
    from kspace.simulation.measurement import write_scan
    from kspace.simulation.phantom import Phantom, ellipsoid, head_coils
    from recon.run.input import MrdSource
    from recon.run.pipeline import reconstruct_source

    options = workshop.defaults.options
    method = workshop.method(options)
    phantom = Phantom((ellipsoid((0.0, 0.0, 0.0), (0.06, 0.08, 0.07)),))
    scan = cartesian(ScanProtocol((64, 48, 1), (0.2, 0.2, 0.005)), phantom, head_coils(4), coil_covariance(4, 0.02))
    with TemporaryDirectory(prefix="recon-") as folder, contextlib.suppress(InputError):  # of options for another scan
        write_scan(add_noise_scan(scan, 64), Path(folder) / "scan.h5")
        reconstruct_source(MrdSource(Path(folder) / "scan.h5"), method, options, None, False)


if __name__ == "__main__":
    main()
