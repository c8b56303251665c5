"""Client of an MRD server: sends a scan and receives images at the same time, on one connection, in one thread."""

from __future__ import annotations

import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kspace.errors import InputError
from kspace.io.mrd.stream import Message, StreamClose, StreamParser

TRIES = 5
PIECE_BYTES = 2**18
WAKE_S = 0.5  # how often time-outs are looked at


@dataclass(frozen=True)
class Address:
    """A server's.

    Attributes
    ----------
    host
        Name or address.
    port
        TCP port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address that ``HOST:PORT`` or ``[HOST]:PORT`` means.

    Raises
    ------
    InputError
        If it means none.
    """
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"'{text}' is no address", "HOST:PORT", "write e.g. 127.0.0.1:9002")
    return Address(host, int(port))


def tls_context(authorities: Path, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """TLS that accepts servers of the `authorities` (PEM), and shows them a certificate (PEM) where one is given.

    Raises
    ------
    InputError
        If a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=str(authorities))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"the certificates cannot be used ({_reason(error)})", authorities, "give PEM files") from error
    return context


def connect(address: Address, timeout_s: float = 3.0, tls: ssl.SSLContext | None = None, pause_s: float = 1.0) -> socket.socket:
    """Connect to a server, trying `TRIES` times, as the reference client does: a console may just be starting it.

    Raises
    ------
    InputError
        If it cannot be reached, or TLS fails.
    """
    for left in reversed(range(TRIES)):
        try:
            plain = socket.create_connection((address.host, address.port), timeout_s)
            break
        except socket.gaierror as error:
            raise InputError(f"no such host ({_reason(error)})", str(address), "check the address") from error
        except OSError as error:
            if not left:
                raise InputError(
                    f"no connection ({_reason(error)})", str(address), "start the server, or check port"
                ) from error
            time.sleep(pause_s)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is None:
        return plain
    try:
        return tls.wrap_socket(plain, server_hostname=address.host)
    except OSError as error:
        plain.close()
        raise InputError(f"no TLS connection ({_reason(error)})", str(address), "check the certificates") from error


class Exchange:
    """One session on an open connection.

    Parameters
    ----------
    connection
        Connected; it is closed at the end of `run`.
    outgoing
        Yields the messages to send, CLOSE last. The next is asked for when the one before has been taken by the system.
    receive
        Called with each message of the server.
    address
        Of the server, for errors.
    idle_s
        Seconds in which neither side moves a byte, after which the session is given up.
    total_s
        Seconds after which it is given up in any case.
    """

    def __init__(
        self,
        connection: socket.socket,
        outgoing: Iterator[bytes],
        receive: Callable[[Message], None],
        address: Address,
        idle_s: float = 600.0,
        total_s: float = 14400.0,
    ) -> None:
        self._socket, self._outgoing, self._receive, self._address = connection, outgoing, receive, str(address)
        self._idle_s, self._total_s = idle_s, total_s
        self._parser = StreamParser(str(address))
        self._pending = memoryview(b"")
        self._sending, self._ended, self._broken = True, False, ""
        self._n_received = 0

    def run(self) -> bool:
        """Send and receive until the server says CLOSE; return whether everything had been sent by then.

        Raises
        ------
        InputError
            If the server breaks off, sends what cannot be read, or is silent for too long.
        """
        started = moved = time.monotonic()
        self._socket.setblocking(False)
        with self._socket, selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            while not self._parser.closed:
                if self._ended:
                    self._refuse_end()
                self._fill()
                selector.modify(self._socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._pending else 0))
                ready = selector.select(WAKE_S)
                mask = ready[0][1] if ready else 0
                if (mask & selectors.EVENT_WRITE and self._send()) | (mask & selectors.EVENT_READ and self._read()):
                    moved = time.monotonic()
                self._check_time(time.monotonic() - moved, time.monotonic() - started)
        return not self._sending and not self._pending and not self._broken

    def _fill(self) -> None:
        """Take messages until there is a piece worth a system call."""
        if not self._sending or self._pending:
            return
        parts, size = [], 0
        while size < PIECE_BYTES:
            part = next(self._outgoing, None)
            if part is None:
                self._sending = False
                break
            parts.append(part)
            size += len(part)
        self._pending = memoryview(b"".join(parts))

    def _send(self) -> bool:
        try:
            n = self._socket.send(self._pending[:PIECE_BYTES])
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            # What the server said before it broke off may still be read.
            self._sending, self._pending, self._broken = False, memoryview(b""), _reason(error)
            return False
        self._pending = self._pending[n:]
        return n > 0

    def _read(self) -> bool:
        moved = False
        while not self._parser.closed:
            try:
                data = self._socket.recv(PIECE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return moved
            except OSError as error:
                self._ended, self._broken = True, self._broken or _reason(error)
                return moved
            if not data:
                self._ended = True
                return moved
            moved = True
            self._n_received += len(data)
            for message in self._parser.feed(data):
                if not isinstance(message, StreamClose):
                    self._receive(message)
        return moved

    def _refuse_end(self) -> None:
        why = f" ({self._broken})" if self._broken else ""
        within = f", within a message of which {self._parser.n_pending} bytes came" if self._parser.n_pending else ""
        raise InputError(
            f"the server ended the connection without CLOSE{why}, after {self._n_received} bytes{within}",
            self._address,
            "see its log",
        )

    def _check_time(self, idle_s: float, total_s: float) -> None:
        if idle_s > self._idle_s:
            doing = "took nothing and sent nothing" if self._pending else "sent nothing"
            raise InputError(f"the server {doing} for {self._idle_s:g} s", self._address, "see its log, or raise --timeout")
        if total_s > self._total_s:
            raise InputError(f"the session took more than {self._total_s:g} s", self._address, "raise --total-timeout")


def _reason(error: OSError) -> str:
    return " ".join(str(error.strerror or error or type(error).__name__).split())
