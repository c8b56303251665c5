"""Dask schedulers and workers in processes of their own, which end with the block, and can be killed before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

from tests.conftest import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
OLD = "import kspace; kspace.__version__ = '0.0.9'; import runpy, sys; sys.argv[0] = 'dask'; "
DASK = "import sys; from distributed.cli.dask_{0} import main; main()"


@contextmanager
def process(program: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
        try:
            yield started
        finally:
            with_children(started.pid, signal.SIGKILL)
            started.wait()


def with_children(pid: int, number: int) -> None:
    """Send a signal to a process and those that it started."""
    try:
        family = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def scheduler(file: Path) -> Any:
    return process(DASK.format("scheduler"), "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file)


def worker(file: Path, *more: object, before: str = "") -> Any:
    arguments = ("--scheduler-file", file, "--nthreads", 1, "--host", "127.0.0.1", "--no-dashboard", *more)
    return process(before + DASK.format("worker"), *arguments)


def appeared(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def running_cluster(folder: Path, n_workers: int = 2) -> Iterator[Path]:
    """Scheduler file of a scheduler with worker processes, each with a nanny that replaces it."""
    file = folder / "scheduler.json"
    with scheduler(file):
        appeared(file)
        with worker(file, "--nworkers", n_workers):
            with Client(scheduler_file=str(file), set_as_default=False) as client:
                client.wait_for_workers(n_workers, timeout=120)
            yield file
