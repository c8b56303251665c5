"""Tasks on worker processes: what every executor offers, one warm process without further software, and the loop over tasks."""

from __future__ import annotations

import heapq
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, Protocol

from tqdm import tqdm

from kspace.errors import InputError

MOST_DEATHS = 4
"""Workers that may die while they hold a task, for whatever reason, before it is given up."""


@dataclass(frozen=True, eq=False)
class EndedTask:
    """A task that ended.

    Attributes
    ----------
    task
        As it was submitted.
    value
        What the function returned.
    error
        What it raised; None where it returned.
    died
        Whether the worker died, which may be another task's doing.
    """

    task: Any
    value: Any = None
    error: BaseException | None = None
    died: bool = False


class Executor(Protocol):
    """Worker processes that call one function with one task at a time.

    Attributes
    ----------
    n_workers
        How many there are now.
    dashboard
        Address of a page that shows them; None: there is none.
    says
        What they are, in words.
    """

    n_workers: int
    dashboard: str | None
    says: str

    @property
    def n_free(self) -> int:
        """How many more tasks it takes now: enough that no worker waits, few enough that no list is held in memory."""

    @property
    def n_busy(self) -> int:
        """Tasks that were submitted and have not ended."""

    def submit(self, task: Any) -> None:
        """Start a task."""

    def wait(self, seconds: float) -> list[EndedTask]:
        """What ended; empty where nothing did within `seconds`.

        Raises
        ------
        InputError
            If the workers went away for good.
        """

    def close(self) -> None:
        """End the workers of this executor, and what they are doing."""


class OneProcess(Executor):
    """One worker process of this machine, replaced when it dies.

    A process apart, because a damaged file can crash a library, and a time limit ends the process.
    """

    dashboard = None
    says = "1 worker process"
    n_workers = 1

    def __init__(self, function: Callable[[Any], Any], threads: int = 1) -> None:
        self._function, self._threads = function, threads
        self._task: Any = None
        self._start()

    @property
    def n_free(self) -> int:
        return 1 - self.n_busy

    @property
    def n_busy(self) -> int:
        return int(self._task is not None)

    def submit(self, task: Any) -> None:
        self._task = task
        if not self._process.is_alive():
            self._restart()
        try:
            self._connection.send(task)
        except OSError:  # died since
            self._restart()
            self._connection.send(task)

    def wait(self, seconds: float) -> list[EndedTask]:
        if not self.n_busy:
            time.sleep(seconds)
            return []
        try:
            if not self._connection.poll(seconds):
                return []
            value, error = self._connection.recv()
            ended = EndedTask(self._task, value, error)
        except (EOFError, OSError):
            ended = EndedTask(self._task, died=True)
        self._task = None
        return [ended]

    def close(self) -> None:
        self._connection.close()
        if not self.n_busy:
            self._process.join(5)  # it ends by itself, and leaves nothing behind
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._function, self._threads)
        with environment(threads_environment(self._threads)):
            self._process = context.Process(target=_serve, args=arguments, daemon=True, name="recon-worker")
            self._process.start()
        theirs.close()

    def _restart(self) -> None:
        self.close()
        self._start()


def _serve(connection: Connection, function: Callable[[Any], Any], threads: int) -> None:
    """Answer tasks until the other side closes. Ctrl-C is for the process that gives them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lone_progress_bars()
    with suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            answer: tuple[Any, Exception | None]
            try:
                answer = function(task), None
            except Exception as error:
                answer = None, error
            connection.send(answer)


def lone_progress_bars() -> None:
    """Let progress bars of this process lock among its threads only: a semaphore would outlive a process that is killed."""
    tqdm.set_lock(threading.RLock())


def threads_environment(threads: int) -> dict[str, str]:
    """Environment of a worker with so many threads of BLAS and PyTorch."""
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


class environment:
    """Environment variables for the processes that start in the block."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._values}
        os.environ.update(self._values)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass
class TaskLoop:
    """Tasks through an executor: only as many are taken from `tasks` as workers can use, and those to repeat wait their time.

    Attributes
    ----------
    executor
        Where they run.
    tasks
        Taken lazily; None: there is none at the moment.
    poll_s
        Longest wait between two looks.
    """

    executor: Executor
    tasks: Iterator[Any]
    poll_s: float = 0.5
    _later: list[tuple[float, int, Any]] = field(default_factory=list)
    _number: Iterator[int] = field(default_factory=count)
    _deaths: dict[int, int] = field(default_factory=dict)
    _finished: bool = False

    def repeat(self, task: Any, after_s: float = 0.0) -> None:
        """Do a task again, in `after_s` seconds at the earliest."""
        heapq.heappush(self._later, (time.monotonic() + after_s, next(self._number), task))

    def __iter__(self) -> Iterator[EndedTask]:
        while True:
            while self.executor.n_free > 0 and (task := self._next()) is not None:
                self.executor.submit(task)
            if not self.executor.n_busy and self._finished and not self._later:
                return
            wait = self.poll_s
            if not self.executor.n_busy and self._later:
                wait = min(wait, max(0.0, self._later[0][0] - time.monotonic()))
            for ended in self.executor.wait(wait):
                if not self._again(ended):
                    yield ended

    def _next(self) -> Any:
        if self._later and self._later[0][0] <= time.monotonic():
            return heapq.heappop(self._later)[2]
        if not self._finished:
            for task in self.tasks:
                return task
            self._finished = True
        return None

    def _again(self, ended: EndedTask) -> bool:
        """Whether a task is repeated because its worker died."""
        key = id(ended.task)
        if not ended.died:
            self._deaths.pop(key, None)
            return False
        self._deaths[key] = self._deaths.get(key, 0) + 1
        if self._deaths[key] >= MOST_DEATHS:
            return False
        self.repeat(ended.task)
        return True


def refuse_foreign(error: BaseException) -> None:
    """Raise what concerns all tasks alike: a worker without this project, or with another version of it."""
    if isinstance(error, InputError) and error.where == "--scheduler":
        raise error
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in ("recon", "kspace", "models"):
        raise InputError(f"a worker has no module {error.name}", "--scheduler", "install this version of recon on every worker")
