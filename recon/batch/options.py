"""Options of `recon batch`, and those of a cluster that other commands share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kspace.errors import InputError


@dataclass(frozen=True)
class ClusterOptions:
    """Where the work is done.

    Attributes
    ----------
    scheduler
        local:N for N worker processes on this machine, tcp://HOST:PORT or tls://HOST:PORT of a Dask scheduler, or its scheduler
        FILE. Needs pip install 'mri-gan-recon[cluster]'. Default: one worker process, without Dask.
    gpus
        One worker for each CUDA device with local:N (N is the number of devices then, and may be left out: local); with a
        scheduler, only workers that announce a GPU (--resources GPU=1).
    threads
        Threads of PyTorch and BLAS in each worker process of this machine. Default: 1.
    insecure
        Accept a scheduler on another machine without TLS: whoever reaches its port can run programs as you.
    tls_ca
        PEM file of the certificate authority, for tls://.
    tls_cert
        PEM file of this client's certificate, for tls://.
    tls_key
        PEM file of the key of --tls-cert.
    """

    scheduler: str | None = None
    gpus: bool = False
    threads: int | None = None
    insecure: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"{self.threads} threads", "--threads", "give 1 or more")
        given = [path for path in (self.tls_ca, self.tls_cert, self.tls_key) if path is not None]
        if given and len(given) < 3:
            raise InputError("TLS needs three files", "--tls-ca, --tls-cert, --tls-key", "give all of them")
        if missing := next((path for path in given if not path.is_file()), None):
            raise InputError("no such file", missing, "correct --tls-ca, --tls-cert and --tls-key")
        if self.gpus and self.scheduler is None:
            raise InputError("one worker per device needs a scheduler", "--gpus", "add --scheduler local")
        if self.scheduler is None and (self.insecure or given):
            raise InputError("without a scheduler nothing is connected", "--insecure, --tls-ca", "add --scheduler")

    def refuse_threads(self) -> None:
        """Refuse ``--threads`` where there are no worker processes.

        Raises
        ------
        InputError
            If it was given without a scheduler.
        """
        if self.scheduler is None and self.threads is not None:
            raise InputError("threads of worker processes, and there are none", "--threads", "add --scheduler local:N")

    @property
    def n_local(self) -> int | None:
        """Number of worker processes of ``local:N``, 0 for ``local``; None for every other scheduler.

        Raises
        ------
        InputError
            If it is no positive number.
        """
        if self.scheduler is None or not re.match(r"local(:|$)", self.scheduler):
            return None
        number = self.scheduler.partition(":")[2]
        if number.isdecimal() and int(number) > 0:
            return int(number)
        if not number and self.gpus:
            return 0
        raise InputError(f"'{self.scheduler}' names no number of workers", "--scheduler", "write local:N, e.g. local:4")


@dataclass(frozen=True)
class BatchOptions:
    """Which scans, and what to do about faults.

    Attributes
    ----------
    root
        Folder that the names of the outputs are relative to. Default: the folder given, or the deepest folder that holds all
        inputs.
    part
        i/n, e.g. 3/16: only the scans of this part, i from 1 to n. Parts are disjoint and stay the same when scans are added.
    dry_run
        List what would be reconstructed and why, and do nothing.
    status
        Say how far the batch is, from its files alone, and do nothing.
    retries
        How often a scan is tried again after an error of a disk or network.
    time_limit
        Seconds that one scan may take; its worker process is ended then. Default: no limit.
    checksum
        Compare the checksum of every raw file with its record; by default only where size or time of modification changed.
    retry_failed
        Try scans again that have failed.
    """

    root: Path | None = None
    part: str | None = None
    dry_run: bool = False
    status: bool = False
    retries: int = 3
    time_limit: float | None = None
    checksum: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise InputError(f"{self.retries} retries", "--retries", "give 0 or more")
        if self.time_limit is not None and not self.time_limit > 0:
            raise InputError(f"a limit of {self.time_limit:g} s", "--time-limit", "give seconds above 0")
        _ = self.share

    @property
    def share(self) -> tuple[int, int]:
        """The part as (i from 0, n).

        Raises
        ------
        InputError
            If it is not written i/n with 1 <= i <= n.
        """
        if self.part is None:
            return 0, 1
        match = re.fullmatch(r"(\d+)/(\d+)", self.part)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"'{self.part}' is no part", "--part", "write i/n with i from 1 to n, e.g. 3/16")
        return int(match[1]) - 1, int(match[2])
