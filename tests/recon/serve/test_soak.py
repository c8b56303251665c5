"""Mutated sessions by the thousand, and scans by the thousand: nothing falls over, and memory and descriptors stay flat."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from ismrmrd.hdf5 import waveform_header_dtype

from kspace.io.mrd import sending
from kspace.io.mrd.stream import StreamParser, StreamWaveform
from tests.support.mutations import attack
from tests.support.served import Served, honest, scan_messages, serving, session
from tests.support.usage import Watch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

STEPS = 20  # rows of the table of a soak


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    options = ("--method", "sense", "--idle-timeout", "3", "--quota-gib", "0.05")
    with serving(tmp_path_factory.mktemp("spool"), *options) as served:
        yield served


@pytest.fixture(scope="module")
def messages(four_slices: Path) -> list[bytes]:
    """A session with a message of each kind, and every readout of one slice."""
    xml, readouts = scan_messages(four_slices)
    head = np.zeros((), waveform_header_dtype)
    head["channels"], head["number_of_samples"] = 2, 5
    wave = sending.waveform(StreamWaveform(head[()], np.arange(10, dtype=np.uint32).reshape(2, 5)))
    image = sending.image(ismrmrd.Image.from_array(np.ones((1, 1, 3, 4), np.int16), transpose=False))
    parameters = sending.text('{"parameters": {"config": "sense", "customconfig": ""}}')
    begin = [sending.config_file("zero-filled"), sending.header(xml), parameters]
    return [*begin, *readouts[:55], wave, image, sending.close()]


def test_the_session_that_is_mutated_is_itself_whole(messages: list[bytes], server: Served) -> None:
    parser = StreamParser()
    parser.feed(b"".join(messages))
    assert parser.closed
    assert honest(server, b"".join(messages), 2) > 0  # a slice, and the image that is passed on


def test_mutated_sessions_do_no_harm(server: Served, messages: list[bytes], four_slices: Path) -> None:
    watch = Watch("mutated sessions")
    for n, seeds in ((10, range(1, 11)), (40, range(11, 41))):
        attack(server, messages, seeds)
        watch.note(n, server=server.process.pid)
    watch.assert_flat("server", 20)
    honest(server, session(four_slices), 4)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_ten_thousand_mutated_sessions_do_no_harm(server: Served, messages: list[bytes], four_slices: Path) -> None:
    watch, step = Watch("mutated sessions"), int(os.environ.get("RECON_SOAK_SESSIONS", "10000")) // STEPS
    for i in range(-1, STEPS):  # the first step, before the figures that are compared, is on top
        attack(server, messages, range(10_000 + i * step, 10_000 + (i + 1) * step), n_clients=4)
        watch.note((i + 1) * step, server=server.process.pid)
    outcomes = Counter(event["outcome"] for event in server.named("ended"))
    print(f"outcomes: {dict(outcomes)}; workers replaced: {len(server.named('worker', state='replaced'))}")
    watch.assert_flat("server", 50)
    honest(server, session(four_slices), 4)


@pytest.mark.soak
@pytest.mark.timeout(2 * 3600)
def test_a_thousand_scans_leave_memory_and_files_flat(server: Served, four_slices: Path) -> None:
    data = session(four_slices)
    watch, step = Watch("scans"), int(os.environ.get("RECON_SOAK_SCANS", "1000")) // STEPS
    for i in range(-1, STEPS):
        for _ in range(step):
            honest(server, data, 4)
        watch.note((i + 1) * step, server=server.process.pid, worker=server.worker())
    for name in ("server", "worker"):
        watch.assert_flat(name, 20)
