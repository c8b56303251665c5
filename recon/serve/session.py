"""One session: what a client sends is recorded, then acted on; images, texts and close go back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kspace.errors import InputError
from kspace.io.mrd import sending
from kspace.io.mrd.stream import (
    ConfigFile,
    ConfigText,
    Message,
    StreamHeader,
    StreamImage,
    StreamParser,
    StreamReadout,
    StreamText,
    StreamWaveform,
)
from recon.serve.events import Events
from recon.serve.intake import Intake, Key, Unfinished, name_of
from recon.serve.options import GIB, ServeOptions
from recon.serve.peer import FilePart, Outbox, Peer
from recon.serve.pool import JobFailed, Pool, WorkerLost
from recon.serve.spool import FILE, RECORD, Recording, Spool

SYNC_S = 1.0


class Session:
    """One session.

    Parameters
    ----------
    number
        For the log.
    peer
        The client.
    options
        Limits and time-outs.
    unfinished, spool, pool, events
        Of the server.
    """

    def __init__(
        self,
        number: int,
        peer: Peer,
        options: ServeOptions,
        unfinished: Unfinished,
        spool: Spool,
        pool: Pool,
        events: Events,
    ) -> None:
        self.number, self._peer, self._options, self._unfinished = number, peer, options, unfinished
        self._spool, self._pool, self._events = spool, pool, events
        self._outbox = Outbox(peer, options.idle_timeout)
        self._parser = StreamParser(peer.name, options.limits)
        self._received = Intake()
        self._recording: Recording | None = None
        self._n_logged = 0
        self._complete = asyncio.Event()  # configuration, header and parameters have come
        self._wake = asyncio.Event()
        self._over = asyncio.Event()
        self._ended = False
        self._sent: dict[str, str] = {}
        self._begun: dict[str, Any] = {}
        self._classical = False
        self._n_fallbacks = 0
        self._warnings: list[str] = []
        self._outcome = "empty"
        self._started = datetime.now(UTC).isoformat(timespec="milliseconds")

    @property
    def has_scan(self) -> bool:
        """Whether a header has come, so that the session is worth waiting for."""
        return self._received.xml is not None

    async def run(self) -> str:
        """Serve the client; what came of it."""
        started = time.monotonic()
        self._log("connected", client=self._peer.name)
        sending_task = asyncio.ensure_future(self._outbox.run())
        syncing = asyncio.ensure_future(self._sync())
        try:
            async with asyncio.timeout(self._options.total_timeout):
                await self._serve()
                self._outbox.put(sending.close())
                self._outbox.close()
                await sending_task
                await self._peer.finish()
        except TimeoutError:
            self._outcome = "timed out"
            self._peer.abort()
        except asyncio.CancelledError:
            self._outcome = "stopped"
            self._peer.abort()
        finally:
            self._ended = True
            self._over.set()
            self._unfinished.release(self.number)
            sending_task.cancel()
            await asyncio.gather(sending_task, syncing, return_exceptions=True)
            self._peer.abort()
            try:
                await self._keep()
            finally:
                self._log_end(time.monotonic() - started)
        return self._outcome

    def say(self, level: str, text: str) -> None:
        """Send a text to the operator, and log it."""
        self._log("text", level=level, text=text)
        if level in ("WARNING", "ERROR"):
            self._warnings.append(text)
        self._outbox.put(sending.text(f"{level} {text}"))

    async def _serve(self) -> None:
        working = asyncio.ensure_future(self._work())
        draining: asyncio.Task[None] | None = None
        try:
            try:
                await self._receive()
            except InputError as error:
                self._received.error = str(error)
                self.say("ERROR", str(error))
                self._parser.discard()
                self._unfinished.release(self.number)
                # A client that is still writing would not read before it has written.
                draining = asyncio.ensure_future(self._drain())
            self._ended = True
            self._complete.set()
            self._wake.set()
            await working
        finally:
            for task in (working, draining):
                if task is not None:
                    task.cancel()
            await asyncio.gather(*(t for t in (working, draining) if t is not None), return_exceptions=True)

    async def _receive(self) -> None:
        """Take what the client sends until CLOSE, or the end of the connection."""
        most = int(self._options.max_scan_gib * GIB)
        while not self._parser.closed:
            try:
                async with asyncio.timeout(self._options.idle_timeout):
                    data = await self._peer.read()
            except TimeoutError as error:
                raise InputError(
                    f"nothing came for {self._options.idle_timeout:g} s", self._peer.name, "close the session"
                ) from error
            if not data:
                if self._received.n_messages:
                    self.say("WARNING", "the connection ended without CLOSE: what is complete is used")
                return
            if self._parser.position + self._parser.n_pending + len(data) > most:
                raise InputError(f"more than {self._options.max_scan_gib:g} GiB", self._peer.name, "raise --max-scan-gib")
            await self._record(data)
            for start, stop, message in self._parser.follow(data):
                self._take(start, stop, message)
            self._unfinished.hold(self.number, self._parser.n_pending, self._peer.name)

    async def _record(self, data: bytes) -> None:
        """Write before anything is done with it."""
        try:
            if self._recording is None:
                self._recording = await asyncio.to_thread(self._spool.record)
                self._log("recording", stream=self._recording.path)
            await asyncio.to_thread(self._recording.write, data)
        except OSError as error:
            raise InputError(f"cannot record ({error.strerror})", self._spool.folder, "free space on its disk") from error

    async def _sync(self) -> None:
        """Flush the recording to the disk, and log how much has been received, once a second."""
        while not self._over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(SYNC_S):
                    await self._over.wait()
            if self._recording is not None:
                with suppress(OSError):
                    await asyncio.to_thread(self._recording.sync)
            self._log_received()

    def _log_received(self) -> None:
        if self._received.n_messages != self._n_logged:
            self._n_logged = self._received.n_messages
            self._log("received", messages=self._n_logged, bytes=self._parser.position)

    def _take(self, start: int, stop: int, message: Message) -> None:
        received = self._received
        received.n_messages += 1
        match message:
            case ConfigFile(name=text) | ConfigText(text=text):
                received.config = text
            case StreamHeader(xml=xml):
                if received.xml is not None:
                    raise InputError("a second header", self._peer.name, "send one scan in a session")
                received.xml = xml
                self._log_received()
            case StreamText(text=text):
                if received.xml is not None and received.parameters is None and text.lstrip().startswith("{"):
                    received.parameters = text
                else:
                    self._log("client text", text=text[:1000])
            case StreamReadout():
                received.index.add(start, stop, message)
                self._go_on()
            case StreamWaveform():
                received.n_waveforms += 1
            case StreamImage():
                received.n_images += 1
                assert self._recording is not None
                self._outbox.put(FilePart(self._recording.path, start, stop, temporary=False))
                self._go_on()

    def _go_on(self) -> None:
        if self._received.xml is not None:
            self._complete.set()
        self._wake.set()

    async def _drain(self) -> None:
        with suppress(OSError):
            while await self._peer.read():
                pass

    async def _work(self) -> None:
        """Begin, parts as their last lines arrive, and the rest at the end."""
        await self._complete.wait()
        received = self._received
        if received.xml is None:
            self._say_missing_header()
            return
        begun = await self._job("begin", config=received.config, parameters=received.parameters)
        if begun is None:
            self._begun = {"purpose": "save", "options": None, "state": {}, "streaming": False, "n_averages": 1}
            self._outcome = "failed"
        else:
            self._begun = begun
        await self._stream_parts()
        if received.index.n_readouts:
            await self._finish()
        elif received.n_images:
            self._outcome = "passed on"
            self.say("INFO", f"{received.n_images} images passed on unchanged")
        else:
            self.say("WARNING", "no readouts and no images: nothing to reconstruct")

    def _say_missing_header(self) -> None:
        if self._received.n_images:
            self._outcome = "passed on"
        elif self._received.index.n_readouts:
            self._outcome = "failed"
            self.say("ERROR", "no header: the readouts are kept and cannot be reconstructed")
        else:
            self.say("WARNING", "no header: nothing to reconstruct")

    async def _stream_parts(self) -> None:
        """Reconstruct images whose last line has arrived until the client has sent everything."""
        while True:
            keys = self._received.index.take_ready(self._begun["n_averages"]) if self._begun["streaming"] else []
            if keys:
                # What changes an image that was sent is found at the end, and said.
                if fresh := [key for key in keys if name_of(key) not in self._sent]:
                    await self._part(fresh)
            elif self._ended:
                return
            else:
                await self._wake.wait()
                self._wake.clear()

    async def _part(self, keys: list[Key]) -> None:
        done = await self._job("part", keys=keys, ranges=self._received.index.ranges(keys), quiet=True)
        if done is not None:
            self._sent |= done["fingerprints"]
            self._take_state(done)

    async def _finish(self) -> None:
        assert self._recording is not None
        await asyncio.to_thread(self._recording.sync)
        purpose = self._begun["purpose"]
        done = await self._job(
            "finish",
            purpose=purpose,
            file=self._recording.path.with_suffix(FILE),
            n_bytes=self._parser.position,
            sent=self._sent,
        )
        if done is None:
            self._outcome = "failed"
        elif self._outcome != "failed":
            self._outcome = {"reconstruct": "reconstructed", "dependency": "noise kept"}.get(purpose, "saved")
            if "state" in done:
                self._take_state(done)
            self.say("INFO", f"{done['n_images']} images; raw data kept as {self._recording.path.stem}")

    def _take_state(self, done: Mapping[str, Any]) -> None:
        self._begun["state"] = done["state"]
        self._n_fallbacks += done["fallbacks"]
        self._events.count("fallbacks", n=done["fallbacks"])

    async def _job(self, kind: str, quiet: bool = False, **fields: Any) -> dict[str, Any] | None:
        """Have a job done; None where it failed, which the operator was told. A lost worker's is done again, classically."""
        assert self._recording is not None
        path = self._recording.path
        job = {"kind": kind, "stream": path, "xml": self._received.xml, "out": path.with_suffix(".images")} | fields
        job |= {name: self._begun.get(name) for name in ("options", "state")}
        for attempt in (1, 2):
            try:
                return await self._pool.run(job | {"classical": self._classical}, self._on_event)
            except JobFailed as error:
                if quiet:
                    self._log("left for the end", job=kind, reason=str(error))
                else:
                    self.say("ERROR", str(error))
                return None
            except WorkerLost as error:
                self._classical = True
                more = "the classical image is tried instead" if attempt == 1 else "the raw data are kept"
                self.say("ERROR", f"the reconstruction process was lost ({error}): {more}")
        return None

    def _on_event(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "text":
            self.say(event["level"], event["text"])
        elif event["event"] == "images":
            self._outbox.put(FilePart(Path(event["path"]), 0, event["bytes"], temporary=True))

    async def _keep(self) -> None:
        """Close the recording: with a record and checksums where it holds a scan, else it is removed."""
        if self._recording is None:
            return
        recording, received = self._recording, self._received
        try:
            await asyncio.to_thread(recording.sync)
            if not (received.index.n_readouts or received.n_images):
                recording.path.unlink()
            elif self._outcome not in ("stopped", "timed out"):
                await self._write_record(recording)
        except (OSError, JobFailed, WorkerLost) as error:
            self._log("not kept", stream=recording.path, error=str(error))
        finally:
            recording.close()
            removed, above = await asyncio.to_thread(self._spool.enforce_quota)
            for path in removed:
                self._log("removed", file=path, why="quota")
            if above:
                self._log("above quota", bytes=above, why="scans that were not reconstructed are never removed")

    async def _write_record(self, recording: Recording) -> None:
        received = self._received
        job = {
            "kind": "keep",
            "stream": recording.path,
            "file": recording.path.with_suffix(FILE),
            "record": recording.path.with_suffix(RECORD),
            "outcome": self._outcome,
            "config": received.config,
            "parameters": received.parameters,
            "client": self._peer.name,
            "n_readouts": received.index.n_readouts,
            "warnings": self._warnings,
            "started": self._started,
            "more": received.n_images > 0 or received.error is not None,
        }
        kept = await self._pool.run(job, lambda event: None)
        self._log("kept", file=kept["file"])

    def _log_end(self, seconds: float) -> None:
        self._log_received()
        received = self._received
        self._events.count("scans", self._outcome)
        self._events.add("scan_seconds", seconds)
        self._log(
            "ended",
            outcome=self._outcome,
            error=received.error or (self._outbox.lost and f"the client {self._outbox.lost}"),
            seconds=round(seconds, 3),
            readouts=received.index.n_readouts,
            fallbacks=self._n_fallbacks,
            images=received.n_images,
            waveforms=received.n_waveforms,
            bytes_in=self._parser.position + self._parser.n_pending,
            bytes_out=self._outbox.n_bytes,
        )

    def _log(self, event: str, **fields: Any) -> None:
        self._events.write(event, session=self.number, **fields)
