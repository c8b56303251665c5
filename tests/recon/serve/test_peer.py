"""The other side of a session."""

from __future__ import annotations

import os

from recon.serve.peer import PipePeer


def test_a_pipe_is_closed_once() -> None:
    """The number of a closed descriptor may be another file's by the time of the second call."""
    source, sink = os.pipe()
    peer = PipePeer(source, sink)
    peer.abort()
    other = os.open(os.devnull, os.O_RDONLY)
    assert other == sink
    peer.abort()
    os.fstat(other)
    os.close(other)
    os.close(source)
