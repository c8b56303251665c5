"""DICOM delivery to an archive (C-STORE): a spool folder, and a thread that empties it whenever the archive takes images."""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kspace.errors import InputError
from kspace.io.atomic import sync, sync_folder

if TYPE_CHECKING:
    from recon.run.pipeline import Result

CALLING = "RECON"
PAUSES_S = (5.0, 15.0, 60.0, 300.0, 600.0)  # after the first, second, ... failure in a row; the last one from then on
TIMEOUT_S = 30.0
# PS3.4, table B.2-1. Refused for want of resources is worth another try, a data set that the archive cannot take is not.
REJECTED = (0x0122, 0x0117, 0x0124, *range(0xA900, 0xAA00), *range(0xC000, 0xD000))
SUCCESS = (0x0000, 0xB000, 0xB006, 0xB007)  # with the warnings: stored, elements coerced or discarded


@dataclass(frozen=True)
class Node:
    """A DICOM node.

    Attributes
    ----------
    title
        Application entity title, at most 16 characters.
    host
        Name or address.
    port
        TCP port.
    """

    title: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


def parse_node(text: str) -> Node:
    """The node that ``AET@HOST:PORT`` means.

    Raises
    ------
    InputError
        If it means none, or pynetdicom is not installed.
    """
    title, _, rest = text.partition("@")
    host, _, port = rest.rpartition(":")
    printable = title.isascii() and title.isprintable() and "\\" not in title
    if not (0 < len(title.strip()) <= 16 and printable and host and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"'{text}' is no DICOM node", "--store", "write AET@HOST:PORT, e.g. ARCHIVE@10.0.0.5:104")
    try:
        import pynetdicom  # noqa: F401 - said before anything is reconstructed
    except ImportError as error:
        raise InputError("pynetdicom is not installed", "--store", "pip install 'mri-gan-recon[pacs]'") from error
    return Node(title.strip(), host.strip("[]"), int(port))


