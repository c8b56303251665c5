"""``kill -9`` at any moment: what is on the disk is what was sent, and what was logged as received is there."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kspace.io.mrd import sending
from kspace.io.mrd.images import read_images
from recon.run.options import RunOptions
from recon.run.pipeline import reconstruct_file
from recon.serve.spool import Spool
from tests.support.served import scan_messages, serving, session

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def kill_at(moment: int, n_moments: int, four_slices: Path, spool: Path, out: Path) -> None:
    """Kill server and workers while a client sends, then check what is on the disk."""
    xml, readouts = scan_messages(four_slices)
    parts = [sending.config_file("zero-filled"), sending.header(xml), *readouts, sending.close()]
    data = b"".join(parts)
    stop_at = int(len(data) * (moment + random.Random(moment).random()) / n_moments)
    with serving(spool, "--method", "zero-filled", ready=False) as served:
        connection = served.connect()
        connection.sendall(data[:stop_at])
        if moment % 2:
            served.wait_for("received")
        os.killpg(served.process.pid, signal.SIGKILL)
        served.process.wait()
        connection.close()
        acknowledged = max((e["bytes"] for e in served.named("received")), default=0)
    streams = sorted(spool.glob("*.mrd"))
    written = streams[0].read_bytes() if streams else b""
    assert data.startswith(written)
    assert len(written) >= acknowledged
    complete = sum(written.startswith(b"".join(parts[: i + 1])) for i in range(2, len(parts) - 1))
    unfinished = Spool(spool, 0, None).unfinished()
    assert unfinished == streams
    if complete > len(readouts) // 2:
        reconstruct_file(streams[0], out, RunOptions(method="zero-filled", format="mrd"))
        got = read_images(out / f"{streams[0].stem}.mrd.h5")
        reconstruct_file(four_slices, out, RunOptions(method="zero-filled", format="mrd", force=True))
        expected = {one.image.header.index: one.image.data for one in read_images(out / "scan.mrd.h5")}
        assert got
        for one in got:
            np.testing.assert_array_equal(one.image.data, expected[one.image.header.index])


@pytest.mark.parametrize("moment", [1, 2])
def test_a_kill_leaves_a_prefix_of_what_was_sent(moment: int, four_slices: Path, tmp_path: Path) -> None:
    kill_at(moment, 3, four_slices, tmp_path / "spool", tmp_path / "out")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_fifty_kills_leave_prefixes_of_what_was_sent(four_slices: Path, tmp_path: Path) -> None:
    for moment in range(50):
        kill_at(moment, 50, four_slices, tmp_path / f"spool{moment}", tmp_path / f"out{moment}")


def test_unfinished_scans_are_offered_at_the_start_and_nobody_is_left_behind(four_slices: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with serving(spool, "--method", "zero-filled") as served:
        workers = [e["pid"] for e in served.named("worker", state="ready")]
        connection = served.connect()
        connection.sendall(session(four_slices, close=False))
        served.wait_for("received")
        assert Spool(spool, 0, None).unfinished() == []
        os.kill(served.process.pid, signal.SIGKILL)
        served.process.wait()
        connection.close()
        end = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < end, "a worker is left behind"
            time.sleep(0.05)
    with serving(spool, "--method", "zero-filled", ready=False) as served:
        offered = served.wait_for("unfinished scan")
    assert offered["stream"] in offered["reconstruct"]
    assert Path(offered["stream"]).read_bytes() == session(four_slices, close=False)
