"""The MRD streaming protocol, version 1: bytes in, messages out. Nothing here knows of files or sockets.

A message is a little-endian uint16, its kind, and a payload whose length follows from its beginning. Every length is checked
against `StreamLimits` before memory is taken for it, since the bytes may come from anyone.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from ismrmrd.hdf5 import acquisition_header_dtype, image_header_dtype, waveform_header_dtype
from numpy.typing import NDArray

from kspace.errors import InputError
from kspace.io.mrd.flags import COMPRESSED

CONFIG_FILE, CONFIG_TEXT, HEADER, CLOSE, TEXT, ACQUISITION, IMAGE, WAVEFORM = 1, 2, 3, 4, 5, 1008, 1022, 1026
CONFIG_FILE_BYTES = 1024
# Of Gadgetron and ismrmrd-python: to be named, not to be read.
OTHERS = {
    6: "QUERY", 7: "RESPONSE", 8: "ERROR", 1018: "DICOM_WITHNAME", 1019: "DEPENDENCY_QUERY", 1023: "RECONDATA",
    1024: "IMAGE_ARRAY", 1030: "NDARRAY", 1050: "BUCKET", 1051: "BUNDLE",
}  # fmt: skip
PIXELS = {1: "<u2", 2: "<i2", 3: "<u4", 4: "<i4", 5: "<f4", 6: "<f8", 7: "<c8", 8: "<c16"}


@dataclass(frozen=True)
class StreamLimits:
    """The most bytes that a message may claim.

    Attributes
    ----------
    text
        Of a configuration, a header, a text, or the attributes of an image.
    acquisition
        Of the samples and the trajectory of one readout.
    image
        Of the pixels of one image.
    waveform
        Of the samples of one waveform.
    """

    text: int = 2**24
    acquisition: int = 2**28
    image: int = 2**30
    waveform: int = 2**26


@dataclass(frozen=True)
class ConfigFile:
    """Name of a configuration that the receiver is expected to have."""

    name: str


@dataclass(frozen=True)
class ConfigText:
    """A configuration."""

    text: str


@dataclass(frozen=True)
class StreamHeader:
    """The ISMRMRD header of the scan, an XML document; trailing NUL bytes, which some senders count in, are taken off."""

    xml: str


@dataclass(frozen=True)
class StreamText:
    """A text: parameters in JSON from a client, a line for the log from a server."""

    text: str


@dataclass(frozen=True)
class StreamClose:
    """The sender has finished."""


@dataclass(frozen=True, eq=False)
class StreamReadout:
    """A readout.

    Attributes
    ----------
    head
        StreamReadout header, a scalar of `kspace.io.mrd.write.HEAD_DTYPE`.
    samples
        Complex64 ``(coil, sample)``.
    trajectory
        Float32 ``(sample, dimension)``.
    """

    head: np.void
    samples: NDArray[np.complex64]
    trajectory: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class StreamImage:
    """An image.

    Attributes
    ----------
    head
        Image header, a scalar of ``ismrmrd.hdf5.image_header_dtype``.
    attributes
        Its attributes, an XML document; may be empty.
    pixels
        ``(channel, z, y, x)``, of the number type of the header's ``data_type``.
    """

    head: np.void
    attributes: str
    pixels: NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class StreamWaveform:
    """A waveform (an electrocardiogram, breathing).

    Attributes
    ----------
    head
        StreamWaveform header, a scalar of ``ismrmrd.hdf5.waveform_header_dtype``.
    samples
        Uint32 ``(channel, sample)``.
    """

    head: np.void
    samples: NDArray[np.uint32]


Message = ConfigFile | ConfigText | StreamHeader | StreamText | StreamClose | StreamReadout | StreamImage | StreamWaveform
TEXTS: dict[int, type[ConfigText | StreamHeader | StreamText]] = {
    CONFIG_TEXT: ConfigText,
    HEADER: StreamHeader,
    TEXT: StreamText,
}
Parts = Generator[int, bytes, Message]  # asks for a number of bytes, is sent them


class StreamParser:
    """Cuts a stream into messages. Holds at most one unfinished message.

    Parameters
    ----------
    source
        Name of the sender or file, for messages of errors.
    limits
        What a message may claim.
    """

    def __init__(self, source: str | None = None, limits: StreamLimits = StreamLimits()) -> None:
        self._source, self._limits = source, limits
        self._buffer = bytearray()
        self._start = 0  # byte of the stream with which the unfinished message begins
        self._taken = 0  # bytes of it that were parsed
        self._closed = False
        self._parts = self._parse()
        self._wanted = next(self._parts)

    @property
    def closed(self) -> bool:
        """Whether CLOSE has come. What follows it is not parsed."""
        return self._closed

    @property
    def n_pending(self) -> int:
        """Bytes that have come of an unfinished message (or after CLOSE); 0 between messages."""
        return self._taken + len(self._buffer)

    @property
    def position(self) -> int:
        """Byte of the stream with which the message begins that is unfinished, or expected next."""
        return self._start

    def discard(self) -> None:
        """Free the bytes of the unfinished message, which stay counted. Nothing can be fed afterwards."""
        self._taken += len(self._buffer)
        self._buffer = bytearray()
        self._parts.close()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take the next bytes, as many or few as have come, and return the messages that they complete.

        Raises
        ------
        InputError
            If a message is of an unknown kind, claims more than the limits allow, or contradicts itself. The stream cannot be
            followed any further then.
        """
        return [message for _, _, message in self.follow(data)]

    def follow(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[int, int, Message]]:
        """As `feed`, one message after the other with its bytes ``[start, stop)`` in the stream: those before an error come.

        To be followed to its end before the next bytes are fed.
        """
        self._buffer += data
        offset = 0
        try:
            while not self._closed and len(self._buffer) - offset >= self._wanted:
                part = bytes(memoryview(self._buffer)[offset : offset + self._wanted])
                offset += self._wanted
                self._taken += self._wanted
                try:
                    self._wanted = self._parts.send(part)
                except StopIteration as complete:
                    start, self._start, self._taken = self._start, self._start + self._taken, 0
                    self._closed = isinstance(complete.value, StreamClose)
                    self._parts = self._parse()
                    self._wanted = next(self._parts)
                    yield start, self._start, complete.value
        finally:
            del self._buffer[:offset]

    def _parse(self) -> Parts:
        """One message."""
        kind = int.from_bytes((yield 2), "little")
        if kind == CONFIG_FILE:
            return ConfigFile(self._decode((yield CONFIG_FILE_BYTES).split(b"\0")[0]))
        if kind in TEXTS:
            return TEXTS[kind]((yield from self._text(4)))
        if kind == CLOSE:
            return StreamClose()
        if kind == ACQUISITION:
            return (yield from self._acquisition())
        if kind == IMAGE:
            return (yield from self._image())
        if kind == WAVEFORM:
            return (yield from self._waveform())
        named = f" ({OTHERS[kind]})" if kind in OTHERS else ""
        self._refuse(f"a message of kind {kind}{named}, which cannot be read")

    def _text(self, length_bytes: int) -> Generator[int, bytes, str]:
        length = int.from_bytes((yield length_bytes), "little")
        self._check(length, self._limits.text, "a text")
        return self._decode((yield length)).rstrip("\0")

    def _acquisition(self) -> Generator[int, bytes, StreamReadout]:
        head = np.frombuffer((yield acquisition_header_dtype.itemsize), acquisition_header_dtype)[0]
        if head["flags"] & COMPRESSED:
            # How many bytes follow is the compression's to say: to guess would be to wait for what never comes.
            self._refuse("a readout whose samples are compressed (ISMRMRD flags 53 to 56), which cannot be read")
        n_coils, n, n_dims = (int(head[name]) for name in ("active_channels", "number_of_samples", "trajectory_dimensions"))
        self._check(
            8 * n_coils * n + 4 * n * n_dims, self._limits.acquisition, f"a readout of {n_coils} channels x {n} samples"
        )
        trajectory = np.frombuffer((yield 4 * n * n_dims), "<f4").reshape(n, n_dims)
        samples = np.frombuffer((yield 8 * n_coils * n), "<c8").reshape(n_coils, n)
        return StreamReadout(head, samples, trajectory)

    def _image(self) -> Generator[int, bytes, StreamImage]:
        head = np.frombuffer((yield image_header_dtype.itemsize), image_header_dtype)[0]
        if int(head["data_type"]) not in PIXELS:
            self._refuse(f"an image with data_type {head['data_type']}, expected 1 to 8")
        dtype = np.dtype(PIXELS[int(head["data_type"])])
        shape = (int(head["channels"]), *(int(n) for n in head["matrix_size"][::-1]))
        n_bytes = math.prod(shape) * dtype.itemsize
        self._check(n_bytes, self._limits.image, f"an image of {' x '.join(map(str, shape))} pixels")
        attributes = yield from self._text(8)
        return StreamImage(head, attributes, np.frombuffer((yield n_bytes), dtype).reshape(shape))

    def _waveform(self) -> Generator[int, bytes, StreamWaveform]:
        head = np.frombuffer((yield waveform_header_dtype.itemsize), waveform_header_dtype)[0]
        shape = int(head["channels"]), int(head["number_of_samples"])
        self._check(4 * math.prod(shape), self._limits.waveform, f"a waveform of {shape[0]} channels x {shape[1]} samples")
        return StreamWaveform(head, np.frombuffer((yield 4 * math.prod(shape)), "<u4").reshape(shape))

    def _decode(self, text: bytes) -> str:
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            self._refuse(f"a text that is not UTF-8 ({error.reason} at its byte {error.start})")

    def _check(self, n_bytes: int, most: int, what: str) -> None:
        if n_bytes > most:
            self._refuse(f"{what} that claims {n_bytes} bytes, more than the {most} that are allowed")

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"byte {self._start} of the MRD stream begins {what}", self._source, "record or send the stream again")


def is_stream(first: bytes) -> bool:
    """Whether a file that begins with these bytes (`FIRST_BYTES` of them, or all) is a recorded MRD stream.

    One begins with a configuration (its name, or its text) or with the header.
    """
    kind = int.from_bytes(first[:2], "little")
    if kind == CONFIG_FILE:
        name, _, rest = first[2 : 2 + CONFIG_FILE_BYTES].partition(b"\0")
        return len(name) > 0 and len(first) >= 2 + CONFIG_FILE_BYTES and name.isascii() and not rest.strip(b"\0")
    if kind not in (CONFIG_TEXT, HEADER) or len(first) < 8:
        return False
    length, text = int.from_bytes(first[2:6], "little"), first[6:]
    if kind == HEADER:
        return text.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"<?xml", b"<ismrmrdHeader", b"<ns", b"Dummy XML header"))
    begin = text[: min(length, 16)]
    return 0 < length <= StreamLimits().text and all(byte >= 32 or byte in b"\r\n\t\0" for byte in begin)


FIRST_BYTES = 2 + CONFIG_FILE_BYTES
