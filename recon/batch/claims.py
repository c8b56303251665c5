"""Claims: one process at a time works on a scan, and what ended earlier attempts is known to the next one.

A claim is an advisory lock on a small file. The kernel releases it when the process dies, however it dies; the lines that it
wrote stay. A scan that kills its worker is told from a scan whose worker was killed for another scan's sake by that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
EXPIRED = "time limit"
EXIT_EXPIRED = 75


@dataclass(frozen=True)
class Claim:
    """A claim that is held.

    Attributes
    ----------
    path
        Its file.
    descriptor
        The open file.
    scan
        Name of the scan.
    n_begun
        Attempts of the same run that began earlier, and did not end: their processes died.
    has_expired
        Whether one of them exceeded the time limit.
    was_left
        Whether a process of any run died with this claim.
    """

    path: Path
    descriptor: int
    scan: str
    n_begun: int
    has_expired: bool
    was_left: bool

    def note(self, run: str, event: str) -> None:
        """Append a line, for the process that holds the claim next."""
        line = json.dumps({"scan": self.scan, "run": run, "event": event, "host": socket.gethostname(), "pid": os.getpid()})
        os.write(self.descriptor, f"{line}\n".encode())


@contextmanager
def claim(path: Path, scan: str, run: str) -> Iterator[Claim]:
    """Claim a scan, waiting for another process that works on it; the file is removed at the end.

    Parameters
    ----------
    path
        File of the claim; its folder is made.
    scan
        Name of the scan.
    run
        Name of the run of the batch, which attempts are counted in.

    Raises
    ------
    OSError
        If the file cannot be made.
    """
    descriptor = _acquire(path)
    try:
        begun, expired = _history(descriptor, run)
        held = Claim(path, descriptor, scan, begun, expired, os.fstat(descriptor).st_size > 0)
        held.note(run, "begun")
        yield held
    finally:  # a process that dies does not come here: its lines are what the next attempt reads
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
        # The holder before may have removed the file while this process waited for it.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def _history(descriptor: int, run: str) -> tuple[int, bool]:
    begun, expired = 0, False
    for line in os.pread(descriptor, 1 << 16, 0).decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if said.get("run") == run:
                begun += said["event"] == "begun"
                expired |= said["event"] == EXPIRED
    return begun, expired


def abandoned(folder: Path) -> Iterator[tuple[Path, str]]:
    """Claims whose processes died, held while the caller looks at each: file, and name of the scan.

    The caller removes the file, or leaves it.
    """
    for path in sorted(folder.glob("*.claim")):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                if _free(descriptor) and (scan := _scan(descriptor)) is not None:
                    yield path, scan
            finally:
                os.close(descriptor)


def _scan(descriptor: int) -> str | None:
    """Name of the scan in the first line; None where that was torn."""
    with contextlib.suppress(ValueError, KeyError, IndexError):
        return str(json.loads(os.pread(descriptor, 1 << 16, 0).splitlines()[0])["scan"])
    return None


@contextmanager
def time_limit(held: Claim, run: str, seconds: float | None) -> Iterator[None]:
    """End this process where the body takes longer than `seconds`: nothing else stops a library that does not return."""
    if seconds is None:
        yield
        return
    over, deciding = False, threading.Lock()

    def expire() -> None:
        with deciding:
            if not over:
                held.note(run, EXPIRED)
                os._exit(EXIT_EXPIRED)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with deciding:
            over = True
        timer.cancel()


@contextmanager
def sole(path: Path) -> Iterator[bool]:
    """Hold a lock on a file for the length of a run; whether nobody else held it. The file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield _free(descriptor)
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a process holds the claim or lock of this file now."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _free(descriptor)
    finally:
        os.close(descriptor)


def _free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