def enqueue(results: Sequence[Result], spool: Path) -> Path | None:
    """Write the images of a scan as DICOM files into the spool: all of them, or none; return their folder.

    The files are on the disk when this returns; a `ArchiveQueue` in this or another process sends them.

    Parameters
    ----------
    results
        Images of all parts of a scan, with their records; without any, nothing is written.
    spool
        Folder of a `ArchiveQueue`, made if necessary.

    Raises
    ------
    InputError
        If images are inconsistent.
    OSError
        If the disk cannot take them.
    """
    from recon.output.dicom import write_dicom
    from recon.output.series import make_series

    filled = [result for result in results if result.images]
    if not filled:
        return None
    fresh = _new_folder(spool)
    try:
        for number, result in enumerate(filled):
            write_dicom(fresh / str(number), make_series(result.images, result.record), result.record)
        return _publish(fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def enqueue_files(files: Iterable[Path], spool: Path) -> Path:
    """Copy DICOM files into the spool: all of them, or none; return their folder. `OSError` as `enqueue`."""
    fresh = _new_folder(spool)
    try:
        for number, file in enumerate(files):
            shutil.copyfile(file, fresh / f"{number:06d}.dcm")
        return _publish(fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _new_folder(spool: Path) -> Path:
    fresh = spool / f".{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.part"
    fresh.mkdir(parents=True)
    return fresh


def _publish(fresh: Path) -> Path:
    sync(fresh)
    ready = fresh.with_name(fresh.name[1:].removesuffix(".part"))
    os.rename(fresh, ready)
    sync_folder(ready.parent)
    return ready


class ArchiveQueue:
    """Sends the DICOM files of a spool folder to a node, oldest first, until it is empty.

    A file leaves the spool when the node has confirmed it. A file that the node rejects for what it is goes to ``rejected/``;
    all other failures (no connection, association refused, out of resources) are tried again, after longer and longer pauses.
    What is in the spool at the start of the process is sent too.

    Parameters
    ----------
    node
        Where to.
    spool
        Folder; made if necessary.
    tell
        Receives one line per event: delivered, waiting, rejected.
    pauses_s
        Seconds after the first, second, ... failure in a row; the last one from then on.
    timeout_s
        Seconds for a connection, and for each answer of the node.
    """

    def __init__(
        self,
        node: Node,
        spool: Path,
        tell: Callable[[str], None],
        pauses_s: Sequence[float] = PAUSES_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.node, self._spool, self._tell, self._pauses, self._timeout = node, spool, tell, tuple(pauses_s), timeout_s
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._failures = 0
        spool.mkdir(parents=True, exist_ok=True)

    def waiting(self) -> list[Path]:
        """Files in the spool that are to be sent, oldest first."""
        folders = sorted(p for p in self._spool.iterdir() if p.name[0].isdigit())
        return [file for folder in folders for file in _dicom_files(folder)]

    def rejected(self) -> list[Path]:
        """Files that the node rejected."""
        return _dicom_files(self._spool / "rejected")

    def start(self) -> None:
        """Deliver in a thread of this process from now on."""
        self._thread = threading.Thread(target=self._run, name=f"store {self.node}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at the spool at once, instead of at the end of a pause."""
        self._wake.set()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread after the file in hand; what is not sent stays in the spool."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def deliver(self) -> bool:
        """Try once to send everything; return whether the spool is empty then."""
        files = self.waiting()
        if not files:
            return True
        problem = self._send(files)
        if problem is None:
            self._failures = 0
            return not self.waiting()
        self._failures += 1
        left = len(self.waiting())
        self._tell(f"{self.node}: {problem}; {left} images wait in {self._spool}, next try in {self._pause():g} s")
        return False

    def _pause(self) -> float:
        return self._pauses[min(self._failures, len(self._pauses)) - 1]

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                empty = self.deliver()
            except Exception as error:  # the thread must outlive every surprise: the images wait in the spool
                self._failures += 1
                self._tell(f"{self.node}: {type(error).__name__}: {error}; next try in {self._pause():g} s")
                empty = False
            # Other processes fill the spool too, so an empty one is looked at now and then.
            self._wake.wait(1.0 if empty else self._pause())
            self._wake.clear()

    def _send(self, files: Sequence[Path]) -> str | None:
        """Send files on one association; what went wrong, or None."""
        association = self._associate()
        if isinstance(association, str):
            return association
        n_sent, started = 0, time.monotonic()
        try:
            for file in files:
                if self._stopping.is_set():
                    return None
                problem = self._send_one(association, file)
                if problem is not None:
                    return problem
                n_sent += 1
        finally:
            if association.is_established:
                association.release()
            if n_sent:
                self._tell(f"{self.node}: {n_sent} images taken in {time.monotonic() - started:.1f} s")
        return None

    def _associate(self) -> Any:
        """An established association, or why there is none."""
        from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
        from pynetdicom import AE

        entity = AE(ae_title=CALLING)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = self._timeout
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):  # each of its own: some archives take one only
            entity.add_requested_context(MRImageStorage, syntax)
        association = entity.associate(self.node.host, self.node.port, ae_title=self.node.title)
        if association.is_established:
            return association if association.accepted_contexts else _no_context(association)
        if association.is_rejected:
            answer = association.acceptor.primitive
            return f"association refused ({answer.reason_str if answer is not None else 'no reason given'})"
        return "no connection" if association.acceptor.primitive is None else "association aborted"

    def _send_one(self, association: Any, file: Path) -> str | None:
        """Send a file and take it out of the spool; what went wrong, or None."""
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError

        try:
            dataset = dcmread(file)
        except (InvalidDicomError, OSError) as error:
            self._reject(file, f"cannot be read ({error})")
            return None
        if not association.is_established:
            return "the connection broke off"
        try:
            answer = association.send_c_store(dataset)
        except (ValueError, RuntimeError) as error:
            return f"C-STORE failed ({' '.join(str(error).split())})"
        status = answer.get("Status") if answer else None
        if status in SUCCESS:
            _remove(file, self._spool)
            return None
        if status in REJECTED:
            self._reject(file, f"status {status:04X} {answer.get('ErrorComment', '')}".strip())
            return None
        return "no answer to C-STORE" if status is None else f"C-STORE answered with status {status:04X}"

    def _reject(self, file: Path, why: str) -> None:
        place = self._spool / "rejected" / file.relative_to(self._spool)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(file, place)
        _remove(file, self._spool)
        self._tell(f"{self.node}: {place} rejected: {why}")


def _dicom_files(folder: Path) -> list[Path]:
    """Sorted; `os.walk` passes over folders that are removed meanwhile."""
    return sorted(Path(at) / name for at, _, names in os.walk(folder) for name in names if name.endswith(".dcm"))


def _no_context(association: Any) -> str:
    association.abort()
    return "takes no MR images"


def _remove(file: Path, spool: Path) -> None:
    """Remove a file, and its folders where they are empty then."""
    file.unlink(missing_ok=True)
    for folder in file.parents:
        if folder == spool:
            break
        try:
            folder.rmdir()
        except OSError:
            break
