"""The server: listens, starts sessions, keeps workers warm, ends in order."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

from kspace.errors import InputError
from kspace.io.mrd import sending
from recon.serve.events import Events
from recon.serve.intake import Unfinished
from recon.serve.metrics import MetricsPage
from recon.serve.options import GIB, STOPPING, ScannerOptions, ServeOptions, to_json
from recon.serve.peer import PIECE, Peer, PipePeer, TcpPeer
from recon.serve.pool import Pool, check_able
from recon.serve.session import Session
from recon.serve.spool import Spool
from recon.serve.store import ArchiveQueue, parse_node

HANDSHAKE_S = 10.0


class Server:
    """The server.

    Parameters
    ----------
    scanner
        How to reconstruct where a client asks for nothing else.
    options
        How to serve.
    events
        Log.
    """

    def __init__(self, scanner: ScannerOptions, options: ServeOptions, events: Events) -> None:
        self._scanner, self._options, self._events = scanner, options, events
        quota = None if options.quota_gib is None else int(options.quota_gib * GIB)
        self._spool = Spool(options.spool, int(options.min_free_gib * GIB), quota)
        self._unfinished = Unfinished(int(options.max_unfinished_gib * GIB))
        self._sessions: dict[asyncio.Task[str], Session] = {}
        self._n_sessions = 0
        self._stop = asyncio.Event()
        self._pool: Pool | None = None

    async def run(self, listening: socket.socket | None) -> int:
        """Serve until SIGTERM or SIGINT (or, with `once` or `stdio`, the end of the first session); the exit status.

        `listening` is the bound socket; None with `stdio`.

        Raises
        ------
        InputError
            If the spool, the certificates or the method cannot be used.
        """
        self._spool.prepare()
        self._offer_unfinished()
        tls = _tls(self._options)
        memory = self._options.worker_memory_gib
        archive = self._archive()
        setup = {
            "options": to_json(self._scanner),
            "classical_first": self._options.classical_first,
            "noise_folder": self._spool.noise_folder,
            "store_folder": None if archive is None else self._store_folder,
            "memory": None if memory is None else int(memory * GIB),
        }
        pool = self._pool = Pool(self._options.workers, setup, self._events)
        for number in STOPPING:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number.name)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # blocked since the process listens
        server = page = None
        try:
            if archive is not None:
                archive.start()
            pool.start()
            if listening is not None:
                wait = None if tls is None else HANDSHAKE_S
                server = await asyncio.start_server(
                    self._connected, sock=listening, ssl=tls, limit=2 * PIECE, ssl_handshake_timeout=wait
                )
                self._events.write("serving", port=listening.getsockname()[1], pid=os.getpid())
            else:
                await self._begin(PipePeer(*_pipes()))
            if self._options.metrics_port is not None:
                page = MetricsPage(self._events, self._spool, pool, lambda: len(self._sessions), self._stop)
                await page.start(self._options.metrics_port)
            await self._wait(pool)
        finally:
            if server is not None:
                server.close()
            await self._finish_sessions()
            if page is not None:
                await page.close()
            await pool.stop()
            if archive is not None:
                await asyncio.to_thread(archive.stop)
        check_able(pool)
        self._events.write("stopped")
        return 0

    @property
    def _store_folder(self) -> Path:
        return self._options.spool / "archive"

    def _archive(self) -> ArchiveQueue | None:
        """What sends DICOM images to the archive; what waited at the end of an earlier server is sent first."""
        if self._options.store is None:
            return None
        node = parse_node(self._options.store)
        return ArchiveQueue(node, self._store_folder, lambda line: self._events.write("archive", text=line))

    async def _wait(self, pool: Pool) -> None:
        stop = asyncio.ensure_future(self._stop.wait())
        both: set[asyncio.Future[Any]] = {stop, pool.unable}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()

    def _on_signal(self, name: str) -> None:
        self._events.write("stopping", signal=name, scans=sum(s.has_scan for s in self._sessions.values()))
        self._stop.set()

    def _offer_unfinished(self) -> None:
        for path in self._spool.unfinished():
            self._events.write(
                "unfinished scan", stream=path, bytes=path.stat().st_size, reconstruct=f"recon run {path} -o OUT"
            )

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = TcpPeer(reader, writer)
        networks = self._options.networks
        if networks and not any(_address(peer.address) in network for network in networks):
            self._events.write("refused", client=peer.name, why="not among --allow")
            peer.abort()
        elif self._stop.is_set() or len(self._sessions) >= self._options.max_clients:
            why = "stopping" if self._stop.is_set() else f"{len(self._sessions)} clients are connected already"
            self._events.write("refused", client=peer.name, why=why)
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await peer.write(sending.text(f"ERROR the server refuses this scan: {why}") + sending.close())
                    await peer.finish()
            peer.abort()
        else:
            await self._begin(peer)

    async def _begin(self, peer: Peer) -> None:
        assert self._pool is not None
        self._n_sessions += 1
        session = Session(self._n_sessions, peer, self._options, self._unfinished, self._spool, self._pool, self._events)
        task = asyncio.ensure_future(session.run())
        self._sessions[task] = session
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[str]) -> None:
        session = self._sessions.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._events.write("defect", session=session.number, error=repr(error))
        if self._options.once or self._options.stdio:
            self._stop.set()

    async def _finish_sessions(self) -> None:
        """Let scans in hand finish within their time; sessions without a scan end now."""
        for task, session in list(self._sessions.items()):
            if not session.has_scan:
                task.cancel()
        if self._sessions:
            _, late = await asyncio.wait(list(self._sessions), timeout=self._options.stop_timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text.partition("%")[0] or "0.0.0.0")
    return getattr(address, "ipv4_mapped", None) or address


def _tls(options: ServeOptions) -> ssl.SSLContext | None:
    if options.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
        if options.tls_clients is not None:
            context.load_verify_locations(options.tls_clients)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"cannot be used ({error.strerror or error})", options.tls_cert, "give PEM files") from error
    return context


def _pipes() -> tuple[int, int]:
    """Standard input and output, or the pipes that Tyger names."""
    source, sink = os.environ.get("INPUT_PIPE"), os.environ.get("OUTPUT_PIPE")
    try:
        into = os.open(source, os.O_RDONLY) if source else 0
        return into, os.open(sink, os.O_WRONLY) if sink else os.dup(1)
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror})", error.filename, "see INPUT_PIPE and OUTPUT_PIPE") from error
