"""Health and Prometheus metrics, on a port of the loopback address."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kspace.errors import InputError
from recon.serve.events import Events
from recon.serve.pool import Pool
from recon.serve.spool import Spool

if TYPE_CHECKING:
    from prometheus_client import Metric

PATIENCE_S = 5.0


class MetricsPage:
    """Answers ``GET /health`` (JSON; status 503 where no scan could be taken) and ``GET /metrics``.

    Parameters
    ----------
    events, spool, pool
        Of the server.
    n_sessions
        Sessions that are open.
    stopping
        Set when the server takes no more scans.
    """

    def __init__(
        self, events: Events, spool: Spool, pool: Pool, n_sessions: Callable[[], int], stopping: asyncio.Event
    ) -> None:
        try:
            from prometheus_client.registry import CollectorRegistry
        except ImportError as error:
            raise InputError("prometheus_client is not installed", "--metrics-port", "pip install recon[serve]") from error
        self._events, self._spool, self._pool = events, spool, pool
        self._n_sessions, self._stopping = n_sessions, stopping
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._server: asyncio.Server | None = None

    async def start(self, port: int) -> None:
        """Listen.

        Raises
        ------
        InputError
            If the port is taken.
        """
        try:
            self._server = await asyncio.start_server(self._answer, "127.0.0.1", port)
        except OSError as error:
            raise InputError(f"cannot listen ({error.strerror})", "--metrics-port", "choose another port") from error
        self._events.write("metrics", port=self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def health(self) -> dict[str, Any]:
        """Whether a scan would be taken, and why not."""
        problems = []
        if self._stopping.is_set():
            problems.append("stopping")
        if not self._pool.n_alive:
            problems.append("no worker")
        try:
            self._spool.check_space()
        except InputError as error:
            problems.append(str(error))
        return {"status": "; ".join(problems) or "ok", "workers_ready": self._pool.n_ready, "sessions": self._n_sessions()}

    def collect(self) -> Iterator[Metric]:
        """Metrics for the registry of prometheus_client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        events = self._events
        scans = CounterMetricFamily("recon_scans", "Sessions, by what came of them", labels=["outcome"])
        for (name, label), n in list(events.counts.items()):
            if name == "scans":
                scans.add_metric([label], n)
        yield scans
        yield CounterMetricFamily("recon_scan_seconds", "Duration of sessions", value=events.sums["scan_seconds"])
        yield CounterMetricFamily("recon_busy_seconds", "Work of worker processes", value=events.sums["busy_seconds"])
        yield CounterMetricFamily(
            "recon_fallbacks", "Classical images in place of others", value=events.counts["fallbacks", ""]
        )
        yield CounterMetricFamily("recon_workers_replaced", "Workers replaced", value=events.counts["workers_replaced", ""])
        yield GaugeMetricFamily("recon_sessions", "Sessions that are open", value=self._n_sessions())
        yield GaugeMetricFamily("recon_queue", "Jobs that wait for a worker", value=self._pool.n_waiting)
        yield GaugeMetricFamily("recon_workers_ready", "Workers that wait for a job", value=self._pool.n_ready)
        yield GaugeMetricFamily("recon_spool_bytes", "Size of the spool", value=self._spool.used_bytes())
        yield GaugeMetricFamily("recon_spool_free_bytes", "Free space of its disk", value=self._spool.free_bytes())
        yield GaugeMetricFamily("recon_uptime_seconds", "Since the start", value=time.monotonic() - events.started)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, ValueError):  # ValueError: a line beyond the limit of the reader
            async with asyncio.timeout(PATIENCE_S):
                path = (await reader.readline()).split(b" ")[1:2]
                while (await reader.readline()).strip():
                    pass
                status, kind, body = await asyncio.to_thread(self._page, path[0] if path else b"")
                head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        writer.close()

    def _page(self, path: bytes) -> tuple[str, str, bytes]:
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

        if path == b"/health":
            health = self.health()
            status = "200 OK" if health["status"] == "ok" else "503 Service Unavailable"
            return status, "application/json", json.dumps(health).encode() + b"\n"
        if path == b"/metrics":
            return "200 OK", CONTENT_TYPE_LATEST, generate_latest(self._registry)
        return "404 Not Found", "text/plain", b"/health or /metrics\n"
