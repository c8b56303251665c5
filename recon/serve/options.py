"""How to serve: the options of ``recon serve`` beside those of ``recon run``."""

from __future__ import annotations

import ipaddress
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kspace.errors import InputError
from recon.run.options import RunOptions

if TYPE_CHECKING:  # the port must be bound before NumPy is imported
    from kspace.io.mrd.stream import StreamLimits

GIB = 2**30
MIB = 2**20
STOPPING = (signal.SIGTERM, signal.SIGINT)  # the server ends in order


@dataclass(frozen=True)
class ScannerOptions(RunOptions):
    """How to reconstruct for a scanner: `RunOptions` with pixels as scanners want them.

    Attributes
    ----------
    format
        Always mrd: what the client gets.
    mrd_pixels
        How pixels are sent: uint16 with integer window and slope 1, or float32.
    force, strict
        Of recon run only.
    """

    format: str = "mrd"
    mrd_pixels: Literal["float32", "uint16"] = "uint16"

    def __post_init__(self) -> None:
        if self.format != "mrd" or self.force or self.strict:
            raise InputError("of recon run only", "--format, --force and --strict", "leave them out: a client gets MRD images")
        if self.save_weights is not None:
            raise InputError("the scans of a server would write one file", "--save-weights", "adapt to one scan with recon run")
        super().__post_init__()


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes
    ----------
    port
        TCP port to listen on; 0 takes a free one.
    host
        Address to listen on. The protocol has no authentication: for more than this computer, see --tls-clients and --allow.
    spool
        Folder for the raw data of each scan, made if necessary.
    workers
        Worker processes, each of which reconstructs one scan at a time.
    stdio
        Serve one session on standard input and output (or the pipes that $INPUT_PIPE and $OUTPUT_PIPE name), then end.
    once
        End after the first session, for consoles that start a process for each scan.
    classical_first
        Send the classical image before the generated one.
    idle_timeout
        Seconds that a client may be silent, or leave its images unread.
    total_timeout
        Seconds that one session may take.
    stop_timeout
        Seconds that SIGTERM gives the scans in hand.
    max_clients
        Connections at one time; more are refused with a text.
    max_scan_gib
        The most that one session may send, GiB.
    max_readout_mib
        The most samples and trajectory that one readout may claim, MiB.
    max_image_mib
        The most pixels that one image of a client may claim, MiB.
    max_text_mib
        The longest header, configuration or text, MiB.
    max_unfinished_gib
        The most memory that unfinished messages of all clients may take together, GiB.
    min_free_gib
        Free space of the spool below which the server does not start, and refuses scans, GiB.
    quota_gib
        Remove the oldest reconstructed scans when the spool holds more, GiB. Without it nothing is removed.
    worker_memory_gib
        The most address space that a worker may take, GiB.
    store
        DICOM archive, AET@HOST:PORT, that gets the images of every scan too (pip install recon[pacs]). Images are then
        reconstructed at the end of the scan, all at once.
    metrics_port
        Port on the loopback address with /health and Prometheus' /metrics (pip install recon[serve]).
    tls_cert
        Certificate chain (PEM): serve TLS only.
    tls_key
        Its private key (PEM), where it is not in the same file.
    tls_clients
        Certificate authorities (PEM) of which a client must present a certificate.
    allow
        Addresses and networks that may connect, separated by commas, e.g. 192.168.2.0/24; others are refused.
    """

    port: int = 9002
    host: str = "127.0.0.1"
    spool: Path = Path("spool")
    workers: int = 1
    stdio: bool = False
    once: bool = False
    classical_first: bool = False
    idle_timeout: float = 600.0
    total_timeout: float = 14400.0
    stop_timeout: float = 60.0
    max_clients: int = 128
    max_scan_gib: float = 64.0
    max_readout_mib: float = 256.0
    max_image_mib: float = 1024.0
    max_text_mib: float = 16.0
    max_unfinished_gib: float = 2.0
    min_free_gib: float = 2.0
    quota_gib: float | None = None
    worker_memory_gib: float | None = None
    store: str | None = None
    metrics_port: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_clients: Path | None = None
    allow: str | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "max_clients"):
            _check(getattr(self, name) >= 1, f"--{name.replace('_', '-')}", getattr(self, name), "at least 1")
        for name in (
            "idle_timeout",
            "total_timeout",
            "stop_timeout",
            "max_scan_gib",
            "max_readout_mib",
            "max_text_mib",
            "max_unfinished_gib",
        ):
            _check(getattr(self, name) > 0, f"--{name.replace('_', '-')}", getattr(self, name), "more than 0")
        _check(0 <= self.port < 65536, "--port", self.port, "0 to 65535")
        if self.tls_cert is None and (self.tls_key is not None or self.tls_clients is not None):
            raise InputError("TLS needs a certificate", "--tls-key and --tls-clients", "give --tls-cert FILE")
        self.networks  # noqa: B018 - a network that cannot be read is refused before anything starts

    @property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """Of `allow`; empty where everybody may connect."""
        try:
            return tuple(
                ipaddress.ip_network(part.strip(), strict=False) for part in (self.allow or "").split(",") if part.strip()
            )
        except ValueError as error:
            raise InputError(str(error), "--allow", "write addresses and networks, e.g. 192.168.2.0/24") from error

    @property
    def limits(self) -> StreamLimits:
        """What one message may claim."""
        from kspace.io.mrd.stream import StreamLimits

        return StreamLimits(
            text=int(self.max_text_mib * MIB),
            acquisition=int(self.max_readout_mib * MIB),
            image=int(self.max_image_mib * MIB),
            waveform=int(self.max_readout_mib * MIB),
        )


def to_json(options: RunOptions) -> dict[str, Any]:
    """Options as JSON types, for a worker process."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def from_json(values: Mapping[str, Any]) -> RunOptions:
    """Options from `to_json`."""
    paths = {name: Path(values[name]) for name in ("weights", "noise") if values[name] is not None}
    return ScannerOptions(**{**values, **paths})


def _check(holds: bool, where: str, value: object, expected: str) -> None:
    if not holds:
        raise InputError(f"{value}, expected {expected}", where, "give another value")
