"""The folder in which raw data are kept: recorded streams while a scan runs, ISMRMRD files and their records afterwards.

``NAME.mrd`` is the stream of one session as it came, ``NAME.h5`` the ISMRMRD file made of it, ``NAME.json`` its record with
checksums, written last. A stream without a record that no process holds locked is an unfinished scan.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from kspace.errors import InputError
from kspace.io.atomic import sync_folder

STREAM, FILE, RECORD, PART = ".mrd", ".h5", ".json", ".part"


class Recording:
    """The bytes of one session, append-only; locked as long as this process lives or `close` was not called.

    Parameters
    ----------
    path
        New file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sync_folder(path.parent)
        self.n_bytes = 0
        self._n_synced = 0

    def write(self, data: bytes) -> None:
        """Append. The bytes are with the system afterwards: a crash of this process does not lose them, a power cut may."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._file, left) :]
        self.n_bytes += len(data)

    def sync(self) -> None:
        """Flush to the disk what was written since the last time."""
        n_bytes = self.n_bytes
        if n_bytes > self._n_synced:
            os.fsync(self._file)
            self._n_synced = n_bytes

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._file)


class Spool:
    """The folder.

    Parameters
    ----------
    folder
        Made if necessary, readable by this user only.
    min_free
        Free bytes below which no scan is taken.
    quota
        Bytes above which `enforce_quota` removes scans; None: never.
    """

    def __init__(self, folder: Path, min_free: int, quota: int | None) -> None:
        self.folder, self._min_free, self._quota = folder.absolute(), min_free, quota
        self._removing = threading.Lock()
        self._to_keep: set[str] = set()  # records, read once, of scans that the quota does not remove

    def prepare(self) -> None:
        """Make the folder, and remove what servers that died left half-written.

        Raises
        ------
        InputError
            If it cannot be written, or the disk is too full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.noise_folder.mkdir(exist_ok=True, mode=0o700)
            probe = self.folder / f".{secrets.token_hex(8)}{PART}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"cannot be written ({error.strerror})", self.folder, "choose another --spool") from error
        self.check_space()
        for path in self.folder.glob(f"*{PART}"):
            if not is_locked(path.with_name(path.name.split(".")[0] + STREAM)):
                path.unlink(missing_ok=True)

    @property
    def noise_folder(self) -> Path:
        """Where noise scans lie that came as sessions of their own."""
        return self.folder / "noise"

    def check_space(self) -> None:
        """Raise `InputError` if less than the stated space is free."""
        if (free := self.free_bytes()) < self._min_free:
            raise InputError(
                f"{free / 2**30:.2f} GiB are free, {self._min_free / 2**30:.2f} are needed (--min-free-gib)",
                self.folder,
                "remove scans, or give a --quota-gib",
            )

    def free_bytes(self) -> int:
        """Free space of the disk."""
        return shutil.disk_usage(self.folder).free

    def used_bytes(self) -> int:
        """Size of everything in the folder."""
        return _size_of(self.folder)

    def record(self) -> Recording:
        """A new recording.

        Raises
        ------
        InputError
            If the disk is too full, or cannot be written.
        """
        self.check_space()
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(3)}"
        try:
            return Recording(self.folder / (name + STREAM))
        except OSError as error:
            raise InputError(f"cannot record ({error.strerror})", self.folder, "free space, or correct its rights") from error

    def unfinished(self) -> list[Path]:
        """Streams of scans that were not finished, by servers that have died; oldest first."""
        streams = sorted(self.folder.glob(f"*{STREAM}"))
        return [path for path in streams if not path.with_suffix(RECORD).exists() and not is_locked(path)]

    def enforce_quota(self) -> tuple[list[Path], int]:
        """Remove the oldest reconstructed scans until the folder is within its quota.

        Returns the files removed, and the bytes above the quota that scans hold which were not reconstructed. Sessions that
        end together call it from threads of their own: one after the other, else both would count the same scans.
        """
        removed: list[Path] = []
        if self._quota is None:
            return removed, 0
        with self._removing:
            left = self._remove(removed, self.used_bytes() - self._quota)
        return removed, max(left, 0)

    def _remove(self, removed: list[Path], left: int) -> int:
        for record in self._reconstructed():
            if left <= 0:
                break
            # The record goes last: without it a stream would pass for an unfinished scan.
            for path in (record.with_suffix(STREAM), record.with_suffix(FILE), record):
                with suppress(FileNotFoundError):
                    n_bytes = path.stat().st_size
                    path.unlink()
                    left -= n_bytes
                    removed.append(path)
        return left

    def _reconstructed(self) -> Iterator[Path]:
        with os.scandir(self.folder) as entries:  # no `Path` of each: there may be tens of thousands
            names = sorted(e.name for e in entries if e.name.endswith(RECORD) and e.name not in self._to_keep)
        for name in names:
            path = self.folder / name
            with suppress(OSError, ValueError):
                if json.loads(path.read_text(encoding="utf-8"))["outcome"] == "reconstructed":
                    yield path
                else:
                    self._to_keep.add(name)


def _size_of(folder: Path | str) -> int:
    """Bytes of the files in a folder and those below; what is removed meanwhile counts nothing."""
    total = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                total += _size_of(entry.path) if entry.is_dir(follow_symlinks=False) else entry.stat().st_size
    return total


def is_locked(path: Path) -> bool:
    """Whether a process is recording into a file; False where it does not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
