"""Worker processes, seen from the server: started warm, replaced when they die, one job at a time each."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from kspace.errors import InputError
from recon.serve.events import Events

LINE_BYTES = 2**26  # the longest answer: names and fingerprints of the images of a scan
PAUSES = (0.0, 1.0, 5.0, 30.0)  # seconds before a worker that died before it was ready is started again
OnEvent = Callable[[Mapping[str, Any]], None]


class JobFailed(Exception):
    """The job cannot be done; the text is for the operator."""


class WorkerLost(Exception):
    """The worker died, or did not come back in time."""


class Worker:
    """One process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def tell(self, message: Mapping[str, Any]) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):  # that it died is seen when it is heard
            self._process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            await self._process.stdin.drain()

    async def hear(self) -> dict[str, Any]:
        """The next event.

        Raises
        ------
        WorkerLost
            If the process ended.
        """
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise WorkerLost(_cause(await self._process.wait()))
        event: dict[str, Any] = json.loads(line)
        return event

    async def end(self) -> None:
        """Kill it and wait."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._process._transport.close()  # type: ignore[attr-defined]


class Pool:
    """The workers.

    Parameters
    ----------
    n_workers
        How many.
    setup
        First line to each worker.
    events
        Takes starts and deaths.
    """

    def __init__(self, n_workers: int, setup: Mapping[str, Any], events: Events) -> None:
        self._n_workers, self._setup, self._events = n_workers, setup, events
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        self._workers: set[Worker] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._stopped = False
        self.n_waiting = 0
        self.unable: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def n_ready(self) -> int:
        """Workers that wait for a job."""
        return self._idle.qsize()

    @property
    def n_alive(self) -> int:
        """Workers that are ready or busy."""
        return len(self._workers)

    def start(self) -> None:
        """Start all workers; they are ready later."""
        for _ in range(self._n_workers):
            self._start_one()

    async def run(self, job: Mapping[str, Any], on_event: OnEvent) -> dict[str, Any]:
        """Have a job done by the next free worker.

        Parameters
        ----------
        job
            See `recon.serve.jobs`.
        on_event
            Receives texts and images while it is done.

        Raises
        ------
        JobFailed
            If what the client sent cannot be used.
        WorkerLost
            If the worker died of it.
        """
        self.n_waiting += 1
        try:
            worker = await self._idle.get()
            while not worker.alive:  # died while it waited
                self._replace(worker)
                worker = await self._idle.get()
        finally:
            self.n_waiting -= 1
        started = time.monotonic()
        finished = False
        try:
            answer = await self._follow(worker, job, on_event)
            finished = True
        finally:
            self._events.add("busy_seconds", time.monotonic() - started)
            if finished or (sys.exc_info()[0] is JobFailed and worker.alive):
                self._idle.put_nowait(worker)
            else:
                self._replace(worker)
        return answer

    async def _follow(self, worker: Worker, job: Mapping[str, Any], on_event: OnEvent) -> dict[str, Any]:
        await worker.tell(job)
        while True:
            event = await worker.hear()
            if event["event"] == "done":
                return event
            if event["event"] == "failed":
                raise JobFailed(event["text"])
            if event["event"] == "broken":
                raise WorkerLost(event["text"])
            on_event(event)

    def _start_one(self, n_failures: int = 0) -> None:
        task = asyncio.ensure_future(self._bring_up(n_failures))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _bring_up(self, n_failures: int) -> None:
        await asyncio.sleep(PAUSES[min(n_failures, len(PAUSES) - 1)])
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "recon.serve.worker", stdin=PIPE, stdout=PIPE, limit=LINE_BYTES, start_new_session=True
        )
        worker = Worker(process)
        self._workers.add(worker)
        self._events.write("worker", state="started", pid=worker.pid)
        try:
            await worker.tell(self._setup)
            event = await worker.hear()
        except WorkerLost as error:
            self._events.write("worker", state="died", pid=worker.pid, cause=str(error))
            self._workers.discard(worker)
            if not self._stopped:
                self._start_one(n_failures + 1)
            return
        if event["event"] == "unable":
            if not self.unable.done():
                self.unable.set_result(event["text"])
            return
        self._events.write("worker", state="ready", pid=worker.pid)
        self._idle.put_nowait(worker)

    def _replace(self, worker: Worker) -> None:
        """Start another worker for one that died, or whose answer nobody waits for any more."""
        self._workers.discard(worker)
        self._events.count("workers_replaced")
        self._events.write("worker", state="replaced", pid=worker.pid)
        task = asyncio.ensure_future(worker.end())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        if not self._stopped:
            self._start_one()

    async def stop(self) -> None:
        """End all workers, whatever they do."""
        self._stopped = True
        for task in list(self._starting):
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(*(worker.end() for worker in self._workers), return_exceptions=True)


def check_able(pool: Pool) -> None:
    """Raise `InputError` if the workers cannot be set up with the server's options."""
    if pool.unable.done():
        raise InputError(pool.unable.result())


def _cause(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    memory = ", as the system does when memory runs out" if status == -signal.SIGKILL else ""
    return f"{signal.Signals(-status).name}{memory}"
