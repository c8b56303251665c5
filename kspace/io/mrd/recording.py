"""Recorded MRD streams (version 1) as ISMRMRD files, so that one reader decides what a scan means."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np

from kspace.errors import InputError
from kspace.io.mrd.stream import (
    FIRST_BYTES,
    Message,
    StreamClose,
    StreamHeader,
    StreamParser,
    StreamReadout,
    StreamWaveform,
    is_stream,
)
from kspace.io.mrd.write import HEAD_DTYPE, RawWriter, raw_writer

PIECE_BYTES = 2**20
BATCH_BYTES = 2**24  # of samples, that are written at once


def is_recording(path: str | PathLike[str]) -> bool:
    """Whether a file is a recorded MRD stream, by its first bytes; False where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return is_stream(file.read(FIRST_BYTES))
    except OSError:
        return False


def to_ismrmrd(path: str | PathLike[str], out: str | PathLike[str], n_bytes: int | None = None) -> tuple[str, ...]:
    """Write the readouts and waveforms of a recorded stream as an ISMRMRD file, a batch at a time.

    A stream that breaks off gives the readouts that are complete; what images lack by that is the reader's to find.

    Parameters
    ----------
    path
        The recorded stream; it is opened read only.
    out
        The ISMRMRD file to write; an existing one is replaced. It appears whole or not at all.
    n_bytes
        How many bytes of the stream to read; all where None.

    Returns
    -------
    tuple
        What a person should know: that the stream breaks off, that images in it were left out.

    Raises
    ------
    InputError
        If the stream cannot be followed, has no header before its readouts, or no readout.
    """
    path = Path(path)
    parser, warnings, counts = StreamParser(str(path)), [], {"StreamReadout": 0, "StreamImage": 0}
    messages = _messages(path, parser, n_bytes)
    header = _header(messages, path)
    with raw_writer(out, header.xml, "cannot convert the stream", "set TMPDIR to a folder with free space") as writer:
        batch = _Batch(writer)
        for message in messages:
            counts[type(message).__name__] = counts.get(type(message).__name__, 0) + 1
            if isinstance(message, StreamReadout | StreamWaveform):
                batch.add(message)
            elif isinstance(message, StreamHeader):
                raise InputError("a second header in the stream", path, "record the scans one by one")
        batch.write()
        n_bytes = path.stat().st_size if n_bytes is None else n_bytes
        if not counts["StreamReadout"]:
            raise InputError(f"no complete readout in the stream of {n_bytes} bytes", path, "record the stream again")
    if parser.closed and parser.n_pending:
        warnings.append(f"{parser.n_pending} bytes follow the end of the stream: left out")
    elif not parser.closed:
        within = f" within the message at byte {parser.position}" if parser.n_pending else ", without CLOSE"
        warnings.append(
            f"the stream breaks off after {n_bytes} bytes{within}: its {counts['StreamReadout']} complete readouts are used"
        )
    if counts["StreamImage"]:
        warnings.append(f"{counts['StreamImage']} images in the stream were left out")
    return tuple(warnings)


class _Batch:
    """Readouts and waveforms until there are enough to write."""

    def __init__(self, writer: RawWriter) -> None:
        self._writer, self._n_bytes = writer, 0
        self._readouts: list[StreamReadout] = []
        self._waveforms: list[StreamWaveform] = []

    def add(self, message: StreamReadout | StreamWaveform) -> None:
        self._n_bytes += message.samples.nbytes + HEAD_DTYPE.itemsize
        if isinstance(message, StreamReadout):
            self._readouts.append(message)
            self._n_bytes += message.trajectory.nbytes
        else:
            self._waveforms.append(message)
        if self._n_bytes > BATCH_BYTES:
            self.write()

    def write(self) -> None:
        if self._readouts:
            headers = np.array([readout.head for readout in self._readouts], HEAD_DTYPE)
            self._writer.append(headers, [r.samples for r in self._readouts], [r.trajectory for r in self._readouts])
        if self._waveforms:
            heads = np.array([waveform.head for waveform in self._waveforms])
            self._writer.append_waveforms(heads, [waveform.samples for waveform in self._waveforms])
        self._readouts, self._waveforms, self._n_bytes = [], [], 0


def _messages(path: Path, parser: StreamParser, n_bytes: int | None) -> Iterator[Message]:
    try:
        with path.open("rb") as file:
            left = path.stat().st_size if n_bytes is None else n_bytes
            while not parser.closed and (piece := file.read(min(PIECE_BYTES, left))):
                left -= len(piece)
                yield from (message for message in parser.feed(piece) if not isinstance(message, StreamClose))
    except OSError as error:
        raise InputError(f"the stream cannot be read ({error.strerror or error})", path, "copy it again") from error


def _header(messages: Iterator[Message], path: Path) -> StreamHeader:
    for message in messages:
        if isinstance(message, StreamHeader):
            return message
        if isinstance(message, StreamReadout):
            break
    raise InputError("no header before the readouts of the stream", path, "record the stream from its beginning")
