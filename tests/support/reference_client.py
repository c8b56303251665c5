"""The conversation of python-ismrmrd-server's client, written from a description of its bytes; nothing of this project is used.

Configuration (1: name in 1024 bytes, NUL-padded; 2: text), header (3), optional text (5), readouts and waveforms, CLOSE (4).
Texts end with a NUL that is counted in. The server's images (1022) and texts (5) come at any time, and it must send CLOSE.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import ismrmrd
import numpy as np

PIXELS = {1: "<u2", 2: "<i2", 5: "<f4", 7: "<c8"}


@dataclass
class Answer:
    """What the server sent. `images`: header bytes, attributes, pixels ``(channel z y x)`` of each."""

    images: list[tuple[bytes, str, np.ndarray]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    closed: bool = False
    error: BaseException | None = None


def text(kind: int, content: str) -> bytes:
    """A message of kind 2, 3 or 5."""
    data = content.encode() + b"\0"
    return struct.pack("<HI", kind, len(data)) + data


def config_file(name: str) -> bytes:
    return struct.pack("<H1024s", 1, name.encode())


def acquisition(one: ismrmrd.Acquisition) -> bytes:
    return b"".join(
        (struct.pack("<H", 1008), bytes(one.getHead()), one.traj.astype("<f4").tobytes(), one.data.astype("<c8").tobytes())
    )


def converse(address: tuple[str, int], messages: Iterable[bytes], close: bool = True, timeout: float = 60.0) -> Answer:
    """Send everything, receive in a thread of its own until CLOSE or the end of the connection."""
    answer = Answer()
    with socket.create_connection(address, timeout) as connection:
        receiver = threading.Thread(target=_receive, args=(connection, answer), daemon=True)
        receiver.start()
        for message in messages:
            connection.sendall(message)
        if close:
            connection.sendall(struct.pack("<H", 4))
        else:
            connection.shutdown(socket.SHUT_WR)
        receiver.join(timeout)
        assert not receiver.is_alive(), "the server neither answered nor closed"
    if answer.error is not None:
        raise answer.error
    return answer


def _receive(connection: socket.socket, answer: Answer) -> None:
    def read(n: int) -> bytes:
        data = b""
        while len(data) < n:
            piece = connection.recv(n - len(data))
            if not piece:
                raise EOFError(f"{len(data)} of {n} bytes")
            data += piece
        return data

    try:
        while not answer.closed:
            (kind,) = struct.unpack("<H", read(2))
            if kind == 4:
                answer.closed = True
            elif kind == 5:
                answer.texts.append(read(struct.unpack("<I", read(4))[0]).decode().split("\0")[0])
            elif kind == 1022:
                head = read(198)
                attributes = read(struct.unpack("<Q", read(8))[0]).decode()
                parsed = ismrmrd.ImageHeader.from_buffer_copy(head)
                x, y, z = parsed.matrix_size
                dtype = np.dtype(PIXELS[parsed.data_type])
                shape = parsed.channels, z, y, x
                pixels = np.frombuffer(read(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
                answer.images.append((head, attributes, pixels))
            else:
                raise AssertionError(f"message of kind {kind}")
    except (EOFError, ConnectionResetError):
        return
    except BaseException as error:
        answer.error = error
