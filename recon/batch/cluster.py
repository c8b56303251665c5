"""Dask `distributed`: worker processes of this machine, or those of a scheduler elsewhere.

Rocklin, Dask: parallel computation with blocked algorithms and task scheduling, Proc. SciPy 2015,
https://doi.org/10.25080/Majora-7b98e3ed-013.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import pkgutil
import queue
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import recon
from kspace.errors import InputError
from recon.batch.executor import EndedTask, Executor, OneProcess, threads_environment
from recon.batch.options import ClusterOptions

CONNECT_S = 10.0
START_S = 120.0
LOST_S = 120.0
"""How long tasks wait for a worker after the last one went away."""
LOOK_S = 1.0
"""How long the list of workers is believed: asking for every task would cost more than the task."""
AHEAD = 2
"""Tasks in flight for each thread of the workers: one runs, one waits beside it."""


def make_executor(options: ClusterOptions, function: Callable[[Any], Any]) -> Executor:
    """The executor that the options name.

    Raises
    ------
    InputError
        If Dask is not installed, no scheduler answers, it may not be trusted, or its workers have another version.
    """
    if options.scheduler is None:
        return OneProcess(function, options.threads or 1)
    n_local = options.n_local
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"needs Dask ({error})", "--scheduler", "pip install 'mri-gan-recon[cluster]', or use --part without a scheduler"
        ) from error
    _quieten()
    return DaskExecutor(function, options, None if n_local is None else local_workers(n_local, options))


def scheduler_address(text: str) -> str:
    """Address of a scheduler, from an address or the scheduler file that ``dask scheduler --scheduler-file`` writes.

    Raises
    ------
    InputError
        If it is neither.
    """
    if "://" in text:
        parts = urlsplit(text)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme not in ("tcp", "tls") or not parts.hostname or port is None:
            raise InputError(f"'{text}' is no address", "--scheduler", "write tcp://HOST:PORT or tls://HOST:PORT")
        return text
    try:
        address = json.loads(Path(text).read_text())["address"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "not a scheduler file"
        raise InputError(
            f"'{text}' is no scheduler ({reason})", "--scheduler", "give local:N, tcp://HOST:PORT, or a scheduler file"
        ) from error
    return str(address)


def check_trust(address: str, insecure: bool) -> None:
    """Refuse a scheduler on another machine without TLS.

    Raises
    ------
    InputError
        Unless it is encrypted, on this machine, or accepted with ``--insecure``.
    """
    parts = urlsplit(address)
    if parts.scheme == "tls" or insecure or _is_loopback(parts.hostname or ""):
        return
    raise InputError(
        f"{address} is another machine without TLS: whoever reaches it can run programs as you",
        "--scheduler",
        "use tls:// with --tls-ca, --tls-cert and --tls-key (docs/CLUSTER.md), or accept that with --insecure",
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class DaskExecutor(Executor):
    """Workers of a Dask scheduler; those of `cluster`, where there is one, end with this executor."""

    def __init__(self, function: Callable[[Any], Any], options: ClusterOptions, cluster: Any = None) -> None:
        from distributed import Client

        self._function, self._cluster = function, cluster
        self._resources = {"GPU": 1} if options.gpus else None
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._tasks: dict[Any, Any] = {}
        self._futures: dict[Any, Any] = {}
        self._threads: dict[str, int] = {}
        self._looked = self._seen = time.monotonic() - LOOK_S
        if cluster is not None:
            self._client = Client(cluster, timeout=START_S)
        else:
            self._client = _connect(options)
        try:
            self._check(options)
        except BaseException:
            self.close()
            raise
        self.dashboard = self._client.dashboard_link if self._client.scheduler_info().get("services") else None

    def _check(self, options: ClusterOptions) -> None:
        wanted = 1 if self._cluster is None else len(self._cluster.worker_spec)
        try:
            self._client.wait_for_workers(wanted, timeout=START_S if self._cluster is not None else CONNECT_S)
        except TimeoutError as error:
            raise InputError(
                f"the scheduler has {len(self._workers())} workers, {wanted} expected", "--scheduler", "start workers"
            ) from error
        # A function of the standard library: the workers may not have this project at all.
        found = self._client.run(pkgutil.resolve_name, "kspace:__version__", on_error="return")
        for worker, version in found.items():
            if version != recon.__version__:
                has = f"recon {version}" if isinstance(version, str) else f"no recon ({type(version).__name__}: {version})"
                raise InputError(
                    f"the worker {worker} has {has}, this command recon {recon.__version__}",
                    "--scheduler",
                    "install the same version",
                )
        if options.gpus and not any("GPU" in (w.get("resources") or {}) for w in self._workers().values()):
            raise InputError("no worker announces a GPU", "--gpus", "start the workers with --resources GPU=1")

    def _workers(self) -> dict[str, Any]:
        found: dict[str, Any] = self._client.scheduler_info(n_workers=-1).get("workers") or {}
        return found

    @property
    def n_workers(self) -> int:  # type: ignore[override]
        """Worker processes that the scheduler knows now."""
        return len(self._look())

    @property
    def says(self) -> str:  # type: ignore[override]
        """Number and place of the workers."""
        where = "this machine" if self._cluster is not None else str(self._client.scheduler_info().get("address"))
        return f"{self.n_workers} worker processes of {where}"

    @property
    def n_free(self) -> int:
        threads = sum(self._look().values())
        return AHEAD * max(1, threads) + 1 - len(self._tasks)

    @property
    def n_busy(self) -> int:
        return len(self._tasks)

    def submit(self, task: Any) -> None:
        from distributed.protocol.pickle import dumps

        # Not pure: a scan whose raw file changed is another task of the same name.
        future = self._client.submit(_call, dumps((self._function, task)), pure=False, resources=self._resources)
        self._tasks[future.key], self._futures[future.key] = task, future
        future.add_done_callback(self._ended.put)

    def wait(self, seconds: float) -> list[EndedTask]:
        try:
            futures = [self._ended.get(timeout=seconds)]
        except queue.Empty:
            if not self._look() and self._tasks and time.monotonic() - self._seen > LOST_S:
                raise InputError(
                    f"the scheduler has had no worker for {LOST_S:.0f} s", "--scheduler", "start workers, and run it again"
                ) from None
            return []
        with suppress(queue.Empty):
            while True:
                futures.append(self._ended.get_nowait())
        return [self._end(future) for future in futures if future.key in self._tasks]

    def _look(self) -> dict[str, int]:
        """Threads by worker, as they were at most `LOOK_S` ago."""
        if self._client.status not in ("running", "connecting"):
            raise self._gone()
        now = time.monotonic()
        if now - self._looked >= LOOK_S and self._client.status == "running":
            with suppress(OSError, TimeoutError):  # the scheduler went away just now: its status will say so
                scheduler: Any = self._client.scheduler
                found = self._client.sync(scheduler.ncores, callback_timeout=CONNECT_S)
                self._threads = {str(worker): int(n) for worker, n in found.items()}
            self._looked = now
            if self._threads:
                self._seen = now
        return self._threads

    def _gone(self) -> InputError:
        return InputError(
            "the scheduler went away", "--scheduler", "start it and run the same command again: what is done stays done"
        )

    def _end(self, future: Any) -> EndedTask:
        from distributed import KilledWorker

        task = self._tasks.pop(future.key)
        self._futures.pop(future.key)
        try:
            return EndedTask(task, future.result(timeout=START_S))
        except KilledWorker:
            return EndedTask(task, died=True)
        except Exception as error:
            if future.status in ("cancelled", "lost") or type(error).__name__ == "FutureCancelledError":
                raise self._gone() from error
            return EndedTask(task, error=error)

    def close(self) -> None:
        with suppress(Exception):
            self._client.cancel(list(self._futures.values()), force=True)
        with suppress(Exception):
            self._client.close(timeout=5)
        if self._cluster is not None:
            with suppress(Exception):
                self._cluster.close(timeout=20)


def _call(packed: bytes) -> Any:
    """In a worker: call a function with a task.

    Both travel packed, because the scheduler unpacks what it is given, and would import for it what the task is made of:
    tens of seconds of PyTorch on a busy machine, in which it answers nobody.
    """
    from distributed.protocol.pickle import loads

    function, task = loads(packed)
    return function(task)


def _connect(options: ClusterOptions) -> Any:
    from distributed import Client
    from distributed.security import Security

    address = scheduler_address(str(options.scheduler))
    check_trust(address, options.insecure)
    security = None
    if options.tls_ca is not None:
        security = Security(
            tls_ca_file=str(options.tls_ca),
            tls_client_cert=str(options.tls_cert),
            tls_client_key=str(options.tls_key),
            require_encryption=True,
        )
    try:
        return Client(address, timeout=CONNECT_S, security=security, set_as_default=False)
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"no scheduler answers at {address} ({reason})", "--scheduler", "start one with: dask scheduler"
        ) from error


def local_workers(n_workers: int, options: ClusterOptions) -> Any:
    """Worker processes of this machine, talking TLS over its loopback, so that no other user can reach them.

    With ``--gpus`` one for each device, which alone it sees.

    Raises
    ------
    InputError
        If there is no CUDA device, or not as many as workers.
    """
    import dask
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.security import Security

    devices = _devices() if options.gpus else []
    if devices and n_workers not in (0, len(devices)):
        raise InputError(f"{n_workers} workers for {len(devices)} devices", "--scheduler", "write local, or as many as devices")
    n = len(devices) or n_workers
    # A claim says which scan ended its worker; the scheduler's guess would blame those that waited beside it.
    dask.config.set({"distributed.scheduler.allowed-failures": 100, "distributed.admin.system-monitor.gil.enabled": False})
    security = Security.temporary()
    common = {"nthreads": 1, "security": security, "silence_logs": logging.CRITICAL, "dashboard": False}
    specs: dict[Any, Any] = {}
    for i in range(n):
        given = threads_environment(options.threads or 1) | ({"CUDA_VISIBLE_DEVICES": devices[i]} if devices else {})
        own = {"env": given, "resources": {"GPU": 1} if devices else {}, "memory_limit": _memory_share(n)}
        specs[i] = {"cls": Nanny, "options": {**common, **own}}
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "protocol": "tls://", "security": security, "dashboard": True,
                    "dashboard_address": "127.0.0.1:0"},
    }  # fmt: skip
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for this process, which ends them
    try:
        return SpecCluster(specs, scheduler, security=security, silence_logs=logging.CRITICAL)
    finally:
        signal.signal(signal.SIGINT, before)


def _devices() -> list[str]:
    """CUDA devices, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    if not (n := torch.cuda.device_count()):
        raise InputError("no CUDA device found", "--gpus", "leave it out")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(n)]


def _memory_share(n: int) -> int:
    import psutil

    return int(psutil.virtual_memory().total / n)


def _quieten() -> None:
    for name in ("distributed", "tornado", "asyncio", "bokeh"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
