"""The other side of a session: a TCP connection or a pair of pipes, and what waits to be sent to it."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PIECE = 2**18
LINGER_S = 5.0
MOST_TEXTS = 1000  # that wait; a client that reads none loses the oldest


class Peer(Protocol):
    """A client."""

    name: str

    async def read(self) -> bytes:
        """The next bytes; empty at the end."""

    async def write(self, data: bytes) -> None:
        """Send; waits while the client does not read."""

    async def finish(self) -> None:
        """Close after everything was sent."""

    def abort(self) -> None:
        """Close at once."""


class TcpPeer:
    """A TCP connection, with or without TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        address = writer.get_extra_info("peername")
        self.address = str(address[0]) if address else ""
        self.name = ":".join(map(str, address[:2])) if address else "unknown"

    async def read(self) -> bytes:
        """The next bytes; empty at the end, also of a connection that was reset."""
        try:
            return await self._reader.read(PIECE)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        """Send; waits while the client does not read."""
        self._writer.write(data)
        await self._writer.drain()

    async def finish(self) -> None:
        """Close. What the client still sends is read for a while: else the system would take back what it has not read."""
        with suppress(OSError, TimeoutError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
            async with asyncio.timeout(LINGER_S):
                while await self._reader.read(PIECE):
                    pass
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._writer.wait_closed()

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()


class PipePeer:
    """A pair of file descriptors: pipes, files or a terminal."""

    def __init__(self, source: int, sink: int) -> None:
        self.name = "stdio"
        self._source, self._sink = source, sink
        # Threads of its own: both may block for ever.
        self._readers, self._writers = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    async def read(self) -> bytes:
        """The next bytes; empty at the end."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, os.read, self._source, PIECE)

    async def write(self, data: bytes) -> None:
        """Send; waits while nobody reads."""
        await asyncio.get_running_loop().run_in_executor(self._writers, self._write, data)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._sink, left) :]

    async def finish(self) -> None:
        """Close the sink."""
        self.abort()

    def abort(self) -> None:
        """Close the sink."""
        sink, self._sink = self._sink, -1  # its number may be another file's afterwards
        if sink >= 0:
            with suppress(OSError):
                os.close(sink)


@dataclass(frozen=True)
class FilePart:
    """Bytes ``[start, stop)`` of a file, to be sent; a temporary one is removed afterwards."""

    path: Path
    start: int
    stop: int
    temporary: bool


class Outbox:
    """What waits to be sent to a peer. Images wait on the disk, so that a client that does not read them costs no memory.

    Parameters
    ----------
    peer
        The client.
    patience
        Seconds that it may leave bytes unread.
    """

    def __init__(self, peer: Peer, patience: float) -> None:
        self._peer, self._patience = peer, patience
        self._waiting: deque[bytes | FilePart] = deque()
        self._more = asyncio.Event()
        self._closing = False
        self.lost: str | None = None
        self.n_bytes = 0

    def put(self, item: bytes | FilePart) -> None:
        """Append a text, or part of a file."""
        if self.lost is not None:
            _remove(item)
            return
        if isinstance(item, bytes) and len(self._waiting) >= MOST_TEXTS:
            oldest = next((one for one in self._waiting if isinstance(one, bytes)), None)
            if oldest is not None:
                self._waiting.remove(oldest)
        self._waiting.append(item)
        self._more.set()

    def close(self) -> None:
        """Let `run` end when everything was sent."""
        self._closing = True
        self._more.set()

    async def run(self) -> None:
        """Send until `close`."""
        try:
            while self._waiting or not self._closing:
                await self._more.wait()
                while self._waiting:
                    await self._send(self._waiting.popleft())
                if not self._closing:
                    self._more.clear()
        finally:
            while self._waiting:
                _remove(self._waiting.popleft())

    async def _send(self, item: bytes | FilePart) -> None:
        try:
            if self.lost is None:
                if isinstance(item, bytes):
                    await self._write(item)
                else:
                    await self._send_file(item)
        except TimeoutError:
            self._lose(f"did not read for {self._patience:g} s")
        except OSError as error:
            self._lose(f"is gone ({error.strerror or type(error).__name__})")
        finally:
            _remove(item)

    async def _send_file(self, part: FilePart) -> None:
        with part.path.open("rb") as file:
            file.seek(part.start)
            left = part.stop - part.start
            while left > 0 and (piece := file.read(min(PIECE, left))):
                left -= len(piece)
                await self._write(piece)

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(self._patience):
            await self._peer.write(data)
        self.n_bytes += len(data)

    def _lose(self, why: str) -> None:
        self.lost = why
        self._peer.abort()


def _remove(item: bytes | FilePart) -> None:
    if isinstance(item, FilePart) and item.temporary:
        item.path.unlink(missing_ok=True)
