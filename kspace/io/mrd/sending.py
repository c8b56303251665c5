"""Messages of the MRD streaming protocol, version 1, as bytes. `kspace.io.mrd.stream` reads them."""

from __future__ import annotations

import struct
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from kspace.io.mrd.stream import (
    ACQUISITION,
    CLOSE,
    CONFIG_FILE,
    CONFIG_FILE_BYTES,
    CONFIG_TEXT,
    HEADER,
    IMAGE,
    TEXT,
    WAVEFORM,
    StreamReadout,
    StreamWaveform,
)


def config_file(name: str) -> bytes:
    """The name of a configuration, NUL-padded.

    Raises
    ------
    ValueError
        If it is longer than 1023 bytes.
    """
    encoded = name.encode()
    if len(encoded) >= CONFIG_FILE_BYTES:
        raise ValueError(f"the name of the configuration has {len(encoded)} bytes, at most {CONFIG_FILE_BYTES - 1} fit")
    return struct.pack("<H", CONFIG_FILE) + encoded.ljust(CONFIG_FILE_BYTES, b"\0")


def config_text(text: str) -> bytes:
    """A configuration."""
    return _text(CONFIG_TEXT, text)


def header(xml: str) -> bytes:
    """The ISMRMRD header of a scan."""
    return _text(HEADER, xml)


def text(line: str) -> bytes:
    """A line for the log of the other side, or parameters in JSON."""
    return _text(TEXT, line)


def close() -> bytes:
    """The end of what this side sends."""
    return struct.pack("<H", CLOSE)


def readout(one: StreamReadout) -> bytes:
    """A readout."""
    return b"".join(
        (struct.pack("<H", ACQUISITION), one.head.tobytes(), one.trajectory.astype("<f4").tobytes(), _bytes(one.samples, "<c8"))
    )


def waveform(one: StreamWaveform) -> bytes:
    """A waveform."""
    return struct.pack("<H", WAVEFORM) + one.head.tobytes() + _bytes(one.samples, "<u4")


def image(one: ismrmrd.Image) -> bytes:
    """An image from `kspace.io.mrd.images.make_image`, with its attributes."""
    attributes = one.attribute_string.encode()
    head = one.getHead()
    head.attribute_string_len = len(attributes)
    values: NDArray[Any] = np.ascontiguousarray(one.data)
    return b"".join((struct.pack("<H", IMAGE), bytes(head), struct.pack("<Q", len(attributes)), attributes, values.tobytes()))


def _bytes(values: NDArray[Any], dtype: str) -> bytes:
    return np.ascontiguousarray(values, dtype).tobytes()


def _text(kind: int, content: str) -> bytes:
    # The reference server and FIRE count a NUL at the end in; readers that follow the standard take it off.
    encoded = content.encode() + b"\0"
    return struct.pack("<HI", kind, len(encoded)) + encoded
