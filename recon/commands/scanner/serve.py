"""``recon serve``: reconstruct what a scanner streams."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys

from kspace.errors import InputError
from recon.serve.options import STOPPING, ScannerOptions, ServeOptions

BACKLOG = 256


def serve(server: ServeOptions = ServeOptions(), options: ScannerOptions = ScannerOptions()) -> int:
    """Serve the MRD streaming protocol: raw data in, images out; every byte is kept on disk before it is used.

    Parameters
    ----------
    server
        How to serve.
    options
        How to reconstruct where the client does not say.

    Returns
    -------
    int
        0 after SIGTERM, Ctrl-C or, with --once and --stdio, the end of the session.
    """
    # Bound before anything heavy is imported: consoles connect a second after they start the process.
    listening = None if server.stdio else _bind(server)
    # Blocked until the server handles them: imports discard the exceptions of signal handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    if listening is not None:
        _announce(server, listening)

    import asyncio

    from recon.serve.events import Events
    from recon.serve.server import Server

    async def run() -> int:
        return await Server(options, server, Events()).run(listening)

    status = asyncio.run(run())
    if server.stdio:
        sys.stderr.flush()
        os._exit(status)  # a thread may still wait for standard input
    return status


def _bind(server: ServeOptions) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        where = f"--host {server.host} --port {server.port}"
        raise InputError(f"cannot listen ({error.strerror})", where, "choose another port or address") from error
    return listening


def _announce(server: ServeOptions, listening: socket.socket) -> None:
    address, port = listening.getsockname()[:2]
    print(f"recon: listening on {server.host}:{port}", file=sys.stderr, flush=True)
    if not ipaddress.ip_address(address).is_loopback and server.tls_clients is None:
        print(
            f"recon: warning: {server.host} can be reached from other computers and MRD has no authentication: "
            "whoever connects can send scans; see --allow and --tls-clients",
            file=sys.stderr,
            flush=True,
        )
