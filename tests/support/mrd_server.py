"""An MRD server of its own making for tests of the client: it reads and writes with the ISMRMRD library's serialisation."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import ismrmrd
import numpy as np
from ismrmrd.serialization import ProtocolDeserializer, ProtocolSerializer


class Reader(ProtocolDeserializer):
    """Takes the NUL off that clients of python-ismrmrd-server count into the length of a text."""

    def _deserialize_text(self) -> str:
        (length,) = struct.unpack("<I", self._stream.read(4))
        return str(self._stream.read(length).decode().rstrip("\0"))

    def _deserialize_ismrmrd_header(self) -> Any:
        return ismrmrd.xsd.CreateFromDocument(self._deserialize_text())


class Recorder(io.RawIOBase):
    """A connection whose bytes are kept as they are read."""

    def __init__(self, connection: socket.socket) -> None:
        self._file, self.taken = connection.makefile("rb"), bytearray()

    def read(self, n: int = -1) -> bytes:
        data = self._file.read(n)
        self.taken += data
        return data


@dataclass
class Session:
    """What a server does with a connection: `reader` yields the client's messages, `writer` answers."""

    connection: socket.socket
    reader: Reader
    stream: BinaryIO
    writer: ProtocolSerializer
    messages: list[Any]

    def send(self, data: bytes = b"") -> None:
        """Send what was written, and `data` as it is."""
        self.stream.write(data)
        self.stream.flush()

    def each(self) -> Iterator[Any]:
        """The messages of the client until its CLOSE, kept as they come."""
        for message in self.reader.deserialize():
            self.messages.append(message)
            yield message


@dataclass
class Served:
    """What one session left behind."""

    port: int
    messages: list[Any] = field(default_factory=list)
    recorder: Recorder | None = None
    errors: list[BaseException] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.contextmanager
def serve_once(behaviour: Callable[[Session], None]) -> Iterator[Served]:
    """A server for one connection on a free port of the loopback address, ended with the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        served = Served(listener.getsockname()[1])

        def work() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(30)
                    served.recorder = Recorder(connection)
                    writer = connection.makefile("wb")
                    session = Session(connection, Reader(served.recorder), writer, ProtocolSerializer(writer), served.messages)
                    behaviour(session)
                    with contextlib.suppress(OSError, ValueError):
                        writer.flush()
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)  # the files on it would keep it open
            except BaseException as error:  # the test looks at it
                served.errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield served
        thread.join(30)
        assert not thread.is_alive()


def image(values: np.ndarray, series: int = 1, number: int = 1, **meta: str) -> ismrmrd.Image:
    """An image of `values` ``(z y x)``."""
    made = ismrmrd.Image.from_array(values[None], transpose=False)
    made.image_series_index, made.image_index = series, number
    made.meta = ismrmrd.Meta(meta)
    return made
